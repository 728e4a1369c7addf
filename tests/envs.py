"""Other versions of libraries, each in a folder that stands in front of the test environment's own packages.

Each is made once from docker/locks/test-NAME.txt, with hashes, and made again when that file changes. The large shared
packages (torch, numpy) come from the environment that runs the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def packages(name: str) -> Path:
    """Return the folder of environment `name` (tf451, tf5), made now if there is none from the current lock."""
    lock = ROOT / f"docker/locks/test-{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder = ROOT / "build/test-envs" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = folder / "lock.sha256"
        if not made.is_file() or made.read_text() != digest:
            _install(lock, folder, digest)
    return folder


def _install(lock: Path, folder: Path, digest: str) -> None:
    work = folder.with_name(f".{folder.name}.work")
    for old in (work, folder):
        shutil.rmtree(old, ignore_errors=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--target",
            str(work),
            "-r",
            str(lock),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (work / "lock.sha256").write_text(digest)
    os.replace(work, folder)


def run(name: str, program: str, *arguments: object) -> Any:
    """Run a Python program in environment `name` ("" for the tests' own) and return the JSON its last line prints.

    Raises AssertionError with what the program said when it fails.
    """
    path = {"PYTHONPATH": str(packages(name))} if name else {}
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**inherited, **OFFLINE, **path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
