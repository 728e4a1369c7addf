"""Layers as sorted tar files: owner 0, time 0, nothing of the machine that wrote them.

The digest of the uncompressed tar is the layer's DiffID, the anchor of the image: compressed ones change with the
compressor's version.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """A layer in the blob store."""

    name: str
    digest: str  # sha256 of the tar, 64 hex digits
    size: int  # bytes
    prints: str  # two bytes of digest for each entry in order, base64: names the first one that differs


class _Hashed:
    """A file that knows the digest of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write and count."""
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


class _Reader:
    """A file that knows the digest of what was read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and remember."""
        data = self.file.read(size)
        self.digest.update(data)
        return data


def entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the image, path) of everything below root, sorted as bytes."""
    found = [Path(folder, name) for folder, folders, files in os.walk(root) for name in (*folders, *files)]
    yield from sorted(((str(path.relative_to(root)), path) for path in found), key=lambda pair: os.fsencode(pair[0]))


def header(name: str, path: Path) -> tarfile.TarInfo:
    """Return the tar header of a file, folder or link: modes as they are, owner and time 0."""
    info, found = tarfile.TarInfo(name), path.lstat()
    info.mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
    elif stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    else:
        info.size = found.st_size
    return info


def fingerprint(info: tarfile.TarInfo, content: bytes) -> bytes:
    """Return two bytes that stand for an entry: its name, kind, mode, link and the digest of its content."""
    return hashlib.sha256(f"{info.name}\0{info.type!r}{info.mode:o}\0{info.linkname}".encode() + content).digest()[:2]


def archive_to(out: Any) -> tarfile.TarFile:
    """Return a tar archive that is written to `out` as it grows; large blocks, for files of a gigabyte."""
    more: dict[str, Any] = {"copybufsize": BLOCK}
    return tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK, **more)


def write(name: str, root: Path, blobs: Path) -> Layer:
    """Write everything below `root` as a layer into the folder `blobs`."""
    blobs.mkdir(parents=True, exist_ok=True)
    part, prints = blobs / f".{name}.{os.getpid()}", bytearray()
    with open(part, "wb", buffering=BLOCK) as file:
        out = _Hashed(file)
        with archive_to(out) as archive:
            for named, path in entries(root):
                prints += _add(archive, header(named, path), path)
    digest = out.digest.hexdigest()
    os.replace(part, blobs / digest)
    return Layer(name, digest, out.size, base64.b64encode(bytes(prints)).decode())


def _add(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    if not info.isreg():
        archive.addfile(info)
        return fingerprint(info, b"")
    with open(path, "rb") as file:
        reader = _Reader(file)
        archive.addfile(info, reader)
    return fingerprint(info, reader.digest.digest())


def listed(blob: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield each entry of a layer with its fingerprint."""
    with tarfile.open(blob, "r:") as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            yield info, fingerprint(info, hashlib.sha256(content.read()).digest() if content else b"")
