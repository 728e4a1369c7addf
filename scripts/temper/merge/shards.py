"""Safetensors files as byte ranges: read one tensor at a time, write a file front to back.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes. Reading a range with
`readinto` keeps peak memory at one tensor; a memory map would count every page it ever touched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.errors import ModelError

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODE = {name: code for code, name in TORCH.items()}
ITEM = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}  # bytes
WRITE = 1 << 20  # bytes; one write of 27 MB took the kernel four times the CPU seconds of 27 of 1 MB (ext4)
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes are: `start` and `size` in bytes, `dtype` in the format's own code (BF16, F32 …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int


def tensors(file: Path) -> dict[str, Tensor]:
    """Return what a safetensors file holds, by name; ModelError when it is missing, damaged or truncated."""
    try:
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length) if length <= MAX_HEADER else b"")
            end = os.fstat(handle.fileno()).st_size
        found = {
            name: _tensor(file, 8 + length, name, entry) for name, entry in header.items() if name != "__metadata__"
        }
    except FileNotFoundError:
        raise ModelError(f"{file} is missing", "fetch or make that folder again") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file} is not a safetensors file", "delete it and fetch or make it again") from None
    whole = max((tensor.start + tensor.size for tensor in found.values()), default=8 + length)
    if whole != end:
        raise ModelError(f"{file} has {end} bytes, its header says {whole}", "delete it and fetch or make it again")
    return found


def _tensor(file: Path, data: int, name: str, entry: dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    shape, size = tuple(entry["shape"]), end - start
    if entry["dtype"] in ITEM and size != math.prod(shape) * ITEM[entry["dtype"]]:
        raise ValueError(name)
    return Tensor(name, entry["dtype"], shape, file, data + start, size)


def model(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a model folder, single-file or sharded.

    Raises ModelError for a folder with pickle weights only, with none, or with tensors its index does not find.
    """
    if (folder / SINGLE).is_file():
        return tensors(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError):
        raise ModelError(f"{folder / INDEX} cannot be read", "delete it and fetch or make it again") from None
    shards = {shard: tensors(folder / shard) for shard in sorted(set(places.values()))}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ModelError(f"{folder / shard} lacks {name}", "delete it and fetch or make it again")
    return {name: shards[shard][name] for name, shard in places.items()}


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} holds pickle weights only ({pickles[0]}), which run code when they are loaded",
            "take a revision of the model that has model.safetensors",
        )
    return ModelError(f"{folder} holds no model.safetensors", "fetch the base model again")


def dtype(held: dict[str, Tensor]) -> str:
    """Return the code of the first floating tensor's dtype."""
    return next(tensor.dtype for tensor in held.values() if tensor.dtype in TORCH)


def buffer(tensor: Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tensor's values, in `scratch` (bytes, reused between calls) where it is given and large enough."""
    import torch

    if scratch is None or scratch.numel() < tensor.size:
        scratch = torch.empty(tensor.size, dtype=torch.uint8)
    raw = scratch[: tensor.size]
    with open(tensor.file, "rb", buffering=0) as handle:
        handle.seek(tensor.start)
        _fill(handle, memoryview(raw.numpy()), tensor)
    return raw.view(getattr(torch, TORCH[tensor.dtype])).reshape(tensor.shape)


def _fill(handle: FileIO, room: memoryview, tensor: Tensor) -> None:
    while room:
        got = handle.readinto(room)
        if not got:
            raise ModelError(f"{tensor.file} ended inside {tensor.name}", "delete it and fetch or make it again")
        room = room[got:]


def header(parts: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the first bytes of a file of (name, dtype code, shape), laid out in that order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in parts:
        size = math.prod(shape) * ITEM[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def put(file: FileIO, room: memoryview) -> None:
    """Append all of `room`, which one write of an unbuffered file need not take whole."""
    while room:
        room = room[file.write(room[:WRITE]) :]


def write(file: FileIO, values: torch.Tensor) -> None:
    """Append a contiguous tensor's bytes."""
    import torch

    put(file, memoryview(values.reshape(-1).view(torch.uint8).numpy()))


def copy(file: FileIO, tensor: Tensor) -> None:
    """Append a stored tensor's bytes unread: the kernel copies from file to file."""
    at, end = tensor.start, tensor.start + tensor.size
    with open(tensor.file, "rb") as source:
        while at < end:
            sent = os.sendfile(file.fileno(), source.fileno(), at, end - at)
            if not sent:
                raise ModelError(f"{tensor.file} ended inside {tensor.name}", "delete it and fetch or make it again")
            at += sent
