"""A bill of materials (CycloneDX) for each image, made from its list of parts and checked against what is in it."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from temper import digests
from temper.errors import ResultError
from temper.images import build, debian, parts, pinned
from temper.images.oci import Image
from temper.images.parts import Part

METADATA = re.compile(r"usr/local/lib/python3\.11/dist-packages/[^/]+\.dist-info/METADATA")


def path(name: str) -> Path:
    """Return where an image's bill of materials lies."""
    return build.STORE / f"{name}.cdx.json"


def write(image: Image, name: str) -> Path:
    """Write the bill of materials; ResultError where it and the image's content disagree."""
    listed = parts.read(image.name)
    wanted = {(part.kind == "deb", part.name, part.version) for part in listed}
    if not _base(image) and (wrong := wanted ^ set(contents(image))):
        names = ", ".join(sorted(f"{name} {version}" for _, name, version in wrong))
        raise ResultError(
            f"{image.name} and {parts.list_file(image.name)} disagree: {names}", "delete build/images, then make image"
        )
    digests.write_atomic(path(name), bill(image.name, listed))
    return path(name)


def _base(image: Image) -> bool:
    """Say whether the image stands on somebody else's, whose packages no list of ours names."""
    return any(layer.name == "base" for layer in image.layers)


def bill(name: str, listed: list[Part]) -> str:
    """Return the CycloneDX 1.6 JSON of a list of parts: no times, no serial number, the same for the same parts."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    about = Component(
        name=name, type=ComponentType.CONTAINER, bom_ref=name, version=f"sha256:{pinned.parts_digest(name)}"
    )
    bom = Bom(components=[_component(part) for part in listed], metadata=BomMetaData(component=about))
    bom.register_dependency(about, bom.components)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return _without_the_moment(text)


def _component(part: Part) -> object:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if part.kind == "deb":
        url = PackageURL(
            "deb", "debian", part.name, part.version, {"arch": part.file.rsplit("_", 1)[1][:-4], "distro": "debian-12"}
        )
    else:
        url = PackageURL("pypi", None, part.name, part.version)
    return Component(
        name=part.name,
        version=part.version,
        type=ComponentType.LIBRARY,
        purl=url,
        bom_ref=f"{part.kind}:{part.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)],
    )


def _without_the_moment(text: str) -> str:
    """Drop the two fields that differ in every run."""
    import json

    bom = json.loads(text)
    bom.pop("serialNumber", None)
    bom["metadata"].pop("timestamp", None)
    return json.dumps(bom, indent=1, sort_keys=True) + "\n"


def contents(image: Image) -> Iterator[tuple[bool, str, str]]:
    """Yield (whether a Debian package, name, version) of what is installed in an image's layers."""
    for layer in image.layers:
        with tarfile.open(build.BLOBS / layer.digest, "r:") as archive:
            for member in archive:
                if member.name == debian.STATUS:
                    for name, version in debian.installed(archive.extractfile(member).read().decode()):  # type: ignore[union-attr]
                        yield True, name, version
                elif METADATA.fullmatch(member.name):
                    yield False, *_project(archive.extractfile(member).read().decode())  # type: ignore[union-attr]


def _project(text: str) -> tuple[str, str]:
    """Return the canonical name and the version that a METADATA file gives."""
    from email.parser import HeaderParser

    from packaging.utils import canonicalize_name

    head = HeaderParser().parsestr(text)
    return canonicalize_name(head["Name"]), head["Version"]
