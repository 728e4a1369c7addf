"""Put what Nix builds from into its store: each file by its sha256, which is also its name there.

A derivation in nix/ names the sha256 that a lock has; Nix finds the file, and nothing is fetched in a build.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from temper import digests
from temper.errors import MachineError, ResultError
from temper.images import build, fetch, oci, parts, pinned, provide
from temper.paths import BUILD, CONFIGS

Say = Callable[[str], None]
BUSYBOX = parts.LOCKS / "busybox.json"


def nar(program: Path) -> str:
    """Return the sha256 of a folder that holds this one program as Nix archives it, which is how a store knows it.

    https://nix.dev/manual/nix/latest/protocols/nix-archive
    """
    file = (b"(", b"type", b"regular", b"executable", b"", b"contents", program.read_bytes(), b")")
    entry = (b"entry", b"(", b"name", program.name.encode(), b"node", *file, b")")
    words = (b"nix-archive-1", b"(", b"type", b"directory", *entry, b")")
    packed = (struct.pack("<Q", len(word)) + word + bytes(-len(word) % 8) for word in words)
    return hashlib.sha256(b"".join(packed)).hexdigest()


def _busybox(into: Path) -> Path:
    """Take the program out of its Debian package."""
    from debian.debfile import DebFile

    (package,) = (part for part in parts.read(parts.NIX) if part.kind == "deb")
    path = into / "busybox" / "busybox"  # it looks at its own name, which in the store itself begins with a hash
    path.parent.mkdir()
    with DebFile(str(parts.place(parts.NIX, package))) as opened:
        path.write_bytes(opened.data.get_content("bin/busybox"))
    path.chmod(0o755)
    return path


def record_busybox() -> None:
    """Write the digest under which Nix knows the program."""
    with tempfile.TemporaryDirectory() as scratch:
        digests.write_atomic(BUSYBOX, json.dumps({"nar": nar(_busybox(Path(scratch)))}) + "\n")


def tools(say: Say) -> None:
    """Put busybox, the first program of every build, into the store."""
    fetch.fetch(parts.NIX, say)
    with tempfile.TemporaryDirectory() as scratch:
        busybox = _busybox(Path(scratch))
        if (got := nar(busybox)) != (wanted := json.loads(BUSYBOX.read_text())["nar"]):
            raise ResultError(f"busybox has digest {got[:12]}, expected {wanted[:12]} ({BUSYBOX})", "run: make lock")
        _nix_store("--add-fixed", "--recursive", "sha256", str(busybox.parent))


def base_model(config: dict[str, Any], say: Say) -> None:
    """Put the base model's files into the store as they were fetched."""
    from temper.models import fetch as models
    from temper.models.spec import ModelSpec

    name = config["model"]["name"]
    spec = ModelSpec.model_validate({key: value for key, value in config["model"].items() if key != "name"})
    known = CONFIGS / "models" / f"{name}.sha256"
    found = models.files(name, spec, known, BUILD / "cache" / "models" / name, say)
    add({digests.of(path): path for path in found.values()}, f"files of {name}", say)


def image(name: str, say: Say) -> None:
    """Put the layers of the locked image into the store."""
    wanted = [layer["diff_id"].removeprefix("sha256:") for layer in pinned.read()[name]["layers"]]
    if not all((build.BLOBS / digest).is_file() for digest in wanted):
        provide.make(name, False, say)
    add({digest: build.BLOBS / digest for digest in wanted}, f"layers of {name}", say)


def image_parts(name: str, say: Say) -> None:
    """Put what an image is made of into the store."""
    for listed in (name, parts.NIX):
        add({part.sha256: parts.place(listed, part) for part in fetch.fetch(listed, say)}, f"parts of {listed}", say)


def add(files: Mapping[str, Path], what: str, say: Say) -> None:
    """Put files into the store by their sha256; MachineError without Nix, ResultError when one has other bytes."""
    known = {digest: _nix_store("--print-fixed-path", "sha256", digest, digest) for digest in files}
    absent = set(_nix_store("--check-validity", "--print-invalid", *known.values()).split())
    missing = {digest: path for digest, path in files.items() if known[digest] in absent}
    with tempfile.TemporaryDirectory(dir=build.STORE) as scratch:
        for digest, path in missing.items():
            oci.link(path.resolve(), Path(scratch, digest))
        if missing:
            added = _nix_store("--add-fixed", "sha256", *(str(Path(scratch, digest)) for digest in missing)).split()
            if wrong := [digest for digest, path in zip(missing, added, strict=True) if path != known[digest]]:
                raise ResultError(
                    f"{files[wrong[0]]} has other bytes than {wrong[0][:12]}", "delete it and run it again"
                )
    say(f"nix     {what}: {len(files)} in the store, {len(missing)} of them new")


def _nix_store(*words: str) -> str:
    try:
        return subprocess.run(["nix-store", *words], capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise MachineError(
            "there is no nix-store on this machine", "apt-get install nix-bin, see docs/nix.md"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no message"]
        raise MachineError(f"nix-store {words[0]} failed: {said[-1]}", "see docs/nix.md") from None
