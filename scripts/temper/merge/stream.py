"""Merge a LoRA adapter into a base model one tensor at a time: peak memory is one layer's weight, not a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from temper.errors import ModelError, UsageError
from temper.merge import lora, shards

# The order of a model's state_dict, which decides where save_pretrained cuts its shards: modules come in the order
# their classes declare them (Llama, Qwen2, Qwen3, Mistral, GPT-2). Other names follow, by the alphabet.
DECLARED = (
    "model",
    "transformer",
    "embed_tokens",
    "wte",
    "wpe",
    "layers",
    "h",
    "norm",
    "ln_f",
    "lm_head",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_norm",
    "k_norm",
    "ln_1",
    "attn",
    "c_attn",
    "ln_2",
    "mlp",
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "weight",
    "bias",
)
RANK = {name: at for at, name in enumerate(DECLARED)}
CHUNK = 1 << 19  # elements read, added and written at a time: they stay in the cache


def covers(adapter: Path, base: Path | None = None) -> str:
    """Return "" when streaming gives PEFT's result for this adapter, else the reason why it does not.

    Covered: LoRA and rsLoRA on linear layers, rank and alpha patterns. Not covered: DoRA, trained embeddings or biases,
    other kinds of adapter, and, where `base` is given, LoRA on an embedding that the base shares with its output layer.
    """
    reason = lora.beyond(adapter)
    if reason or base is None or not _tied(config(base), shards.model(base)):
        return reason
    shared = [name for name in lora.targets(adapter) if name.endswith(("lm_head", "embed_tokens", "wte"))]
    return f"it changes {shared[0]}, which the base shares between input and output" if shared else ""


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the base's weights with the adapter added into `out`, bit for bit as PEFT's merge_and_unload would.

    Weights only: model.safetensors, or shards and their index, named and cut as save_pretrained does.
    The sum is made in the dtype the base loads as (its config's, else its first tensor's). `dtype` "auto" keeps that
    one; float32, bfloat16 or float16 is cast to after merging, as `llamafactory-cli export` does with infer_dtype.
    (Its own "auto" turns a float32 base into bfloat16 where there is a GPU; here "auto" never changes the dtype.)
    `progress` is called with bytes written and bytes in all.
    Returns {"dtype", "tensors", "merged_tensors", "bytes", "shards", "zero_adapter"}.
    Raises ModelError for a base or adapter that cannot be read or does not fit, or that `covers` gives a reason for.
    """
    if reason := covers(adapter, base):
        raise ModelError(
            f"{adapter} cannot be merged tensor by tensor: {reason}",
            "merge it with: python -m temper.merge, which takes llamafactory-cli export for it",
        )
    settings, held = config(base), _loaded(base)
    inner = _inner_dtype(settings, held)
    outer = inner if dtype == "auto" else shards.CODE.get(dtype, "")
    if not outer:
        raise UsageError(f"there is no dtype {dtype}", "choose auto, float32, bfloat16 or float16")
    changes = lora.changes(adapter, held, str(settings.get("model_type")))
    zero = lora.check(adapter)
    plan = _cut(held, outer, max_shard_bytes)
    clear(base, out)
    _write(plan, changes, inner, outer, out, progress)
    size = _index(plan, outer, out)
    return {
        "dtype": shards.TORCH[outer],
        "tensors": len(held),
        "merged_tensors": len(changes),
        "bytes": size,
        "shards": len(plan),
        "zero_adapter": zero,
    }


def clear(base: Path, out: Path) -> None:
    """Make `out`, without the weights of an earlier merge, which may have been cut otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    if out.samefile(base):
        raise UsageError(f"{out} is the base model's own folder", "merge into another folder")
    for old in [*out.glob("model*.safetensors"), *out.glob(shards.INDEX)]:
        old.unlink()


def config(folder: Path) -> dict[str, Any]:
    """Return a model folder's config.json; ModelError when there is none."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ModelError(f"{folder}/config.json is missing or cannot be read", "fetch the base model again") from None


def _tied(settings: dict[str, Any], held: dict[str, shards.Tensor]) -> bool:
    return settings.get("tie_word_embeddings") is True or "lm_head.weight" not in held


def _loaded(base: Path) -> dict[str, shards.Tensor]:
    """Return the tensors that a model loaded from `base` would have, in the order of its state_dict."""
    settings, held = config(base), shards.model(base)
    if "quantization_config" in settings or any(tensor.dtype not in shards.ITEM for tensor in held.values()):
        raise ModelError(
            f"{base} is quantized, and an adapter can only be merged into full weights",
            "take the model's original in bfloat16",
        )
    # A tied output layer that is stored all the same is not read when the model loads; old files hold rotary tables.
    skipped = {"lm_head.weight"} if settings.get("tie_word_embeddings") is True else set()
    names = [name for name in held if name not in skipped and not name.endswith("rotary_emb.inv_freq")]
    return {name: held[name] for name in sorted(names, key=_declared)}


