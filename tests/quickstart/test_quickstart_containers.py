"""The quickstart with its stages and servers in containers, beside the one of the local environment."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from quickstart_helpers import ROOT, Made, environment, free_port, manifest

from temper.errors import AnswerError

pytestmark = [pytest.mark.slow, pytest.mark.containers]


SHORT = "train.max_samples=16 train.num_train_epochs=1"  # enough to differ, if anything does


def test_docker_gives_the_same_bytes_and_serves_them(made: Made, tmp_path: Path) -> None:
    """Data, adapter and merged model from containers without a network equal the local ones and are served from one.

    A whole quickstart, of few steps: the model answers as it can, and the two questions are judged.
    """
    build, port = tmp_path / "build", free_port()
    env = {**environment(), "TEMPER_NETWORK": "host", "OMP_NUM_THREADS": "1"}

    def make(*words: str, runtime: str = "docker", folder: Path = build, code: int = 0) -> str:
        settings = [f"RUNTIME={runtime}", f"BUILD={folder}", f"PORT={port}", f"SET={SHORT}"]
        done = subprocess.run(["make", *words, *settings], cwd=ROOT, env=env, text=True, capture_output=True)
        assert (done.returncode and f"Error {code}" in done.stderr) if code else done.returncode == 0, (
            done.stdout[-3000:] + done.stderr[-3000:]
        )
        return done.stdout

    make("merge", runtime="local", folder=tmp_path / "local")
    said = make("quickstart", code=AnswerError.code)
    try:
        assert len(re.findall(r"\[(?:right|wrong): ", said)) == 2
        assert "train   starts (docker, temper-cpu sha256:" in said
        served = re.search(r"docker container (temper-serve-[\w.-]+)", make("status"))
        assert served
        assert make("ask", "Q=积分怎么用？").strip()
        assert make("merge") == ""  # a second make runs nothing here either
        for name in ("data", "adapter", "merged"):
            local, boxed = (
                manifest(folder / "customer-service" / "cpu" / name) for folder in (tmp_path / "local", build)
            )
            assert local["outputs"] == boxed["outputs"], name
            assert (local["made_from"]["image"], boxed["made_from"]["image"][:7]) == ("", "sha256:")
        assert manifest(made.build / "data")["outputs"] == manifest(build / "customer-service/cpu/data")["outputs"]
    finally:
        make("stop")
    listed = subprocess.run(["docker", "ps", "-aq", f"--filter=name={served[1]}"], capture_output=True)
    assert listed.stdout == b""  # this server's: another one on the machine is somebody else's
