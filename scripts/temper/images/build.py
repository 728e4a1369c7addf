"""Build an image: fetch its parts, unpack them into layers, compile, write, compare with the lock.

One layer for Debian, one for each big wheel, one for the rest: a torch upgrade moves torch's layer and no other.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from temper import digests, locking, stage
from temper.images import base, debian, fetch, layers, oci, parts, wheels
from temper.images.layers import Layer
from temper.images.oci import Image
from temper.images.parts import Part
from temper.paths import BUILD, ROOT

REVISION = 2  # raised when the same parts would give another layer
BIG = 20_000_000  # bytes of a wheel that gets a layer of its own
WHAT = {
    "temper-cpu": "LLaMA Factory, transformers and PyTorch for a CPU",
    "temper-cuda": "LLaMA Factory, transformers, PyTorch, bitsandbytes, DeepSpeed and Liger kernels for NVIDIA GPUs",
    "temper-serve": "A server for a CPU with the HTTP API, flags and variables of Hugging Face's TGI",
}
STORE = BUILD / "images"
BLOBS = STORE / "blobs"
SHIM = ROOT / "scripts/shims/torchaudio"  # LLaMA Factory imports torchaudio, of which a CPU image has no build
CODE = ROOT / "scripts/temper"


@dataclass(frozen=True)
class Group:
    """The parts of one layer."""

    name: str
    parts: tuple[Part, ...]
    shim: bool = False

    @property
    def key(self) -> str:
        """Stand for everything the layer's bytes follow from, but the base root."""
        files = [digests.read(path) for path in sorted(SHIM.glob("*.py"))] if self.shim else []
        return digests.of_value([REVISION, self.name, [part.sha256 for part in self.parts], files])


def build(image: str, base_image: str, say: Callable[[str], None]) -> Image:
    """Return the image, built from its parts; layers whose parts are unchanged are taken as they are."""
    with locking.held(STORE / ".lock", f"make image IMAGE={image}"):
        old = os.umask(0o022)
        try:
            if image == "temper-serve":
                return _serve(base_image, say)
            return _environment(image, base_image, say)
        finally:
            os.umask(old)


def _environment(image: str, base_image: str, say: Callable[[str], None]) -> Image:
    listed, started = fetch.fetch(image, say), time.monotonic()
    root = _root_layer(image, say)
    below = base.Base("", [root])
    if base_image:
        below = base.take(base_image, BLOBS, say)
        lacking = Group("debian", tuple(part for part in _debs(image) if part.name not in below.packages))
        below.layers.append(_layer(image, lacking, partial(_debian_on, image, below), say, below.digest))
    _root(root)
    fill = partial(_wheels, image, root)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        above = list(pool.map(lambda group: _layer(image, group, fill, say, root.digest), _groups(image, listed)))
    settings = {"Env": oci.environment({}), "Cmd": ["bash"], "Labels": oci.labels(image, WHAT[image])}
    return _done(oci.assemble(image, [*below.layers, *above], BLOBS, settings, below.config), started, say)


def _debs(image: str) -> tuple[Part, ...]:
    return tuple(part for part in parts.read(image) if part.kind == "deb")


def _root_layer(image: str, say: Callable[[str], None]) -> Layer:
    """Return the layer of Debian packages, complete: its Python compiles, on a base of one's own too."""
    return _layer(image, Group("debian", _debs(image)), partial(_debian, image), say)


def _done(image: Image, started: float, say: Callable[[str], None]) -> Image:
    size, seconds = stage.human(image.size), time.monotonic() - started
    say(f"image   {image.name} sha256:{image.config[:12]}  [{len(image.layers)} layers, {size}, {seconds:.0f} s]")
    return image


def _serve(base_image: str, say: Callable[[str], None]) -> Image:
    """Return temper-cpu with this repository's server on top: a layer that is written anew when the code changes."""
    below, started = _environment("temper-cpu", base_image, say), time.monotonic()
    fill = partial(_code, _root_layer("temper-cpu", say))
    layer = _layer("temper-serve", Group("temper", ()), fill, say, code_digest())
    settings = {
        "Env": oci.environment({"PORT": "80", "TEMPER_HOSTNAME": "0.0.0.0"}),
        "Entrypoint": ["python3", "-m", "temper.serve"],
        "Labels": oci.labels("temper-serve", WHAT["temper-serve"]),
    }
    return _done(oci.assemble("temper-serve", [*below.layers, layer], BLOBS, settings, {}), started, say)


