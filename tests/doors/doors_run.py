"""Run a front door as a person would, also with a Python that has no packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.graph.scratch import NOT_OURS, Repo

ROOT = Path(__file__).resolve().parents[2]
DOORS = ROOT / "scripts" / "llamafactory"
# What `python` is on a machine where nothing is installed: the standard library and no site-packages.
BARE = (str(Path(sys.executable).resolve()), "-I", "-S")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*command: str | Path, cwd: Path = ROOT, path: str = "") -> Done:
    """Run a command to its end; whatever happens, it shows no traceback."""
    env = {name: value for name, value in os.environ.items() if name not in (*NOT_OURS, "TEMPER_BUILD")}
    env |= {"OMP_NUM_THREADS": "1"} | ({"PATH": path} if path else {})
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def refused(code: int, *command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command that must end with `code`; return the one line it says."""
    done = run(*command, cwd=cwd)
    assert done.code == code, done.out + done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("error: ").rstrip("\n")


def make_refuses(repo: Repo, code: int, *words: str, **settings: str) -> str:
    """Run a make that must end with `Error code`; return what was said besides make's own lines."""
    made = repo.make(*words, **settings)
    assert "Traceback" not in made.err + made.out, made.err
    assert re.search(rf"^make: \*\*\* .* Error {code}$", made.err, re.M), made.out + made.err
    said = [line for line in made.err.splitlines() if not line.startswith("make: ")]
    assert said[0].startswith("error: "), made.err
    return "\n".join(said).removeprefix("error: ")
