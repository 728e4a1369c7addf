"""Choose an image's parts anew: what `make lock` does after the Python packages are resolved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from temper import digests
from temper.errors import MachineError
from temper.images import fetch, nix_store, parts
from temper.images.parts import Part

DEBIAN = parts.LOCKS / "debian.in"
# Debian 12's Python, for the markers in the lock.
TARGET = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "implementation_version": "3.11.2",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
    "extra": "",
}


def resolve(image: str, say: Callable[[str], None]) -> None:
    """Write the list of an image's parts: the newest Debian 12 packages, and the wheels of its Python lock."""
    group = parts.LISTS[image]
    before = set(parts.read(image)) if parts.list_file(image).exists() else set()
    found = [*_debs(image, group), *_wheels(image, group)]
    parts.write(image, found)
    if image == parts.NIX:
        nix_store.record_busybox()
    for part in sorted(before ^ set(found), key=str):
        say(f"{image}  {'was' if part in before else 'now'} {part.kind} {part.name} {part.version}")


def _wanted(group: str) -> list[str]:
    """Return the packages that debian.in names for an image: those of every image and its own."""
    lines = [line.partition("#")[0].split() for line in DEBIAN.read_text(encoding="utf-8").splitlines()]
    heads = (f"{group}:", *(["all:"] if group in parts.IMAGES.values() else []))
    return [name for line in lines if line and line[0] in heads for name in line[1:]]


def _debs(image: str, group: str) -> Iterator[Part]:
    """Resolve and download Debian packages with all they depend on."""
    fetch.apt("update")
    listed = fetch.apt("install", "-y", "--no-install-recommends", "--print-uris", *_wanted(group))
    files = re.findall(r"^'[^']+' (\S+) \d+", listed, re.M)
    into = parts.folder(image) / "debs"
    named = [file.removesuffix(".deb").rsplit("_", 1)[0].replace("_", "=", 1).replace("%3a", ":") for file in files]
    fetch.download_debs(named, into)
    for file, name in zip(files, named, strict=True):
        package, _, version = name.partition("=")
        yield Part("deb", package, version, file, digests.of(into / file))


def _locked(group: str) -> list[str]:
    """Return the lock's requirements that hold in the image, with their hashes and without their markers."""
    from packaging.requirements import Requirement

    text = (parts.LOCKS / f"{group}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        named, *hashes = re.split(r"\s+--hash=", line)
        requirement = Requirement(named)
        if requirement.marker is None or requirement.marker.evaluate(TARGET):
            found.append(
                " ".join([f"{requirement.name}{requirement.specifier}", *(f"--hash={value}" for value in hashes)])
            )
    return found


def _wheels(image: str, group: str) -> Iterator[Part]:
    from packaging.utils import canonicalize_name

    lines, into = _locked(group), parts.folder(image) / "wheels"
    fetch.download_wheels(lines, into)
    for line in lines:
        name, version = line.split()[0].split("==")
        name, hashes = canonicalize_name(name), set(re.findall(r"sha256:(\w+)", line))
        pattern = re.compile(rf"{re.escape(name)}-{re.escape(version)}(-.*\.whl|\.tar\.gz)")
        named = [path for path in into.iterdir() if pattern.fullmatch(re.sub(r"^[^-]+", _canonical, path.name))]
        brought = [path for path in named if digests.of(path) in hashes]
        if not brought:
            raise MachineError(f"pip brought no file of {name} {version} that {group}.txt knows", "run: make lock")
        kind = "wheel" if brought[0].suffix == ".whl" else "sdist"
        yield Part(kind, name, version, brought[0].name, digests.of(brought[0]))


def _canonical(match: re.Match[str]) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(match[0])
