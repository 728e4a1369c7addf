"""The same stages and the same image as Nix derivations, beside what Make made."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from quickstart_helpers import ROOT, Made, environment, manifest, run

from temper.config import resolve
from temper.images import pinned

# As docs/nix.md has it for a machine of one's own, without the daemon.
CONFIGURATION = (
    "experimental-features = nix-command flakes\nsandbox = true\nsandbox-fallback = false\nbuild-users-group =\n"
)
SHORT = "train.max_samples=8 train.num_train_epochs=1 eval.max_rows=3"
STAGES = ("data", "adapter", "merged", "eval", "report")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nix") and not os.environ.get("CI"), reason="apt-get install nix-bin"),
]


def nix(*words: object, cwd: Path = ROOT, fails: bool = False) -> str:
    """Run a command of Nix and return what it printed; what it said, when it is to fail."""
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env={**environment(), "NIX_CONFIG": CONFIGURATION}, text=True, capture_output=True
    )
    assert bool(done.returncode) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout.strip()


def flake(repo: Path, name: str, *words: str) -> Path:
    """Build what a flake calls `name` and return where it is in the store."""
    nix("nix", "build", f"./nix#{name}", *words, cwd=repo)
    return (repo / "result").resolve()


@pytest.fixture(scope="module")
def inputs() -> str:
    """Put what the derivations read into the Nix store."""
    done = run("nix-inputs", "PARTS=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a repository of its own with what this one tracks, as it lies here: a flake is read through git."""
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "repo" / name)
    for words in ("init -q", "add .", "-c user.name=tests -c user.email=tests@localhost commit -q -m copy"):
        subprocess.run(["git", *words.split()], cwd=tmp_path / "repo", check=True)
    return tmp_path / "repo"


def test_what_nix_builds_is_what_make_builds(made: Made, inputs: str, copy: Path) -> None:
    """`nix build ./nix#customer-service` gives each file of data, adapter and merged model that the quickstart has."""
    threads = json.loads((made.build / "adapter" / "run.json").read_text())["threads"]
    for name in ("merged", "adapter", "data"):
        folder = flake(
            copy, f"customer-service.{name}", "--cores", str(threads)
        )  # other numbers: docs/reproducibility.md
        theirs, ours = manifest(folder), manifest(made.build / name)
        assert theirs["outputs"] == ours["outputs"], name
        assert all((folder / file).read_bytes() == (made.build / name / file).read_bytes() for file in ours["outputs"])
        assert theirs["made_from"]["image"] == pinned.read()["temper-cpu"]["image"]
        assert {**theirs["made_from"], "image": ""} == ours["made_from"]
        assert not {path.name for path in folder.glob("run.*")} - {"run.yaml", "run.config.yaml"}  # nothing of one run
    assert flake(copy, "customer-service", "--rebuild") == flake(copy, "customer-service.merged")


def test_a_second_build_gives_the_same(inputs: str) -> None:
    """Data, adapter and report, of a short training, are built twice: Nix finds no difference."""
    for name in ("report", "data", "adapter"):  # the merged model: see above; the answers: docs/log.md
        words = ("nix", "-A", f"customer-service.{name}", "--argstr", "set", SHORT, "--no-out-link")
        out = Path(nix("nix-build", *words))
        assert nix("nix-build", *words, "--check") == str(out)
        if name == "report":
            assert "<html" in (out / "report.html").read_text() and json.loads((out / "metrics.json").read_text())


def test_the_image_has_the_digest_of_the_lock(inputs: str, copy: Path) -> None:
    """`nix build ./nix#image-cpu` arrives at the manifest that `make image` has recorded, from the same parts."""
    out = flake(copy, "image-cpu")
    (described,) = json.loads((out / "index.json").read_text())["manifests"]
    assert described["digest"] == pinned.read()["temper-cpu"]["manifest"]
    for listed in json.loads((out / "blobs/sha256" / described["digest"][7:]).read_text())["layers"]:
        assert (out / "blobs/sha256" / listed["digest"][7:]).stat().st_size == listed["size"]
    (copy / "result").unlink()
    nix("nix-store", "--delete", out)  # 2.4 GB


