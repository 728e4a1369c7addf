"""An image as a standard OCI layout that is a docker archive too: index.json and manifest.json over the same blobs.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from temper import __version__
from temper.images.layers import Layer, archive_to

EPOCH = "1970-01-01T00:00:00Z"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
# Nothing in a container looks for a hub or reports usage, whoever starts it.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "HOME": "/tmp", **OFFLINE}


@dataclass(frozen=True)
class Image:
    """An image in the blob store."""

    name: str
    layers: list[Layer]
    config: str  # digest of its configuration: the image's ID in Docker and podman
    manifest: str  # digest of its manifest: what a registry calls it

    @property
    def size(self) -> int:
        """Bytes of all layers, uncompressed."""
        return sum(layer.size for layer in self.layers)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _blob(content: bytes, blobs: Path) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return digest


def assemble(name: str, layers: Sequence[Layer], blobs: Path, settings: dict[str, Any], below: dict[str, Any]) -> Image:
    """Write configuration and manifest; `settings` are Entrypoint, Env and so on, `below` a base's configuration."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {**below.get("config", {}), **settings},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
        "history": [{"created": EPOCH, "created_by": f"temper: {layer.name}"} for layer in layers],
    }
    found = _blob(_json(config), blobs)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": f"sha256:{found}", "size": (blobs / found).stat().st_size},
        "layers": [{"mediaType": LAYER, "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in layers],
    }
    return Image(name, list(layers), found, _blob(_json(manifest), blobs))


def environment(more: dict[str, str]) -> list[str]:
    """Return an image's variables as its configuration has them."""
    return [f"{key}={value}" for key, value in {**ENVIRONMENT, **more}.items()]


def labels(name: str, what: str) -> dict[str, str]:
    """Return the standard annotations of an image."""
    return {
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.description": what,
        "org.opencontainers.image.version": __version__,
    }


def _index(image: Image, blobs: Path, tag: str) -> bytes:
    reference = {
        "mediaType": MANIFEST,
        "digest": f"sha256:{image.manifest}",
        "size": (blobs / image.manifest).stat().st_size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    return _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [reference]})


def stream(image: Image, blobs: Path, tags: Sequence[str], out: IO[bytes]) -> None:
    """Write the image to `out` as a tar that Docker, podman and skopeo read, under all its names."""
    named = [f"blobs/sha256/{layer.digest}" for layer in image.layers]
    archive = [{"Config": f"blobs/sha256/{image.config}", "RepoTags": list(tags), "Layers": named}]
    small = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _index(image, blobs, tags[0]),
        "manifest.json": _json(archive),
    }
    with archive_to(out) as tar:
        for name, content in small.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for digest in dict.fromkeys([image.config, image.manifest, *(layer.digest for layer in image.layers)]):
            info = tarfile.TarInfo(f"blobs/sha256/{digest}")
            info.size = (blobs / digest).stat().st_size
            with open(blobs / digest, "rb") as file:
                tar.addfile(info, file)


def link(source: Path, to: Path) -> None:
    """Make `to` a hard link of a file, or a copy where the two file systems have none in common."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def write_layout(image: Image, blobs: Path, folder: Path, tag: str) -> None:
    """Make `folder` an OCI layout of this one image, its blobs hard links where that can be."""
    into = folder / "blobs" / "sha256"
    into.mkdir(parents=True, exist_ok=True)
    for digest in [image.config, image.manifest, *(layer.digest for layer in image.layers)]:
        if not (into / digest).exists():
            link(blobs / digest, into / digest)
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(_index(image, blobs, tag))
