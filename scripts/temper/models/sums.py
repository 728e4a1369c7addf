"""The recorded sha256 of a base model's files as fetched, in the format of `sha256sum`."""

from __future__ import annotations

import re
from pathlib import Path

from temper import digests
from temper.errors import ModelError

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def read(known: Path) -> dict[str, str]:
    """Return file name to sha256, empty when `known` is absent; ModelError names a line that is not sha256sum's."""
    if not known.is_file():
        return {}
    found = {}
    for number, line in enumerate(known.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ModelError(f"{known}:{number}: not a line of sha256sum", "restore the file from version control")
        found[match[2]] = match[1]
    if not found:
        raise ModelError(f"{known} lists no files", "restore it from version control")
    return found


def check(files: dict[str, Path], expected: dict[str, str], known: Path, fetched: Path) -> dict[str, str]:
    """Return the sha256 of each file, all as recorded where there is a record.

    `fetched` is where the files came from on this machine, for the message. Raises ModelError that names each file
    which differs from the record, and each that only the record has.
    """
    if missing := sorted(set(expected) - set(files)):
        raise ModelError(
            f"{fetched} has no {', '.join(missing)}, which {known} lists",
            f"complete it; if the model is meant to be another one now, delete {known}",
        )
    got = {name: digests.of(path) for name, path in sorted(files.items())}
    wrong = [
        f"{name} has digest {got[name][:12]}, expected {expected[name][:12]} ({known})"
        for name in got
        if expected.get(name, got[name]) != got[name]
    ]
    if wrong:
        raise ModelError(
            "; ".join(wrong),
            f"delete the file from {fetched} and run it again; if its publisher "
            f"changed it and you trust the new bytes, delete {known} too",
        )
    return got


def record(known: Path, source: str, got: dict[str, str]) -> None:
    """Write the digests of a first fetch, to be kept in version control and checked ever after."""
    head = f"# files of {source}; recorded when first fetched, checked ever after\n"
    digests.write_atomic(known, head + "".join(f"{got[name]}  {name}\n" for name in sorted(got)))
