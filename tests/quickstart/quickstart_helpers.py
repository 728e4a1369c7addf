"""One real quickstart for all tests of this folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Made:
    """The repository after its quickstart."""

    port: int
    transcript: str
    build: Path = ROOT / "build" / "customer-service" / "cpu"

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run make with the port that quickstart had, so that its settings are the same."""
        return run(*words, f"PORT={self.port}")


def environment() -> dict[str, str]:
    """Return the environment of a shell in which no make and no pytest runs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON", "TEMPER"))}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository."""
    return subprocess.run(["make", *words], cwd=ROOT, env=environment(), text=True, capture_output=True, check=False)


def manifest(folder: Path) -> dict[str, Any]:
    """Return a result's manifest."""
    return dict(json.loads((folder / "manifest.json").read_text()))
