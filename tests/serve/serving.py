"""A real server process for the tests, and ways to use up its places."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from temper.serve import launcher

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LIMIT = 4  # --max-concurrent-requests of the shared server
ENDLESS = {"inputs": "tick tock", "parameters": {"max_new_tokens": 1900}}


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
    ours = ("TEMPER_API_KEY", "TEMPER_HOSTNAME", *launcher.VARIABLES)
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def started(argv: list[str], port: int, log: Path, **more: str) -> Iterator[Running]:
    """Run a server with `more` in its environment until the block ends; SIGTERM must end it with 0."""
    with open(log, "wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env={**environment(), **more})
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


@contextlib.contextmanager
def busy(server: Running, count: int) -> Iterator[None]:
    """Hold `count` long streams open, none read beyond its beginning; each must find a place within 2 s."""
    with contextlib.ExitStack() as stack:
        until = time.monotonic() + 2
        held = 0
        while held < count:
            try:
                stack.enter_context(_open(server))
                held += 1
            except BlockingIOError:
                assert time.monotonic() < until, f"only {held} of {count} places are free"
                time.sleep(0.02)
        yield


@contextlib.contextmanager
def _open(server: Running) -> Iterator[None]:
    with httpx.stream("POST", server.url + "/generate_stream", json=ENDLESS, timeout=30, trust_env=False) as response:
        parts = response.iter_raw()  # kept: a forgotten iterator hangs up
        if b'"error"' in next(parts):
            raise BlockingIOError
        yield


def admitted(server: Running, body: Any) -> httpx.Response:
    """Ask until there is a place: the server may take a moment to notice who hung up."""
    until = time.monotonic() + 2
    while (response := server.post("/generate", body)).status_code == 429 and time.monotonic() < until:
        time.sleep(0.02)
    return response
