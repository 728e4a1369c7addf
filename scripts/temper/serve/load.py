"""Load a merged Hugging Face folder for a CPU: safetensors only, no code from the folder, nothing from a hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.errors import ServeError, UsageError

DTYPES = ("auto", "float32", "bfloat16")
EIGHT_BITS = "q8_0"  # what --quantize makes of the weights


@dataclass(frozen=True)
class Loaded:
    """A model ready to run and what belongs to it."""

    model: Any  # of transformers; of llama_cpp where dtype is EIGHT_BITS
    tokenizer: Any
    chat_template: str | None
    eos: frozenset[int]
    special: frozenset[int]
    dtype: str
    token_bytes: int  # what a token's keys and values take


def load(folder: Path, dtype: str, threads: int | None) -> Loaded:
    """Return the folder's model in `dtype` ("auto": as its weights); ServeError when it cannot be served."""
    config = read_config(folder)
    dtype = chosen_dtype(dtype, config)
    import torch
    import transformers

    from temper.serve import chat_template

    if threads:
        torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        if dtype == EIGHT_BITS:
            from temper.serve import llama_cpp

            model: Any = llama_cpp.Model(folder, torch.get_num_threads())
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, **local
            ).eval()
    except ServeError:
        raise
    except Exception as error:  # whatever a broken folder raises, from OSError to a KeyError in a config
        reason = " ".join(str(error).split())[:300]
        raise ServeError(
            f"{folder} does not load: {type(error).__name__}: {reason}",
            "run: make verify, or make the merged folder again",
        ) from error
    return Loaded(
        model,
        tokenizer,
        chat_template.read(folder),
        _eos(folder, tokenizer),
        frozenset(tokenizer.all_special_ids),
        dtype,
        _token_bytes(config, dtype),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder that can be served; ServeError for another one."""
    if not (folder / "config.json").is_file():
        raise ServeError(f"{folder} holds no model (no config.json)", "name a merged folder; make one with: make merge")
    if (folder / "adapter_config.json").exists():
        raise ServeError(f"{folder} holds an adapter", "serve the merged folder instead; make one with: make merge")
    if not any(folder.glob("*.safetensors")):
        raise ServeError(
            f"{folder} holds no safetensors weights, and pickled ones are not loaded",
            "convert them, or make the folder again with: make merge",
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ServeError(f"{folder}/config.json cannot be read: {error}", "make the folder again: make merge") from None
    if not isinstance(config, dict):
        raise ServeError(f"{folder}/config.json is no configuration", "make the folder again: make merge")
    return config


def chosen_dtype(asked: str, config: dict[str, Any]) -> str:
    """Return the dtype to compute in; float16 weights run in float32, which holds them exactly."""
    if asked == EIGHT_BITS:
        return asked
    if asked == "float16":
        raise UsageError("--dtype float16 is slow and inexact on a CPU", "use --dtype bfloat16 or --dtype float32")
    if asked not in DTYPES:
        raise UsageError(f"--dtype {asked} is unknown", f"use one of {', '.join(DTYPES)}")
    if asked != "auto":
        return asked
    return "bfloat16" if _text(config, "dtype", "torch_dtype") == "bfloat16" else "float32"


def positions(config: dict[str, Any]) -> int:
    """Return the longest sequence the model was made for, tokens."""
    return int(_text(config, "max_position_embeddings") or 2**31)


def _token_bytes(config: dict[str, Any], dtype: str) -> int:
    heads = int(_text(config, "num_attention_heads", "n_head") or 1)
    size = _text(config, "head_dim") or (_text(config, "hidden_size", "n_embd") or 1) // heads
    layers = _text(config, "num_hidden_layers", "n_layer") or 1
    return int(2 * layers * (_text(config, "num_key_value_heads") or heads) * size * (4 if dtype == "float32" else 2))


def _text(config: dict[str, Any], *names: str) -> Any:
    """Return a value of the configuration, or of its part for text where it has one."""
    for part in (config, config.get("text_config") or {}):
        for name in names:
            if part.get(name) is not None:
                return part[name]
    return None


def _eos(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer, as TGI does: generation_config's list, else the tokenizer's own."""
    try:
        listed = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError):
        listed = None
    if isinstance(listed, list):
        return frozenset(listed)
    return frozenset(() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
