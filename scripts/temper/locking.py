"""One holder at a time for a scenario and profile; the kernel frees the lock of a dead holder."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from temper.errors import LockedError


@contextmanager
def held(path: Path, purpose: str) -> Iterator[None]:
    """Hold `path` with flock for the block; wait for another holder and say who it is.

    With WAIT=0 in the environment a held lock raises LockedError instead.
    """
    with _taken(path) as file:
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%H:%M:%S")}))
        file.flush()
        yield


def _taken(path: Path) -> TextIO:
    """Return the lock's file, locked; the one that stands at `path` now, for `make clean` deletes it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as closing:
            file = closing.enter_context(open(path, "a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _wait(file, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    closing.pop_all()
                    return file


def _wait(file: TextIO, path: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} ({holder['purpose']}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        who = "another process"
    if os.environ.get("WAIT") == "0":
        raise LockedError(f"{path} is held by {who}", "wait for it, or stop it")
    print(f"waiting for {who}, which holds {path}", file=sys.stderr, flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)
