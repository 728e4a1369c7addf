"""The served images that others make, TGI and vLLM: pinned by digest in docker/images.lock, pulled by it.

`python -m temper.images.pin tgi 3.3.7` looks a tag's digest up with skopeo and records it; without a tag the recorded
one is looked up again, without a name every image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper import digests, errors, paths
from temper.containers import Engine
from temper.errors import MachineError, ResultError, UsageError
from temper.images import pinned

Say = Callable[[str], None]
REGISTRIES = {"tgi": "ghcr.io", "vllm": "docker.io"}
COMPOSE = Path("docker/compose.yaml")


def entry(image: str) -> dict[str, Any]:
    """Return what the lock says: name, tag, digest and note; ResultError when it says nothing."""
    found = pinned.read().get(image)
    if not found:
        raise ResultError(f"{pinned.LOCK} has no {image}", f"make pin ENGINE={image} TAG=…")
    return dict(found)


def registry(image: str) -> str:
    """Return where an image is pulled from: $TEMPER_REGISTRY, with a path where a mirror has one, or its maker's."""
    return os.environ.get("TEMPER_REGISTRY", "").strip().rstrip("/") or REGISTRIES[image]


def reference(image: str) -> str:
    """Return an image's full name, by digest."""
    known = entry(image)
    return f"{registry(image)}/{known['name']}@{known['digest']}"


def ensure(engine: Engine, image: str, say: Say) -> str:
    """Return the reference of a pinned image that the engine has; pull it by digest when it has not.

    Raises MachineError with the ways to get it when it cannot be pulled.
    """
    wanted = reference(image)
    if not engine.run("image", "inspect", "--format", "{{.Id}}", wanted, check=False).strip():
        say(f"image   {engine.name} pulls {wanted} ({entry(image)['tag']})")
        insecure = ["--tls-verify=false"] if engine.name == "podman" and _loopback(wanted) else []
        try:
            engine.run("pull", "--quiet", *insecure, wanted)
        except MachineError as error:
            raise MachineError(
                str(error).rpartition("; ")[0],
                f"pull it by hand: {engine.name} pull {wanted}; or TEMPER_REGISTRY=your.mirror; or install a bundle",
            ) from None
    return wanted


def _loopback(reference: str) -> bool:
    return re.match(r"(localhost|127\.[\d.]+|\[::1\])(:\d+)?/", reference) is not None


def look_up(name: str) -> str:
    """Return the digest of REGISTRY/NAME:TAG, of the index where it is one; MachineError when it has no linux/amd64."""
    if not shutil.which("skopeo"):
        raise MachineError("skopeo is not installed", "apt-get install skopeo")
    raw = _skopeo(name, "--raw")
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    found = json.loads(_skopeo(f"{name.rpartition(':')[0]}@{digest}", "--no-tags"))
    if (found.get("Os"), found.get("Architecture")) != ("linux", "amd64"):
        raise MachineError(
            f"{name} is for {found.get('Os')}/{found.get('Architecture')}", "choose a tag for linux/amd64"
        )
    return digest


def _skopeo(name: str, *options: str) -> bytes:
    insecure = ["--tls-verify=false"] if _loopback(name) else []
    words = ["skopeo", "--override-os=linux", "--override-arch=amd64", "inspect", *insecure, *options]
    done = subprocess.run([*words, f"docker://{name}"], capture_output=True)
    if done.returncode:
        said = (done.stderr.decode("utf-8", "replace").strip() or "no message").splitlines()[-1]
        said = said.partition(' msg="')[2].rstrip('"').replace('\\"', '"') or said
        raise MachineError(
            f"{name} cannot be looked up: {said}", "check the tag and the network, or TEMPER_REGISTRY=your.mirror"
        )
    return done.stdout


def pin(image: str, tag: str, say: Say) -> None:
    """Look a tag up, record its digest, and say what moved."""
    if image not in REGISTRIES:
        raise UsageError(f"{image} is none of the served images", f"write one of {', '.join(REGISTRIES)}")
    old = entry(image)
    tag = tag or old["tag"]
    digest = look_up(f"{registry(image)}/{old['name']}:{tag}")
    if (old["tag"], old["digest"]) == (tag, digest):
        say(f"pin     {image} {tag} is {digest}, as recorded")
    else:
        say(f"pin     {image} {old['tag']} {old['digest']} -> {tag} {digest}")
    new = {"name": old["name"], "tag": tag, "digest": digest, "note": "looked up in the registry by make pin"}
    pinned.write(image, new)
    _follow(old["name"], digest)


def _follow(name: str, digest: str) -> None:
    """Write the digest where the lock cannot be read: the compose file."""
    if COMPOSE.is_file():
        text = COMPOSE.read_text(encoding="utf-8")
        digests.write_atomic(COMPOSE, re.sub(rf"({re.escape(name)})@sha256:\w+", rf"\1@{digest}", text))


def run(argv: list[str]) -> int:
    """Pin what the command line names: [IMAGE [TAG]]."""
    from temper.__main__ import say

    if len(argv) > 2:
        raise UsageError("too many words", "write: python -m temper.images.pin tgi 3.3.7")
    paths.enter_root()
    image, tag = [*argv, "", ""][:2]
    if tag and not image:
        raise UsageError("a tag without an image", "write: make pin ENGINE=tgi TAG=3.3.7")
    for each in [image] if image else REGISTRIES:
        pin(each, tag, say)
    return 0


if __name__ == "__main__":
    errors.main(lambda: run(sys.argv[1:]))
