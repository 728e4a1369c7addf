"""The same commit gives the same image, and a difference is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boxes
import pytest

from temper import containers
from temper.containers import Engine
from temper.images import pinned

pytestmark = [pytest.mark.slow, pytest.mark.containers]


def layers(image: str = "temper-cpu", root: Path = boxes.ROOT) -> list[str]:
    """Return the DiffIDs that the lock says an image has."""
    lock = json.loads((root / pinned.LOCK).read_text())
    return [layer["diff_id"].removeprefix("sha256:") for layer in lock[image]["layers"]]


def test_built_again_elsewhere_it_is_the_same(image: str, tmp_path: Path) -> None:
    """In another directory, with another umask and clock and no network: every digest is the same.

    Debian's layer, which all others are compiled with, and two of wheels are written anew, the others taken as they
    are: tests/quickstart/test_quickstart_nix.py builds all of them from nothing.
    """
    again, anew = boxes.copy(tmp_path / "an other place", store=True), ("debian", "av", "xllamacpp")
    for note in (again / "build/images/layers").iterdir():
        layer = json.loads(note.read_text())
        if layer["name"] in anew:
            note.unlink()
            (again / "build/images/blobs" / layer["digest"]).unlink(missing_ok=True)
    words = "umask 077; exec unshare --net faketime '2031-05-06 07:08:09' make image IMAGE=temper-cpu"
    done = boxes.run("bash", "-c", words, cwd=again, TZ="Asia/Shanghai", LC_ALL="C")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]  # it compares with the lock
    assert sorted(re.findall(r"image   layer (\S+)", done.stdout)) == sorted(anew)
    shutil.rmtree(again)


def test_the_engine_holds_the_same(engine: Engine) -> None:
    """Docker and podman give the loaded image the digests of the lock: each layer's, and the image's own."""
    known = pinned.read()["temper-cpu"]
    tag = f"localhost/temper-cpu:{known['image'][7:25]}"
    assert containers.digests_of(engine, tag) == layers()
    assert (
        engine.run("image", "inspect", "--format", "{{.Id}}", tag).strip().removeprefix("sha256:") == known["image"][7:]
    )


def test_buildah_and_skopeo_read_it(image: str, tmp_path: Path) -> None:
    """The written layout is a standard one: skopeo copies it by its digest, buildah starts from it."""
    program = (
        "import sys; from pathlib import Path; from temper.images import build, oci\n"
        "made = build.build('temper-cpu', '', lambda line: None)\n"
        "oci.write_layout(made, build.BLOBS, Path(sys.argv[1]), 'latest')"
    )
    folder = boxes.ROOT / "build/images/layout-test"  # the same file system: its blobs are hard links
    try:
        boxes.python(program, folder, interpreter=boxes.HOST_PYTHON)
        shown = json.loads(boxes.run("skopeo", "inspect", f"oci:{folder}:latest").stdout)
        assert shown["Digest"] == pinned.read()["temper-cpu"]["manifest"]
        assert [layer.removeprefix("sha256:") for layer in shown["Layers"]] == layers()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_code_change_rebuilds_nothing(image: str) -> None:
    """The image holds the environment: with other code in the repository `make image` writes no layer."""
    assert "image   layer" not in boxes.make("image", "IMAGE=temper-cpu")
    code = Path(__file__)  # stands for any file that is no part
    assert code.name not in (boxes.ROOT / "docker/locks/temper-cpu.parts").read_text()


def test_a_difference_is_named(image: str, tmp_path: Path) -> None:
    """Another image than the recorded one is refused, with the layer and the first file that differs."""
    other = boxes.copy(tmp_path / "repo", store=True)
    stub = other / "scripts/shims/torchaudio/__init__.py"
    stub.write_text(stub.read_text() + "# changed\n")
    done = boxes.run("make", "image", "IMAGE=temper-cpu", cwd=other)
    assert done.returncode != 0
    assert done.stdout.count("image   layer ") == 1  # the others are taken as they are
    assert "Error 6" in done.stderr
    assert re.search(
        r"layer python is \w{12}, expected \w{12}, first differing file /usr/local/\S*/torchaudio/", done.stderr
    )
    assert "PIN=1" in done.stderr
    recorded = boxes.make("image", "IMAGE=temper-cpu", "PIN=1", cwd=other)
    assert "recorded" in recorded
    assert layers(root=other)[:-1] == layers()[:-1] and layers(root=other) != layers()


def test_a_part_with_other_bytes_is_refused(image: str, tmp_path: Path) -> None:
    """A wheel in the cache that is not the locked one stops the build, by its name."""
    other = boxes.copy(tmp_path / "repo", store=True)
    wheel = next((other / "build/cache/temper-cpu/wheels").glob("six-*.whl"), None) or next(
        (other / "build/cache/temper-cpu/wheels").glob("packaging-*.whl")
    )
    content = wheel.read_bytes()
    wheel.unlink()
    wheel.write_bytes(content[:-1] + b"x")
    done = boxes.run("make", "image", "IMAGE=temper-cpu", cwd=other)
    assert "Error 6" in done.stderr and wheel.name in done.stderr and "Traceback" not in done.stderr


def test_the_bill_of_materials_is_true(image: str) -> None:
    """The CycloneDX file lists each part with its sha256, is the same each time, and is checked against the image."""
    path = boxes.ROOT / "build/images/temper-cpu.cdx.json"
    first = path.read_bytes()
    bom = json.loads(first)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    torch = next(part for part in bom["components"] if part["name"] == "torch")
    assert torch["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu" and len(torch["hashes"][0]["content"]) == 64
    assert any(part["purl"].startswith("pkg:deb/debian/bash@") for part in bom["components"])
    boxes.make("image", "IMAGE=temper-cpu")
    assert path.read_bytes() == first
    program = (
        "from temper.images import build, parts, sbom\n"
        "made, read = build.build('temper-cpu', '', lambda line: None), parts.read\n"
        "parts.read = lambda image: [part for part in read(image) if part.name != 'torch']\n"
        "try: sbom.write(made, 'temper-cpu-test')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = boxes.python(program, interpreter=boxes.HOST_PYTHON)
    assert said.startswith("ResultError") and "torch 2.13.0+cpu" in said


@pytest.fixture(scope="session")  # for each module would be again and again: pytest groups tests by engine
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a plain Debian 12, such as a company's own base, and give it to both engines; clear up what was built."""
    from temper.images import fetch

    tar = tmp_path_factory.mktemp("debian") / "debian.tar"
    done = boxes.run("mmdebstrap", "--quiet", "--variant=apt", fetch.SUITE, tar, *fetch.sources())
    assert done.returncode == 0, done.stderr
    for name in ("docker", "podman"):
        assert boxes.run(name, "import", tar, "debian:bookworm-slim").returncode == 0
    yield tar
    for name in ("docker", "podman"):
        for tag in BUILT:
            boxes.run(name, "image", "rm", "--force", tag)
        if os.environ.get("CI"):
            boxes.run(name, "image", "prune", "--force")  # the builds' stages, gigabytes


