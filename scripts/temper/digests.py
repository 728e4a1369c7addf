"""Digests of files, remembered by stat so that unchanged files are not read again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from temper.paths import BUILD

SETTLED_NS = 20_000_000  # a clock tick is at most 10 ms: two writes within one leave equal stamps
REMEMBERED = 20_000  # files; the oldest are forgotten

_cache: dict[str, list[Any]] | None = None


def _cache_file() -> Path:
    return BUILD / ".cache" / "digests.json"


def stamp(path: Path | str) -> str:
    """Return "ctime size inode" of `path`; ctime cannot be set back, so replaced bytes never look unchanged."""
    info = os.stat(path)
    return f"{info.st_ctime_ns // 10**9}.{info.st_ctime_ns % 10**9:09d} {info.st_size} {info.st_ino}"


def of_bytes(content: bytes) -> str:
    """Return the sha256 of `content` as 64 hex digits."""
    import hashlib  # 3 ms, which a stage that finds all digests remembered need not spend

    return hashlib.sha256(content).hexdigest()


def read(path: Path | str) -> str:
    """Return the sha256 of the file's bytes, read now."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of(path: Path | str) -> str:
    """Return the sha256 of the file, from the cache where its stamp is the recorded one.

    Entries are by device and inode: a folder that was published by renaming is not read again.
    """
    info = os.stat(path)
    cache, key, now = _load(), f"{info.st_dev}:{info.st_ino}", stamp(path)
    entry = cache.pop(key, None)
    if entry and entry[0] == now:
        cache[key] = entry
        return str(entry[1])
    digest = read(path)
    if stamp(path) == now and time.time_ns() - info.st_ctime_ns > SETTLED_NS:
        cache[key] = [now, digest]
        _save(cache)
    return digest


def describe(path: Path | str) -> dict[str, Any]:
    """Return {"sha256", "size" in bytes} of a file."""
    return {"sha256": of(path), "size": os.stat(path).st_size}


def of_value(value: Any) -> str:
    """Return the sha256 of a JSON value, independent of key order."""
    return of_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, so that a reader or a crash never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _load() -> dict[str, list[Any]]:
    global _cache
    if _cache is None:
        try:
            _cache = json.loads(_cache_file().read_text())
        except (OSError, ValueError):
            _cache = {}
    return _cache


def _save(cache: dict[str, list[Any]]) -> None:
    for key in list(cache)[: max(0, len(cache) - REMEMBERED)]:
        del cache[key]
    write_atomic(_cache_file(), json.dumps(cache))