def _declared(name: str) -> list[tuple[int, int, str]]:
    return [(RANK.get(part, len(RANK)), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _inner_dtype(settings: dict[str, Any], held: dict[str, shards.Tensor]) -> str:
    # dtype="auto" in transformers: the config's, else that of the first floating tensor.
    said = shards.CODE.get(str(settings.get("dtype") or settings.get("torch_dtype")).removeprefix("torch."))
    return said or shards.dtype(held)


def base_dtype(base: Path) -> str:
    """Return the dtype that the base loads as: float32, bfloat16 or float16."""
    return shards.TORCH[_inner_dtype(config(base), _loaded(base))]


def _stored_as(tensor: shards.Tensor, outer: str) -> str:
    return outer if tensor.dtype in shards.TORCH else tensor.dtype


def _size(tensor: shards.Tensor, outer: str) -> int:
    return math.prod(tensor.shape) * shards.ITEM[_stored_as(tensor, outer)]


def _cut(held: dict[str, shards.Tensor], outer: str, limit: int) -> dict[str, list[shards.Tensor]]:
    """Cut the tensors into files as huggingface_hub does: in order, a tensor above `limit` bytes by itself."""
    files: list[list[shards.Tensor]] = []
    current: list[shards.Tensor] = []
    filled = 0
    for tensor in held.values():
        size = _size(tensor, outer)
        if size > limit:
            files.append([tensor])
            continue
        if filled + size > limit:
            files.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += size
    files += [current] if current else []
    if len(files) == 1:
        return {shards.SINGLE: files[0]}
    return {f"model-{at:05d}-of-{len(files):05d}.safetensors": shard for at, shard in enumerate(files, 1)}


def _write(
    plan: dict[str, list[shards.Tensor]],
    changes: dict[str, lora.Change],
    inner: str,
    outer: str,
    out: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    sizes = {tensor.name: _size(tensor, outer) for shard in plan.values() for tensor in shard}
    done, total = 0, sum(sizes.values())
    adder = _Adder(changes, {tensor.name: tensor for shard in plan.values() for tensor in shard}, inner, outer)
    for name, shard in plan.items():
        # Larger items first, then by name: the layout the safetensors library writes.
        shard.sort(key=lambda tensor: (-shards.ITEM[_stored_as(tensor, outer)], tensor.name))
        with open(out / name, "wb", buffering=0) as file:
            shards.put(file, memoryview(shards.header((t.name, _stored_as(t, outer), t.shape) for t in shard)))
            for tensor in shard:
                adder.write(file, tensor)
                done += sizes[tensor.name]
                if progress:
                    progress(done, total)


class _Adder:
    """Writes tensors, changed or not: a few MB at a time, and one product as large as the largest changed weight."""

    def __init__(self, changes: dict[str, lora.Change], held: dict[str, shards.Tensor], inner: str, outer: str) -> None:
        import torch

        self.changes, self.stored = changes, (inner, outer)
        self.inner, self.outer = (getattr(torch, shards.TORCH[code]) for code in (inner, outer))
        self.raw = torch.empty(CHUNK * 8, dtype=torch.uint8)
        self.product = torch.empty(max(math.prod(held[name].shape) for name in changes), dtype=torch.float32)

    def write(self, file: FileIO, tensor: shards.Tensor) -> None:
        """Append one tensor: changed, cast, or as it is."""
        change = self.changes.get(tensor.name)
        if change is None and (tensor.dtype not in shards.TORCH or self.stored == (tensor.dtype, tensor.dtype)):
            shards.copy(file, tensor)
            return
        product = lora.product(change, self.product) if change else None
        for at, part in _parts(tensor):
            values = shards.buffer(part, self.raw).to(self.inner)
            if change is not None and product is not None:
                # Sum in float32, then one rounding to the weight's dtype, as PEFT's `weight.data += delta` does.
                values += product[at : at + part.shape[0]] * change.scale
            shards.write(file, values.to(self.outer))


def _parts(tensor: shards.Tensor) -> Iterator[tuple[int, shards.Tensor]]:
    """Cut a tensor into (first row, rows) of about CHUNK elements."""
    count, rest = (tensor.shape[0], tensor.shape[1:]) if tensor.shape else (1, ())
    row = math.prod(rest)
    step = max(1, CHUNK // max(1, row))
    for at in range(0, count, step):
        rows, item = min(step, count - at), shards.ITEM[tensor.dtype] * row
        yield at, replace(tensor, shape=(rows, *rest), start=tensor.start + at * item, size=rows * item)


def _index(plan: dict[str, list[shards.Tensor]], outer: str, out: Path) -> int:
    """Write the index of a sharded model; return the bytes of all tensors."""
    held = [tensor for shard in plan.values() for tensor in shard]
    size = sum(_size(tensor, outer) for tensor in held)
    if len(plan) > 1:
        index = {
            "metadata": {"total_parameters": sum(math.prod(tensor.shape) for tensor in held), "total_size": size},
            "weight_map": {tensor.name: file for file, shard in plan.items() for tensor in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (out / shards.INDEX).write_text(text, encoding="utf-8")
    return size
