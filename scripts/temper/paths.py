"""Where things are: the repository's own files and what is made at run time."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path("configs")
BUILD = Path(os.environ.get("TEMPER_BUILD", "build"))


def enter_root() -> None:
    """Work in the repository root, so that results hold relative paths and are equal on every machine."""
    os.chdir(ROOT)


def lock_file(needs_gpu: bool) -> Path:
    """Return the hash-locked list of Python packages a profile runs with."""
    return Path("docker/locks") / ("cuda.txt" if needs_gpu else "cpu.txt")
