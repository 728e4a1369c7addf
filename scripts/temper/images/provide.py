"""Bring an image into an engine: as it is there, or built, compared with the lock, loaded and compared again."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
from collections.abc import Callable

from temper import containers, stage
from temper.containers import Engine
from temper.errors import MachineError, ResultError
from temper.images import build, oci, pinned
from temper.images.oci import Image

Say = Callable[[str], None]


def make(image: str, pin: bool, say: Say) -> Image:
    """Build an image, compare it with the lock or with `pin` record it there, and write its bill of materials."""
    if not importlib.util.find_spec("installer"):
        raise MachineError("this environment has no tools to build images", f"run: make image IMAGE={image}")
    from temper.images import sbom

    made = build.build(image, pinned.base_image(), say)
    if image == "temper-serve":  # holds this repository's code: its digest moves with every commit
        made_from = Image("temper-cpu", made.layers[:-1], "", "")
        say(f"image   temper-serve is temper-cpu and a layer of code; {sbom.write(made_from, image)}")
        return made
    if pin or not pinned.digest(image):
        pinned.record(made, pinned.key(image))
        say(f"image   {pinned.key(image)} is recorded in {pinned.LOCK}")
    pinned.check(made, pinned.key(image), build.BLOBS)
    say(f"image   {image} is the one in {pinned.LOCK}; bill of materials: {sbom.write(made, image)}")
    return made


def ensure(engine: Engine, image: str, say: Say) -> str:
    """Return the reference under which the engine has the wanted image; build and load it when it has not."""
    return _there(engine, image) or load(engine, make(image, False, say), say)


def load(engine: Engine, image: Image, say: Say) -> str:
    """Load a built image and return its reference; ResultError when the engine then holds other layers."""
    tag, wanted = _tag(image.name, image.config), [layer.digest for layer in image.layers]
    if containers.digests_of(engine, tag) != wanted:
        say(f"image   loads {image.name} into {engine.name} ({stage.human(image.size)})")
        _stream(engine, image, tag)
    if (got := containers.digests_of(engine, tag)) != wanted:
        raise ResultError(
            f"{engine.name} holds other layers of {tag} than were built: {got}", f"{engine.name} rmi {tag}"
        )
    return tag


def _tag(image: str, config: str) -> str:
    """Return an image's name in an engine; a copy of the server is known by its code and what it stands on."""
    if image == "temper-serve":
        config = build.code_digest()[:12] + pinned.digest("temper-cpu")[7:13]
    return f"localhost/{image}:{config[:18]}"


def _there(engine: Engine, image: str) -> str:
    """Return the reference of the wanted image where the engine has it, "" where it has not or the lock has none."""
    known = pinned.read().get(pinned.key("temper-cpu" if image == "temper-serve" else image))
    if not known:
        return ""
    wanted = [layer["diff_id"].removeprefix("sha256:") for layer in known["layers"]]
    tag = _tag(image, known["image"].removeprefix("sha256:"))
    return tag if (containers.digests_of(engine, tag) or [])[: len(wanted)] == wanted else ""


def _stream(engine: Engine, image: Image, tag: str) -> None:
    argv = [engine.name, "load", "--quiet"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as loading:
        assert loading.stdin and loading.stdout
        with contextlib.suppress(BrokenPipeError):  # the engine says below why it stopped
            oci.stream(image, build.BLOBS, [tag, f"localhost/{image.name}:latest"], loading.stdin)
            loading.stdin.close()
        said = loading.stdout.read().decode("utf-8", "replace").strip()
    if loading.returncode:
        raise MachineError(f"{engine.name} load failed: {said[-300:]}", f"free space where {engine.name} keeps images")
