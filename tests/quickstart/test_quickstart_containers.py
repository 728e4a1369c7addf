"""The quickstart with its stages and servers in containers, beside the one of the local environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from quickstart_helpers import ROOT, Made, free_port

pytestmark = [pytest.mark.slow, pytest.mark.containers]


def manifest(folder: Path) -> dict[str, Any]:
    """Return a result's manifest."""
    return dict(json.loads((folder / "manifest.json").read_text()))


def test_docker_gives_the_same_bytes_and_serves_them(made: Made, tmp_path: Path) -> None:
    """Data, adapter and merged model from containers without a network equal the local ones and are served from one.

    Both train with as many threads: with another number a sum may be rounded otherwise.
    """
    build, port = tmp_path / "build", free_port()
    threads = str(manifest(made.build / "adapter")["chosen"]["threads"])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON", "TEMPER"))}
    env = {**kept, "OMP_NUM_THREADS": threads, "TEMPER_NETWORK": "host"}

    def make(*words: str) -> str:
        settings = ["RUNTIME=docker", f"BUILD={build}", f"PORT={port}"]
        done = subprocess.run(["make", *words, *settings], cwd=ROOT, env=env, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    said = make("quickstart")
    try:
        assert said.count("[right: ") == 2
        assert "train   starts (docker, temper-cpu sha256:" in said
        served = re.search(r"docker container (temper-serve-[\w.-]+)", make("status"))
        assert served
        assert "200" in make("ask", "Q=积分怎么用？")
        assert make("merge") == ""  # a second make runs nothing here either
        here = build / "customer-service" / "cpu"
        for name in ("data", "adapter", "merged"):
            local, boxed = manifest(made.build / name), manifest(here / name)
            assert local["outputs"] == boxed["outputs"], name
            assert (local["made_from"]["image"], boxed["made_from"]["image"][:7]) == ("", "sha256:")
    finally:
        make("stop")
    listed = subprocess.run(["docker", "ps", "-aq", f"--filter=name={served[1]}"], capture_output=True)
    assert listed.stdout == b""  # this server's: another one on the machine is somebody else's
