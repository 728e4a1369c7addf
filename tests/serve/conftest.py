"""What the server's tests share: one tiny model, one server process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import serve_model  # noqa: E402

LIMIT = 4  # --max-concurrent-requests of the shared server


@dataclass
class Running:
    """A server process and how to talk to it."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a request and read the whole answer."""
        return httpx.post(self.url + path, json=body, timeout=60, trust_env=False, **options)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """Return the environment of a process that runs the package."""
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "TEMPER_API_KEY"}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a merged folder with a model that knows serve_model.ANSWERS."""
    made = tmp_path_factory.mktemp("model") / "merged"
    serve_model.make(made)
    return made


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run the server that most tests share."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "temper.serve", "--model-id", str(folder), "--port", str(port),
             "--served-model-name", "tiny", "--max-input-tokens", "1000", "--max-total-tokens", "2000",
             "--max-concurrent-requests", str(LIMIT)], stdout=out, stderr=out, env=environment())
    running = Running(f"http://127.0.0.1:{port}", log, process)
    try:
        wait_ready(running)
        yield running
    finally:
        process.terminate()
        assert process.wait(15) == 0


def wait_ready(running: Running) -> None:
    """Wait until the server answers; show its log when it ends instead."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if httpx.get(running.url + "/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            assert running.process.poll() is None, running.log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"not ready: {running.log.read_text()}")
