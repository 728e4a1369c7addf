"""One's own base image under ours: its layers stay as they are, and only the Debian packages it lacks are added."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.errors import ConfigError, MachineError, ResultError
from temper.images import debian
from temper.images.layers import BLOCK, Layer

LOOPBACK = re.compile(r"docker://(localhost|127\.0\.0\.1|\[::1\])[:/]")


@dataclass(frozen=True)
class Base:
    """An image that ours is put on."""

    digest: str = ""
    layers: list[Layer] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    status: str = ""  # dpkg's database

    @property
    def packages(self) -> set[str]:
        """Names of the Debian packages it has."""
        return {name for name, _ in debian.installed(self.status)}


NONE = Base()


def take(reference: str, blobs: Path, say: Callable[[str], None]) -> Base:
    """Bring REGISTRY/NAME@sha256:… here with skopeo and return it; it must be a Debian 12 of this platform.

    Raises ConfigError for a reference without a digest or another system, MachineError when it cannot be had.
    """
    if not re.search(r"@sha256:[0-9a-f]{64}$", reference):
        raise ConfigError(f"BASE_IMAGE={reference} names no digest", "write NAME@sha256:…, see: skopeo inspect")
    if not shutil.which("skopeo"):
        raise MachineError("there is no skopeo, which fetches BASE_IMAGE", "apt-get install skopeo")
    source = reference if re.match(r"[a-z-]+:/", reference) else f"docker://{reference}"
    say(f"image   fetches the base {reference}")
    with tempfile.TemporaryDirectory(dir=blobs.parent if blobs.parent.is_dir() else None) as scratch:
        insecure = ["--src-tls-verify=false"] if LOOPBACK.match(source) else []
        words = ["skopeo", "copy", "--quiet", "--override-os=linux", "--override-arch=amd64", *insecure, source]
        done = subprocess.run([*words, f"dir:{scratch}"], capture_output=True, text=True)
        if done.returncode:
            raise MachineError(f"skopeo could not fetch {reference}: {done.stderr.strip()[-300:]}", "see: skopeo login")
        return _read(Path(scratch), reference, blobs)


def _read(folder: Path, reference: str, blobs: Path) -> Base:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    config = json.loads((folder / manifest["config"]["digest"].partition(":")[2]).read_text(encoding="utf-8"))
    found = []
    for described, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        found.append(_layer(folder / described["digest"].partition(":")[2], diff_id.partition(":")[2], blobs))
    texts = _texts([blobs / layer.digest for layer in found])
    release, status = texts.get("os-release", ""), texts.get("status", "")
    if not re.search(r'^VERSION_ID="?12"?$', release, re.M) or "ID=debian" not in release:
        raise ConfigError(
            f"BASE_IMAGE={reference} is no Debian 12", "take one of Debian 12 (bookworm), for linux/amd64"
        )
    kept = {key: value for key, value in config.get("config", {}).items() if key in ("Labels", "Volumes", "OnBuild")}
    return Base(reference.rpartition(":")[2], found, {"config": kept}, status)


def _layer(source: Path, digest: str, blobs: Path) -> Layer:
    """Keep a layer without compression; its digest must be the one that the configuration names."""
    blobs.mkdir(parents=True, exist_ok=True)
    part, found, size = blobs / f".base.{os.getpid()}", hashlib.sha256(), 0
    with open(source, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(source) if packed else open(source, "rb") as file, open(part, "wb") as out:
        while block := file.read(BLOCK):
            found.update(block)
            size += out.write(block)
    if found.hexdigest() != digest:
        part.unlink()
        raise ResultError(
            f"a layer of the base has digest {found.hexdigest()[:12]}, expected {digest[:12]}", "fetch it again"
        )
    os.replace(part, blobs / digest)
    return Layer("base", digest, size, "")


def _texts(found: list[Path]) -> dict[str, str]:
    """Return what the topmost layer says that holds os-release or dpkg's database."""
    texts: dict[str, str] = {}
    for blob in found:
        with tarfile.open(blob, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and name in ("usr/lib/os-release", debian.STATUS):
                    texts[Path(name).name] = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
    return texts


def join(below: Base, layer: Path) -> None:
    """Leave the base's users and links alone, and add our packages to its database."""
    for name in (*debian.USERS, *debian.MERGED, "etc/mtab"):
        (layer / name).unlink(missing_ok=True)
    status = layer / debian.STATUS
    status.write_text(f"{below.status.rstrip()}\n\n{status.read_text(encoding='utf-8')}", encoding="utf-8")
