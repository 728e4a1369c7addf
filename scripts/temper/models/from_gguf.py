"""Turn a GGUF file into the folder that LLaMA Factory and the server read: safetensors, config, tokenizer.

Needs numpy, gguf and tokenizers, not torch: 5 instead of 25 CPU seconds for 135 M parameters, and the
bytes depend on no library's idea of a config. The weights are the ones transformers reads from the same file.
Not covered: architectures other than llama.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.errors import ModelError
from temper.models import gguf_tokenizer

if TYPE_CHECKING:
    import numpy as np

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(source: Path, end_token: str, work: Path) -> None:
    """Read the GGUF file `source` and fill the folder `work`.

    Weights are bfloat16: the type SmolLM2 was published in, half the bytes of float32, and what a CPU with bf16
    trains and serves fastest. Greedy answers to ten prompts, 48 tokens each, were those of the float32 weights.
    Raises ModelError when the file is of a kind that is not covered.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ModelError(
            f"{source.name} is of architecture {fields['general.architecture']}, and only llama is read",
            "take the model from huggingface, modelscope or path instead",
        )
    ids = gguf_tokenizer.write(fields, end_token, work)
    names = {tensor.name for tensor in reader.tensors}
    _write_json(work / "config.json", _config(fields, ids, tied="output.weight" not in names))
    _write_json(work / "generation_config.json", _special(ids))
    _write_weights(reader.tensors, fields, work / "model.safetensors")


def _special(ids: dict[str, int]) -> dict[str, int]:
    return {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}


def _config(fields: dict[str, Any], ids: dict[str, int], tied: bool) -> dict[str, Any]:
    """Return config.json with the keys that transformers 4.51 to 5 all read (`torch_dtype`, flat `rope_theta`)."""
    import numpy as np

    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    epsilon = np.float32(fields["llama.attention.layer_norm_rms_epsilon"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": width,
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields.get("llama.attention.key_length", width // heads),
        "intermediate_size": fields["llama.feed_forward_length"],
        "hidden_act": "silu",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "rope_scaling": None,
        "rms_norm_eps": float(str(epsilon)),  # as it was written, 1e-05, not float32's 9.999999747378752e-06
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **_special(ids),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(tensors: list[Any], fields: dict[str, Any], path: Path) -> None:
    """Write one safetensors file (github.com/huggingface/safetensors, "Format"), holding one tensor at a time."""
    from gguf.quants import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    found = sorted((*_name(tensor.name), tensor) for tensor in tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, _, tensor in found:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, part, tensor in found:
            values = dequantize(tensor.data, tensor.tensor_type)
            file.write(_bfloat16(_halves(values, heads[part]) if part in heads else values))


def _name(name: str) -> tuple[str, str]:
    """Return transformers' name of a GGUF tensor, and the GGUF name of its part of the model."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        known, prefix = LAYER.get(part), f"model.layers.{layer}."
    else:
        part, known, prefix = stem, OUTSIDE.get(stem), ""
    if known is None or kind != "weight":
        raise ModelError(
            f"the GGUF file has a tensor {name}, which is no part of a plain llama model",
            "take the model from huggingface, modelscope or path instead",
        )
    return f"{prefix}{known}.weight", part


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Put each head's rotary rows [pair, 2] back as [2, pair]: GGUF interleaves what transformers keeps in halves."""
    pairs = values.shape[0] // heads // 2
    return values.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _bfloat16(values: np.ndarray) -> bytes:
    """Round float32 to bfloat16, to the nearest and ties to even; returns little-endian bytes."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
