"""What an image is made of: docker/locks/NAME.parts, a line per Debian package, wheel or source archive.

    deb   NAME VERSION FILE SHA256
    wheel NAME VERSION FILE SHA256
    sdist NAME VERSION FILE SHA256

A part is known by its sha256; FILE is what its publisher calls it. `make lock` writes the lists, nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from temper import digests
from temper.errors import ConfigError, ResultError
from temper.paths import BUILD

LOCKS = Path("docker/locks")
# Each image's hash-locked Python packages; the group of docker/locks/debian.in has the same name.
IMAGES = {"temper-cpu": "cpu", "temper-cuda": "cuda"}
NIX = "temper-nix"  # no image: what Nix makes images with
LISTS = {**IMAGES, NIX: "nix"}
PLATFORM = "linux/amd64"


@dataclass(frozen=True)
class Part:
    """A file that an image is made of."""

    kind: str  # deb, wheel or sdist
    name: str
    version: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind:<5} {self.name} {self.version} {self.file} {self.sha256}"


def known(image: str) -> str:
    """Return the image's name; ConfigError for one that is not built here."""
    if image not in IMAGES:
        raise ConfigError(f"there is no image {image}", f"there are: {', '.join(IMAGES)}, temper-serve")
    return image


def list_file(image: str) -> Path:
    """Return the file that lists an image's parts."""
    return LOCKS / f"{image}.parts"


def read(image: str) -> list[Part]:
    """Return the parts of one of LISTS."""
    lines = list_file(image).read_text(encoding="utf-8").splitlines()
    return [Part(*line.split()) for line in lines if line and not line.startswith("#")]


def write(image: str, found: Iterable[Part]) -> None:
    """Write an image's list, sorted."""
    lines = sorted({str(part) for part in found})
    head = f"# The parts of the image {image}, by make lock. Kind, name, version, file, sha256 of the file.\n"
    digests.write_atomic(list_file(image), head + "\n".join(lines) + "\n")


def folder(image: str) -> Path:
    """Return where an image's parts are kept: one folder, which can be carried to another machine."""
    return BUILD / "cache" / image


def place(image: str, part: Part) -> Path:
    """Return where a part is kept."""
    return folder(image) / ("debs" if part.kind == "deb" else "wheels") / part.file


def missing(image: str, wanted: list[Part]) -> list[Part]:
    """Return the parts that are not there yet; ResultError for one with other bytes than recorded."""
    found = []
    for part in wanted:
        path = place(image, part)
        if not path.is_file():
            found.append(part)
        elif (got := digests.of(path)) != part.sha256:
            raise ResultError(
                f"{path} has digest {got[:12]}, expected {part.sha256[:12]}", "delete it, then: make image"
            )
    return found
