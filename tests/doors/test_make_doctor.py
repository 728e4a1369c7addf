"""`make doctor`: what this machine lacks and the command that mends it, before anything is installed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from doors_run import Done, make_refuses, run
from tests.graph import scratch

from temper import doctor

TOOLS = ("bash", "make", "git", "rm")
Doctor = Callable[..., Done]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository without an environment."""
    repo = scratch.copy(tmp_path_factory.mktemp("doctor") / "repo")
    shutil.rmtree(repo.root / ".venv")
    return repo.root


@pytest.fixture
def examined(clone: Path, tmp_path: Path) -> Doctor:
    """Return a function that runs `make doctor` where only some tools and a Python without packages are on the path."""

    def examine(*settings: str, without: str = "") -> Done:
        place = tmp_path / f"bin-without-{without}"
        place.mkdir()
        for name in TOOLS:
            if name != without:
                (place / name).symlink_to(str(shutil.which(name)))
        (place / "python3").write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S "$@"\n')
        (place / "python3").chmod(0o755)
        return run(str(shutil.which("make")), "doctor", *settings, cwd=clone, path=str(place))

    return examine


def findings(done: Done) -> dict[str, str]:
    """Return each finding with its kind: ok, note or lack."""
    found = re.findall(r"^(ok|note|lack) +(.*)$", done.out, re.M)
    return {what: kind for kind, what in found}


def test_it_runs_before_anything_is_installed(examined: Doctor, clone: Path) -> None:
    """A Python without packages examines Python, disk, memory, processor, engine and GPU, and installs nothing."""
    done = examined()
    found = findings(done)
    for what in (
        "Python 3.",
        "make",
        "git",
        "disk: ",
        "memory: ",
        "processor: ",
        "no container engine",
        "no NVIDIA GPU",
    ):
        assert any(line.startswith(what) for line in found), done.out + done.err
    assert found["environment .venv is not made yet  ->  make install"] == "note"
    assert not (clone / ".venv").exists()


def test_the_code_says_whether_something_is_missing(examined: Doctor) -> None:
    """Code 0 with nothing lacking, else 11 with the number of things; a note alone is no lack."""
    done = examined()
    lacking = sum(kind == "lack" for kind in findings(done).values())
    last = done.out.splitlines()[-1]
    if lacking:
        assert "Error 11" in done.err and last.startswith(f"doctor  {lacking} thing")
    else:
        assert (done.code, last) == (0, "doctor  this machine is ready for profile cpu")
    assert "note" in findings(done).values()


@pytest.mark.parametrize("profile", ["gpu-24g", "gpu-80g", "multi-node"])
def test_a_gpu_profile_lacks_its_driver(examined: Doctor, profile: str) -> None:
    """Where there is no GPU, a profile that needs one ends with 11 and names the driver the locked CUDA asks for."""
    done = examined(f"PROFILE={profile}")
    assert "Error 11" in done.err
    assert findings(done)["no NVIDIA GPU or driver  ->  install driver 580 or newer"] == "lack"
    assert re.search(rf"^doctor  \d+ things? missing for profile {profile}$", done.out, re.M)


def test_a_missing_tool_is_named_with_its_package(examined: Doctor) -> None:
    """Without git the doctor ends with 11 and the command that installs it."""
    done = examined(without="git")
    assert "Error 11" in done.err
    assert findings(done)["no git  ->  apt-get install git"] == "lack"


def test_an_unknown_profile_is_refused(repo: scratch.Repo) -> None:
    """A profile that does not exist is not called ready: code 3 and the list."""
    said = make_refuses(repo, 3, "doctor", PROFILE="gpu-25g")
    assert said.startswith("configs/profiles/gpu-25g.yaml: there is no profile named gpu-25g; there are: cpu, gpu-24g")


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("NVIDIA GeForce RTX 4090, 24564, 580.65.06", ("ok", "NVIDIA GeForce RTX 4090, 24 GB, driver 580.65.06", "")),
        ("NVIDIA A100-SXM4-80GB, 81920, 535.104.05",
         ("lack", "NVIDIA A100-SXM4-80GB, 80 GB, driver 535.104.05", "the locked CUDA 13 needs driver 580 or newer")),
        ("NVIDIA GB10, [N/A], 590.1", ("ok", "NVIDIA GB10, memory shared with the processor, driver 590.1", "")),
        ("Odd, name, 40960, [N/A]",
         ("lack", "Odd, name, 40 GB, driver [N/A]", "the locked CUDA 13 needs driver 580 or newer")),
    ],
)  # fmt: skip
def test_a_card_is_held_against_the_locked_cuda(line: str, finding: doctor.Finding) -> None:
    """A line of nvidia-smi becomes name, memory and driver, with the driver that is too old called a lack."""
    assert doctor._card(line, wanted=True) == finding