def test_a_build_has_no_network(inputs: str, tmp_path: Path) -> None:
    """What a stage runs in sees its own loopback and nothing that listens on this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        program = (
            "import os, socket; links = [name for _, name in socket.if_nameindex()]\n"
            f"refused = socket.socket().connect_ex(('127.0.0.1', {listening.getsockname()[1]}))\n"
            "open(os.environ['out'], 'w').write(f'{links} {refused > 0}')"
        )
        args = json.dumps(["-c", program]).replace('",', '"')
        expression = f"""let
          lib = import {ROOT}/nix/lib.nix; input = import {ROOT}/nix/input.nix {{ }};
          busybox = import {ROOT}/nix/busybox.nix {{ inherit lib input; }};
          root = import {ROOT}/nix/root.nix {{ inherit lib input busybox; image = "temper-cpu"; }};
          python = import {ROOT}/nix/python.nix {{ inherit lib busybox root; }};
        in lib.build {{ name = "links"; builder = "${{python}}/bin/python3"; args = {args}; }}"""
        out = nix("nix-build", "-E", expression, "--no-out-link")
    assert Path(out).read_text() == "['lo'] True"


def derivations(repo: Path, scenario: str = "customer-service") -> dict[str, str]:
    """Return the derivation of each stage."""
    words = [word for name in STAGES for word in ("-A", f"{scenario}.{name}")]
    return dict(zip(STAGES, nix("nix-instantiate", "nix", *words, cwd=repo).splitlines(), strict=True))


@pytest.mark.parametrize(
    ("file", "rebuilt"),
    [
        ("docs/nix.md", ()),
        ("tests/conftest.py", ()),
        ("Makefile", ()),
        ("data/financial-qa/rows.csv", ()),
        ("scripts/temper/report/page.py", ("report",)),
        ("scripts/temper/serve/chat.py", ("eval", "report")),
        ("data/retention/rows.jsonl", ("eval", "report")),
        ("scripts/temper/merge/gate.py", ("merged", "eval", "report")),
        ("scripts/temper/train/run.py", ("adapter", "merged", "eval", "report")),
        ("data/customer-service/rows.csv", STAGES),
        ("docker/locks/cpu.txt", STAGES),
    ],
)
def test_a_change_rebuilds_what_it_bears_on(copy: Path, file: str, rebuilt: tuple[str, ...]) -> None:
    """A change to docs, tests or another scenario rebuilds nothing, one to code or rows what follows from it."""
    before = derivations(copy)
    (copy / file).write_text((copy / file).read_text() + "\n")
    after = derivations(copy)
    assert tuple(name for name in STAGES if before[name] != after[name]) == rebuilt


def test_every_scenario_and_profile_is_there() -> None:
    """Each of them has derivations of the base model and the image that Make takes; an unknown model is named."""
    for scenario in resolve.names("scenarios"):
        for profile in resolve.names("profiles"):
            config, words = resolve.resolve(scenario, profile), ("nix-instantiate", "nix", "-A")
            if not (ROOT / f"configs/models/{config['model']['name']}.sha256").exists():
                said = nix(*words, f"{scenario}.{profile}.adapter", fails=True)
                assert f"run: make model MODEL={config['model']['name']}" in said
                continue
            (shown,) = derivation(nix(*words, f"{scenario}.{profile}.adapter")).values()
            assert shown["env"]["model"] == config["model"]["name"], (scenario, profile)
            image = "temper-cuda" if config["gpu"] else "temper-cpu"
            (python,) = (name for name in shown["inputDrvs"] if name.endswith("-python.drv"))
            assert any(name.endswith(f"-{image}.drv") for name in derivation(python)[python]["inputDrvs"])


def derivation(drv: str) -> dict[str, Any]:
    """Return what Nix shows of a derivation."""
    return dict(json.loads(nix("nix", "show-derivation", drv)))


def test_an_absent_input_names_the_goal_that_provides_it(copy: Path) -> None:
    """What the store lacks is named, with what to run; a build without it does not begin."""
    known = copy / "docker/locks/busybox.json"
    known.write_text(known.read_text().replace("f", "0"))
    said = nix("nix-build", "nix", "-A", "customer-service.base", cwd=copy, fails=True)
    assert "there is no busybox in the Nix store; run: make nix-inputs" in said and "model   starts" not in said


def test_a_shell_has_the_image_s_programs(inputs: str, copy: Path) -> None:
    """nix-shell and nix develop bring the image's Python and LLaMA Factory, on the working tree."""
    program = "python3 -c 'import sys, torch; print(sys.executable, torch.__version__)' && command -v llamafactory-cli"
    for words in (("nix-shell", "nix", "-A", "shell", "--run"), ("nix", "develop", "./nix", "-c", "bash", "-c")):
        python, version, cli = nix(*words, program, cwd=copy).split()
        assert python.startswith("/nix/store/") and version == "2.13.0+cpu"
        assert re.fullmatch(r"/nix/store/\w{32}-python/bin/llamafactory-cli", cli)