def code_digest() -> str:
    """Stand for the bytes of this repository's package."""
    return digests.of_value([[str(path.relative_to(CODE)), digests.of(path)] for path in sorted(_files(CODE))])


def _files(folder: Path) -> list[Path]:
    """Return the files of a copy of this repository's package."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _code(root: Layer, group: Group, work: Path) -> None:
    shutil.copytree(CODE, work / wheels.SITE / "temper", ignore=shutil.ignore_patterns("__pycache__"))
    for path in _files(work):
        path.chmod(0o644)  # a checkout's modes follow the umask it was made with
    wheels.compile_all(_root(root), work, wheels.SITE)
    _plain_modes(work)


def _groups(image: str, listed: Sequence[Part]) -> list[Group]:
    """Return a group for each big wheel and source archive, and one for the rest, which comes last."""
    found = [part for part in listed if part.kind != "deb"]
    own = [part for part in found if part.kind == "sdist" or parts.place(image, part).stat().st_size >= BIG]
    rest = tuple(part for part in found if part not in own)
    return [*(Group(part.name, (part,)) for part in own), Group("python", rest, shim=image == "temper-cpu")]


def _layer(
    image: str, group: Group, fill: Callable[[Group, Path], None], say: Callable[[str], None], on: str = ""
) -> Layer:
    """Return a group's layer, from the store where it was written before; `on` is what it follows from besides."""
    note = STORE / "layers" / f"{digests.of_value([group.key, on])}.json"
    if note.is_file():
        layer = Layer(**json.loads(note.read_text(encoding="utf-8")))
        if (BLOBS / layer.digest).is_file() and (BLOBS / layer.digest).stat().st_size == layer.size:
            return layer
    started, work = time.monotonic(), STORE / f".work-{image}-{group.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    fill(group, work)
    layer = layers.write(group.name, work, BLOBS)
    shutil.rmtree(work)
    digests.write_atomic(note, json.dumps(asdict(layer)))
    size, seconds = stage.human(layer.size), time.monotonic() - started
    say(f"image   layer {group.name:<22} {layer.digest[:12]}  {size:>8}  {seconds:4.0f} s")
    return layer


def _debian(image: str, group: Group, work: Path) -> None:
    debian.unpack([parts.place(image, part) for part in group.parts], work)
    wheels.compile_all(work, work, "usr/lib/python3.11")


def _debian_on(image: str, below: base.Base, group: Group, work: Path) -> None:
    debian.unpack([parts.place(image, part) for part in group.parts], work)
    base.join(below, work)


def _root(layer: Layer) -> Path:
    """Return the unpacked Debian layer, whose Python compiles what comes on top."""
    folder = STORE / f"root-{layer.digest[:16]}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.unpack_archive(BLOBS / layer.digest, part, "tar")
        os.rename(part, folder)
    return folder


def _wheels(image: str, root_layer: Layer, group: Group, work: Path) -> None:
    root = _root(root_layer)
    for part in group.parts:
        path = parts.place(image, part)
        if part.kind == "sdist":
            setuptools = next(part for part in parts.read(image) if part.name == "setuptools")
            with tempfile.TemporaryDirectory(dir=STORE) as scratch:
                wheels.install(wheels.build(root, path, parts.place(image, setuptools), Path(scratch)), work)
        else:
            wheels.install(path, work)
    if group.shim:
        (work / wheels.SITE / SHIM.name).mkdir()
        for path in SHIM.glob("*.py"):
            (work / wheels.SITE / SHIM.name / path.name).write_bytes(path.read_bytes())
    wheels.compile_all(root, work, wheels.SITE)
    _plain_modes(work)


def _plain_modes(work: Path) -> None:
    """Give everything mode 755 or 644: installer clears the umask for a moment, which other threads write in."""
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
