"""Write a merged Hugging Face folder as a GGUF file in 8 bits, for llama.cpp: weights and shape, no tokenizer.

Tensor names and keys are those of the gguf package; the layouts that differ from Hugging Face's are llama.cpp's
(its rotary pairs lie side by side, so rows of q and k move). A shape that is not known to come out right is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.errors import ServeError
from temper.merge import checkpoint, weight_files

# Model types whose attention and layers are llama.cpp's of this name.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
Quantise = Callable[[NDArray[np.float32]], NDArray[np.uint8]]  # [rows, columns] to [rows, bytes]


def write(folder: Path, file: Path, quantise: Quantise) -> int:
    """Write `file` and return the size of the vocabulary; ServeError for a model not known to come out right.

    Matrices go through `quantise` one at a time, which bounds memory; vectors stay in float32.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if problem := unfit(config):
        raise ServeError(f"{folder} cannot be quantised: {problem}", "serve it without --quantize")
    kind = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, kind)
    _describe(writer, config)
    arch = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, shape, _ in _tensors(folder, config, None):
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ServeError(f"{folder} cannot be quantised: llama.cpp has no {name}", "serve it without --quantize")
        if len(shape) == 1:
            writer.add_tensor_info(new, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            size = [shape[0], shape[1] // 32 * 34]  # 32 values: a half-precision factor and 32 bytes
            writer.add_tensor_info(new, size, np.dtype(np.uint8), math.prod(size), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, values in _tensors(folder, config, kind):
        writer.write_tensor_data(values if values.ndim == 1 else quantise(values))
    writer.close()
    return int(config["vocab_size"])


def unfit(config: dict[str, Any]) -> str:
    """Say why a model is not run as it was trained, "" where it is."""
    partial, scaling = checkpoint.rope(config)["partial"], _scaling(config)
    layers = {*(config.get("layer_types") or ["full_attention"])}
    heads = config.get("num_attention_heads") or 1
    facts = {
        f"model type {config.get('model_type')}": config.get("model_type") not in ARCHITECTURES,
        f"rope type {scaling['rope_type']}": scaling["rope_type"] not in ("default", "linear", "llama3"),
        "a sliding window": layers != {"full_attention"}
        or bool(config.get("sliding_window") and config.get("use_sliding_window", True)),
        f"activation {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
        "a rotary embedding for a part of each head": (partial or 1) != 1,
        "matrices whose rows are no multiple of 32 long": bool(
            config.get("hidden_size", 0) % 32
            or config.get("intermediate_size", 0) % 32
            or (config.get("head_dim") or config.get("hidden_size", 0) // heads) * heads % 32
        ),
    }
    return next((fact for fact, wrong in facts.items() if wrong), "")


def _theta(config: dict[str, Any]) -> float:
    return float(checkpoint.rope(config)["theta"] or 10000.0)


def _scaling(config: dict[str, Any]) -> dict[str, Any]:
    return checkpoint.rope(config)["scaling"] or {"rope_type": "default"}


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """Write the model's shape."""
    import gguf

    scaling, heads = _scaling(config), config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def _tensors(folder: Path, config: dict[str, Any], kind: str | None) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Yield each tensor's name, shape and, for llama.cpp's kind of model, its values in float32."""
    import safetensors

    found = weight_files.tensors(folder)
    heads = config["num_attention_heads"]
    moved = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads} if kind == "llama" else {}
    for file in dict.fromkeys(entry.file for entry in found.values()):
        with safetensors.safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                if (name == "lm_head.weight" and config.get("tie_word_embeddings")) or name.endswith("inv_freq"):
                    continue
                values = opened.get_tensor(name).float().numpy() if kind else None
                rows = next((count for part, count in moved.items() if part in name), 0)
                if values is not None and rows:
                    values = _side_by_side(values, rows)
                yield name, tuple(found[name].shape), values
    if _scaling(config)["rope_type"] == "llama3":
        factors = _llama3(_scaling(config), config)
        yield "rope_freqs.weight", factors.shape, factors


def _side_by_side(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put the rows that are turned together next to each other: [heads * size, ...], in each head."""
    pairs = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(values.shape))


def _llama3(scaling: dict[str, Any], config: dict[str, Any]) -> NDArray[np.float32]:
    """Return by what each rotary frequency is divided (transformers' modeling_rope_utils, rope_type llama3)."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wavelengths = 2 * np.pi * _theta(config) ** (np.arange(0, size, 2) / size)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
