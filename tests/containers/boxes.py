"""Real engines for the tests of this folder, and copies of the repository to build and run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST_PYTHON = ROOT / ".venv-host/bin/python"
PARTS = (".dockerignore", "Makefile", "scripts", "configs", "data", "docker")
MODEL = "smollm2-135m"


def environment(**more: str) -> dict[str, str]:
    """Return the caller's environment without what a make that runs the tests put there."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON", "TEMPER", "BASE_"))
    }
    return {**kept, "TEMPER_NETWORK": "host", **more}


def run(*argv: str | Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [str(word) for word in argv]
    return subprocess.run(words, cwd=cwd, env=environment(**more), text=True, capture_output=True, check=False)


def make(*words: str, cwd: Path = ROOT, **more: str) -> str:
    """Run a make that must succeed and return what it said."""
    done = run("make", *words, cwd=cwd, **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def copy(root: Path, *, store: bool = False) -> Path:
    """Copy the repository, with the fetched parts as links and, if asked, the built layers too."""
    root.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, root / part)
    (root / ".venv-host").symlink_to(ROOT / ".venv-host")
    wanted = ["cache/temper-cpu", *(["images/blobs", "images/layers"] if store else [])]
    for name in wanted:
        shutil.copytree(ROOT / "build" / name, root / "build" / name, copy_function=os.link)
    return root


def python(program: str, *arguments: object, cwd: Path = ROOT, interpreter: Path | str = sys.executable) -> str:
    """Run a Python program with the package on its path; it must succeed; return what it printed."""
    done = run(interpreter, "-c", program, *map(str, arguments), cwd=cwd, PYTHONPATH="scripts")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
