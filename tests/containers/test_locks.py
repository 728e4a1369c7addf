"""The lists of parts, the locks of Python packages and the lock of images agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from temper.images import oci, parts, pinned

ROOT = Path(__file__).resolve().parents[2]


def locked(group: str) -> dict[str, set[str]]:
    """Return the hashes of each NAME==VERSION of a lock of Python packages."""
    text = (ROOT / f"docker/locks/{group}.txt").read_text().replace("\\\n", " ")
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z0-9-]+)==([^ ;]+)", line):
            found.setdefault(f"{match[1]}=={match[2]}", set()).update(re.findall(r"sha256:(\w{64})", line))
    return found


@pytest.mark.parametrize("image", parts.IMAGES)
def test_every_part_is_locked(image: str) -> None:
    """Each wheel of an image is one its lock knows by name, version and sha256; each Debian package has a sha256."""
    known, listed = locked(parts.IMAGES[image]), parts.read(image)
    python = [part for part in listed if part.kind != "deb"]
    assert len(python) > 90 and len(listed) - len(python) > 40
    for part in python:
        assert part.sha256 in known[f"{part.name}=={part.version}"], part
    assert all(re.fullmatch(r"[0-9a-f]{64}", part.sha256) for part in listed)


@pytest.mark.parametrize("image", parts.IMAGES)
def test_nothing_of_the_lock_is_left_out(image: str) -> None:
    """Every package that the lock gives to Python 3.11 on x86-64 Linux is a part of the image."""
    from packaging.markers import Marker

    from temper.images.resolve import TARGET

    have = {f"{part.name}=={part.version}" for part in parts.read(image)}
    text = (ROOT / f"docker/locks/{parts.IMAGES[image]}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        match = re.match(r"([a-z0-9-]+==[^ ;]+) *(?:; ([^\\]*?))? *(?:--hash|$)", line)
        if match and (not match[2] or Marker(match[2]).evaluate(TARGET)):
            assert match[1] in have


def test_the_cuda_image_holds_what_is_promised() -> None:
    """temper-cuda has CUDA PyTorch with torchvision and torchaudio, bitsandbytes, DeepSpeed and Liger kernels."""
    have = {part.name: part.version for part in parts.read("temper-cuda")}
    wanted = {
        "torch",
        "torchvision",
        "torchaudio",
        "bitsandbytes",
        "deepspeed",
        "liger-kernel",
        "llamafactory",
        "triton",
    }
    assert wanted <= set(have)
    assert "+cpu" not in have["torch"]
    assert "gcc" in have  # Triton compiles with it


@pytest.mark.parametrize("image", parts.IMAGES)
def test_the_recorded_image_is_made_of_the_listed_parts(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed list owes a new image: temper-cpu's must be recorded, temper-cuda's is at least said to be owed."""
    entry = pinned.read()[image]
    assert entry["size"] == sum(layer["size"] for layer in entry["layers"])
    if image == "temper-cpu":
        assert not pinned.owed(image)
    elif pinned.owed(image):
        with capsys.disabled():
            print(f"\nOWED: the parts of {image} changed; build and record it: make image IMAGE={image} PIN=1")


def test_the_lock_holds_digests_and_no_addresses() -> None:
    """docker/images.lock pins every image by digest and names no host."""
    text = (ROOT / "docker/images.lock").read_text()
    lock = json.loads(text)
    assert {"temper-cpu", "temper-cuda", "tgi", "vllm"} <= set(lock)
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", lock[name]["digest"]) for name in ("tgi", "vllm"))
    assert not re.search(r"https?://|ghcr\.io|docker\.io", text)


def test_the_dockerfiles_say_what_the_images_are() -> None:
    """Dockerfile.inference is Dockerfile.train with the code on top, and both set the images' variables."""
    train, inference = ((ROOT / f"docker/Dockerfile.{name}").read_text() for name in ("train", "inference"))
    body = train[train.index("ARG BASE_IMAGE") : train.index("CMD [")]
    assert body in inference
    for key, value in oci.ENVIRONMENT.items():
        assert re.search(rf"\b{key}={re.escape(value)}(\s|$)", train), key
