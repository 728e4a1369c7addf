"""One holder at a time for a scenario and profile; the kernel frees the lock of a dead holder."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temper.errors import LockedError


@contextmanager
def held(path: Path, purpose: str) -> Iterator[None]:
    """Hold `path` with flock for the block; wait for another holder and say who it is.

    With WAIT=0 in the environment a held lock raises LockedError instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait(file, path)
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%H:%M:%S")}))
        file.flush()
        yield


def _wait(file: object, path: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} ({holder['purpose']}, since {holder['since']})"
    except (ValueError, KeyError):
        who = "another process"
    if os.environ.get("WAIT") == "0":
        raise LockedError(f"{path} is held by {who}", "wait for it, or stop it")
    print(f"waiting for {who}, which holds {path}", file=sys.stderr, flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)  # type: ignore[arg-type]
