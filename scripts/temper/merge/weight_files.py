"""The weight files of a model folder, read by their headers alone: nothing here loads a tensor."""

from __future__ import annotations

import math
from pathlib import Path

from temper.errors import GateError, ModelError
from temper.merge import served, shards
from temper.merge.outcome import Outcome, judged
from temper.merge.shards import INDEX, Tensor

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".gguf")
# TGI takes no weight file whose name holds one of these (server/text_generation_server/utils/hub.py).
SKIPPED_BY_TGI = ("args", "arguments", "training")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of all safetensors files in a folder, in the index or not, as TGI takes them.

    Raises ModelError for a damaged or truncated file, GateError for a tensor that is there twice.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header = shards.tensors(path)
        if twice := found.keys() & header.keys():
            raise GateError(f"{path}: {min(twice)} is also in {found[min(twice)].file.name}", "merge again")
        found |= header
    return found


def rows(found: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, int]:
    """Return the rows of the tensors whose name ends as one of `names`."""
    return {name: entry.shape[0] for name, entry in found.items() if name.endswith(names)}


def parameters(found: dict[str, Tensor]) -> int:
    """Return the number of parameters."""
    return sum(math.prod(entry.shape) for entry in found.values())


def main_dtype(found: dict[str, Tensor]) -> str | None:
    """Return the torch name of the dtype that most parameters have; None for one no server loads as it is."""
    sizes: dict[str, int] = {}
    for entry in found.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
    return DTYPES.get(max(sizes, key=lambda name: sizes[name])) if sizes else None


def _file_problems(merged: Path) -> list[str]:
    names = [path.name for path in merged.iterdir()]
    problems = [f"{name} is not safetensors" for name in sorted(names) if name.endswith(PICKLES)]
    if "adapter_model.safetensors" in names:
        problems.append("adapter_model.safetensors would be loaded as model weights")
    problems += [
        f"TGI ignores {name} for its name"
        for name in sorted(names)
        if name.endswith(".safetensors") and any(word in name for word in SKIPPED_BY_TGI)
    ]
    if not any(name.endswith(".safetensors") for name in names):
        problems.append("there are no safetensors files")
    return problems


def _index_problems(merged: Path, found: dict[str, Tensor]) -> list[str]:
    index = served.read(merged, INDEX).get("weight_map")
    files = {entry.file for entry in found.values()}
    if index is None:
        return [f"{len(files)} weight files and no {INDEX}"] if len(files) > 1 else []
    problems = [
        f"the index names {name} in {file}, which does not hold it"
        for name, file in index.items()
        if name not in found or found[name].file.name != file
    ]
    return problems + [f"the index does not name {name}" for name in found if name not in index]


def _tensor_problems(found: dict[str, Tensor], base: dict[str, Tensor], dtype: str | None, tied: bool) -> list[str]:
    """Compare with the base model: names, shapes (rows of embeddings apart), dtypes."""
    optional = HEADS if tied else ()
    problems = [f"{name} is missing" for name in base if name not in found and not name.endswith(optional)]
    problems += [
        f"{name} is not in the base model" for name in found if name not in base and not name.endswith(optional)
    ]
    for name in found.keys() & base.keys():
        entry, old = found[name], base[name]
        from_row = 1 if name.endswith(EMBEDDINGS + HEADS) else 0  # trained on new tokens, a vocabulary may have grown
        if len(entry.shape) != len(old.shape) or entry.shape[from_row:] != old.shape[from_row:]:
            problems.append(f"{name} has shape {list(entry.shape)}, the base model's has {list(old.shape)}")
        if DTYPES.get(entry.dtype) != dtype and entry.dtype != old.dtype:
            problems.append(f"{name} is {entry.dtype}, the others are {dtype}")
    return sorted(problems)


def check(base: Path, merged: Path, tied: bool) -> Outcome:
    """Check that a folder holds the base model's tensors, whole, in safetensors files a server loads."""
    problems = _file_problems(merged)
    found, numbers = {}, {}
    try:
        found = tensors(merged)
        problems += _index_problems(merged, found) + _tensor_problems(found, tensors(base), main_dtype(found), tied)
        numbers = {"tensors": len(found), "parameters": parameters(found)}
    except (GateError, ModelError) as error:
        problems.append(str(error))
    shown = problems[:3] + ([f"{len(problems) - 3} more"] if len(problems) > 3 else [])
    files = len({entry.file for entry in found.values()})
    return judged(
        "weight files",
        shown,
        "delete the merged folder and merge again",
        f"{len(found)} tensors in {files} file{'s' if files > 1 else ''}, names, shapes and dtypes as the base model's",
        **numbers,
    )
