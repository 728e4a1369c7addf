"""The lock of images, docker/images.lock: what each must come out as, and the digests of the served ones.

docker/locks/IMAGE.prints holds two bytes for each file of each layer, so that a difference can be named.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from temper import digests
from temper.errors import ResultError
from temper.images import layers, parts
from temper.images.layers import Layer
from temper.images.oci import Image

LOCK = Path("docker/images.lock")


def read() -> dict[str, Any]:
    """Return the whole lock."""
    return dict(json.loads(LOCK.read_text(encoding="utf-8"))) if LOCK.exists() else {}


def base_image() -> str:
    """Return the base that the user's policy requires: $BASE_IMAGE, "" for ours."""
    return os.environ.get("BASE_IMAGE", "").strip()


def key(image: str) -> str:
    """Return an image's name in the lock."""
    return f"{image} on {base_image()}" if base_image() else image


def digest(image: str) -> str:
    """Return what the lock says the image is, as sha256:…; "" when it says nothing."""
    return str(read().get(key(image), {}).get("image", ""))


def write(name: str, entry: dict[str, Any]) -> None:
    """Record one image."""
    text = json.dumps({**read(), name: entry}, indent=2, sort_keys=True)
    digests.write_atomic(LOCK, text + "\n")


def parts_digest(image: str) -> str:
    """Return the digest of an image's list of parts."""
    return digests.read(parts.list_file(image))


def record(image: Image, key: str) -> None:
    """Make what was built the wanted one."""
    entry = {
        "image": f"sha256:{image.config}",
        "manifest": f"sha256:{image.manifest}",
        "parts": parts_digest(image.name),
        "platform": parts.PLATFORM,
        "size": image.size,
        "layers": [
            {"name": layer.name, "diff_id": f"sha256:{layer.digest}", "size": layer.size} for layer in image.layers
        ],
    }
    write(key, entry)
    prints = [f"{layer.digest[:16]} {layer.prints}\n" for layer in image.layers]
    digests.write_atomic(_prints_file(key), "".join(prints))


def _prints_file(key: str) -> Path:
    return parts.LOCKS / f"{key.partition(' ')[0]}.prints"


def owed(image: str) -> bool:
    """Say whether an image's parts have changed since it was last built and recorded."""
    return bool(read().get(image, {}).get("parts") != parts_digest(image))


def check(image: Image, key: str, blobs: Path) -> None:
    """Raise ResultError when an image is not the recorded one: which layer, and the first file that differs."""
    known = read()[key]
    if f"sha256:{image.config}" == known["image"]:
        return
    found = [_difference(number, wanted, image, key, blobs) for number, wanted in enumerate(known["layers"])]
    names = {wanted["name"] for wanted in known["layers"]}
    found += [f"layer {layer.name} is new" for layer in image.layers if layer.name not in names]
    raise ResultError(
        f"{key} is not the image of {LOCK}: {'; '.join(filter(None, found)) or 'its configuration differs'}",
        "if the change is meant, record it: make image PIN=1; if not, see docs/containers.md",
    )


def _difference(number: int, wanted: dict[str, Any], image: Image, key: str, blobs: Path) -> str:
    """Say how a layer differs from the recorded one; "" where it does not."""
    digest = wanted["diff_id"].removeprefix("sha256:")
    same = [layer for layer in image.layers if layer.name == wanted["name"] != "base"] or image.layers[number:][:1]
    if not same:
        return f"layer {wanted['name']} is missing"
    if same[0].digest == digest:
        return ""
    prints = dict(line.split(" ", 1) for line in _prints_file(key).read_text(encoding="ascii").splitlines())
    first = _first(same[0], prints.get(digest[:16], ""), blobs)
    return f"layer {wanted['name']} is {same[0].digest[:12]}, expected {digest[:12]}{first}"


def _first(layer: Layer, recorded: str, blobs: Path) -> str:
    """Name the first entry of a layer that is not as recorded."""
    wanted = base64.b64decode(recorded)
    name = ""
    for number, (info, fingerprint) in enumerate(layers.listed(blobs / layer.digest)):
        name = info.name
        if fingerprint != wanted[2 * number : 2 * number + 2]:
            return f", first differing file /{name}"
    return f", it ends after /{name}" if wanted else ""
