"""Where each bucket's part of the files begins: behind the part of the bucket before, which may be at work elsewhere.

Processes of one machine take turns to reserve their places and then write at the same time. Workers of a cluster, which
share no memory, write parts that are put together at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILES = ("train", "eval", "checks", "duplicates", "conflicts")
_shared: Any = None  # (condition, next bucket and the sizes of FILES so far), before processes are forked
_folders: tuple[str, str] = ("", "")  # of the files, and of parts


def path(folder: str, kind: str, number: int) -> Path:
    """Return the file of a kind for a bucket."""
    return Path(folder) / f"{kind}-{number:05d}"


def begin(out: str, spool: str, shared: bool) -> None:
    """Set up the files; with `shared` for this process and those that are forked from it."""
    global _shared, _folders
    _folders = out, spool
    if shared:
        from multiprocessing import get_context

        context = get_context("fork")
        _shared = context.Condition(), context.Array("q", 1 + len(FILES), lock=False)
    else:
        _shared = None


def create() -> None:
    """Make the files, empty, for processes to write into."""
    for name in FILES if _shared else ():
        (Path(_folders[0]) / f"{name}.jsonl").write_bytes(b"")


@contextmanager
def turn(bucket: int) -> Iterator[None]:
    """Let the next bucket have its turn at the latest when the block ends, however it ends."""
    try:
        yield
    finally:
        if _shared:
            _reserve(bucket, {})


def _reserve(bucket: int, sizes: Mapping[str, int]) -> list[int]:
    """Wait for this bucket's turn, and return where its parts begin; nothing when it has had its turn."""
    condition, state = _shared
    with condition:
        while state[0] < bucket:
            condition.wait()
        if state[0] > bucket:
            return []
        begins = list(state[1:])
        for number, name in enumerate(FILES, 1):
            state[number] += sizes.get(name, 0)
        state[0] = bucket + 1
        condition.notify_all()
        return begins


def write(bucket: int, parts: Mapping[str, bytes | memoryview], folder: str = "") -> None:
    """Write a bucket's part of each file."""
    out, spool = _folders
    if not _shared:
        for name, data in parts.items():
            path(folder or spool, name, bucket).write_bytes(data)
        return
    begins = _reserve(bucket, {name: len(data) for name, data in parts.items()})
    for name, begin in zip(FILES, begins, strict=True):
        if left := memoryview(parts.get(name, b"")):
            with open(Path(out) / f"{name}.jsonl", "r+b", buffering=0) as file:
                while left:
                    written = os.pwrite(file.fileno(), left, begin)
                    left, begin = left[written:], begin + written


def together(buckets: int) -> None:
    """Put the parts together that workers of a cluster wrote."""
    if _shared:
        return
    out, spool = _folders
    for name in FILES:
        with open(Path(out) / f"{name}.jsonl", "wb") as target:
            for bucket in range(buckets):
                target.write(path(spool, name, bucket).read_bytes())