def test_ones_own_base(image: str, debian: Path, registry: str, tmp_path: Path) -> None:
    """BASE_IMAGE=registry/debian@sha256:… keeps that image's layers, adds what it lacks, and has its own digest."""
    pushed = boxes.run(
        "skopeo",
        "copy",
        "--dest-tls-verify=false",
        "docker-daemon:debian:bookworm-slim",
        f"docker://{registry}/debian:12",
    )
    assert pushed.returncode == 0, pushed.stderr
    shown = json.loads(boxes.run("skopeo", "inspect", "--tls-verify=false", f"docker://{registry}/debian:12").stdout)
    reference = f"{registry}/debian@{shown['Digest']}"
    repo = boxes.copy(tmp_path / "repo", store=True)
    said = boxes.make("image", "IMAGE=temper-cpu", "RUNTIME=docker", f"BASE_IMAGE={reference}", cwd=repo)
    tag = re.search(r"docker has it as (\S+)", said)
    assert tag
    base = json.loads(boxes.run("docker", "image", "inspect", "debian:bookworm-slim").stdout)[0]["RootFS"]["Layers"]
    mine = json.loads(boxes.run("docker", "image", "inspect", tag[1]).stdout)[0]["RootFS"]["Layers"]
    assert mine[: len(base)] == base
    assert [digest[7:] for digest in mine[-5:]] == layers()[-5:]  # the Python packages are the same layers
    program = "import torch, llamafactory; print(torch.__version__)"
    ran = boxes.run(
        "docker", "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", tag[1], "python3", "-c", program
    )
    assert ran.stdout.strip().endswith("2.13.0+cpu"), ran.stderr
    assert "temper-serve is temper-cpu and" in boxes.make(
        "image", "IMAGE=temper-serve", f"BASE_IMAGE={reference}", cwd=repo
    )
    key = f"temper-cpu on {reference}"
    assert key in json.loads((repo / pinned.LOCK).read_text())
    boxes.run("docker", "image", "rm", "--force", tag[1], "localhost/temper-cpu:latest")
    for wrong in (f"{registry}/debian:12", reference[:-1]):
        done = boxes.run("make", "image", "IMAGE=temper-cpu", f"BASE_IMAGE={wrong}", cwd=repo)
        assert "Error 3" in done.stderr and "sha256" in done.stderr


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Debian's docker-registry on loopback."""
    import socket
    import time

    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = (
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    (folder / "config.yml").write_text(settings)
    with open(folder / "log", "wb") as log:
        serving = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        serving.terminate()
        serving.wait(10)


BUILT = ("llama-inference", "localhost/llama-train", "debian:bookworm-slim")
LISTING = """
import hashlib, os
for folder, _, names in sorted(os.walk("/usr/local/lib/python3.11/dist-packages")):
    for name in sorted(names):
        path = os.path.join(folder, name)
        skipped = "__pycache__" in folder or "/dist-packages/temper" in folder
        if not skipped and not (folder.endswith(".dist-info") and name in ("INSTALLER", "RECORD", "REQUESTED")):
            with open(path, "rb") as file:
                print(path, oct(os.lstat(path).st_mode), hashlib.sha256(file.read()).hexdigest())
"""


def listing(name: str, tag: str) -> list[str]:
    """Return each installed Python file of an image with its mode and digest."""
    done = boxes.run(name, "run", "--rm", "--network=none", "--entrypoint=python3", tag, "-c", LISTING)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bud(tag: str, cwd: Path = boxes.ROOT, **more: str) -> list[str]:
    """Build docker/Dockerfile.train with buildah, without a network, and return the DiffIDs."""
    words = [
        "buildah",
        "bud",
        "--runtime=runc",
        "--network=none",
        "--timestamp=0",
        "-f",
        "docker/Dockerfile.train",
        "-t",
        tag,
    ]
    done = boxes.run(*words, ".", cwd=cwd, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return diff_ids("podman", tag)


def diff_ids(name: str, tag: str) -> list[str]:
    """Return the DiffIDs that an engine gives an image."""
    return list(json.loads(boxes.run(name, "image", "inspect", tag).stdout)[0]["RootFS"]["Layers"])


@pytest.fixture(scope="session")
def trained_in(debian: Path) -> list[str]:
    """Build docker/Dockerfile.train once and return its DiffIDs."""
    return bud("localhost/llama-train")


def test_the_dockerfiles_build_the_same_files(engine: Engine, trained_in: list[str]) -> None:
    """Docker's and buildah's builds of the Dockerfiles, without a network, give the files that `make image` gives."""
    plain = f"localhost/temper-cpu:{pinned.read()['temper-cpu']['image'][7:25]}"
    tag = "localhost/llama-train"
    if engine.name == "docker":
        tag = "llama-inference"
        done = boxes.run("docker", "build", "--network=none", "-f", "docker/Dockerfile.inference", "-t", tag, ".")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wanted, got = listing(engine.name, plain), listing(engine.name, tag)
    assert len(wanted) > 20_000
    assert sorted(wanted) == sorted(got)
    entry = json.loads(boxes.run(engine.name, "image", "inspect", tag).stdout)[0]["Config"].get("Entrypoint")
    assert entry == (["python3", "-m", "temper.serve"] if engine.name == "docker" else None)
