"""What the serving engines are known not to do, found in a scenario before any container starts.

TGI 3.3.7: docs/decisions and its source; its transformers backend raises NotImplementedError for quantised weights, it
takes no --dtype beside eetq and fp8, passes no enable_thinking to a template, and prints its API key when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from temper.config.schema import Serve
from temper.models.spec import ModelSpec

Problem = tuple[str, str]  # key, what is wrong and the remedy

# What each engine makes of unquantised weights when it loads them; a merge never gives quantised ones.
QUANTIZE = {
    "tgi": ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "eetq", "fp8"),
    "vllm": ("bitsandbytes", "fp8"),
    "local": ("q8_0",),
}
WITHOUT_DTYPE = ("eetq", "fp8")  # of TGI's: it then computes in float16
VLLM = "ENGINE=vllm (serve.engine: vllm)"


def problems(tree: Mapping[str, Any], gpu: bool, model: ModelSpec) -> list[Problem]:
    """Return (key, what is wrong and the remedy) for what the chosen engine cannot do; types are checked elsewhere."""
    given = tree.get("serve")
    if given is not None and not isinstance(given, dict):
        return []
    defaults = {name: field.default for name, field in Serve.model_fields.items()}
    serve = {**defaults, **(given or {})}
    found = [*_any_engine(serve, gpu, model)]
    if serve["engine"] == "tgi":
        found += [*_tgi(serve, model), *_tgi_template(tree, model), *_tgi_dtype(serve, tree.get("merge"))]
    return found


def _any_engine(serve: Mapping[str, Any], gpu: bool, model: ModelSpec) -> Iterator[Problem]:
    engine, quantize, shards = serve["engine"], serve["quantize"], serve["tensor_parallel"]
    if engine in ("tgi", "vllm") and not gpu:
        yield (
            "serve.engine",
            f"{engine} needs an NVIDIA GPU, and this profile has none; ENGINE=local, or PROFILE=gpu-24g",
        )
    if engine == "local" and quantize and serve["dtype"] != "auto":
        yield "serve.dtype", f"{serve['dtype']}: weights that are quantised ({quantize}) have no other dtype; auto"
    if serve["batch_variant"] and (other := quantize if engine == "local" else engine):
        yield "serve.batch_variant", f"true: with {other} answers depend on what else runs anyway; false"
    if engine != "local" and serve["base_port"]:
        yield "serve.base_port", f"{serve['base_port']}: only the CPU server shows another beside it; null"
    if serve["base_port"] and serve["base_port"] == serve["port"]:
        yield "serve.base_port", f"{serve['base_port']} is serve.port; another"
    if engine == "local" and serve["dtype"] == "float16":
        yield "serve.dtype", "float16 is slow and inexact on a CPU; bfloat16, float32 or auto"
    if engine in QUANTIZE and quantize and quantize not in QUANTIZE[engine]:
        known = ", ".join(QUANTIZE[engine])
        yield "serve.quantize", f"{quantize}: {engine} cannot make that of a merged model; null, or one of {known}"
    if isinstance(total := serve["max_total_tokens"], int) and total > model.context:
        yield "serve.max_total_tokens", f"{total} is more than the model's {model.context} positions; lower it"
    if type(shards) is int and shards > 0 and not divides(engine, shards, model.shape.heads, model.shape.kv_heads):
        heads = f"{model.shape.heads} heads, {model.shape.kv_heads} of them for keys"
        text = f"{shards} GPUs cannot share the model's {heads}; auto, or a number that divides both"
        yield "serve.tensor_parallel", text


def divides(engine: str, shards: int, heads: int, kv_heads: int) -> bool:
    """Say whether so many GPUs can share the heads; vLLM gives several of them the same key heads, TGI does not."""
    if engine == "local":
        return shards == 1
    fits = kv_heads % shards == 0 or (engine == "vllm" and shards % kv_heads == 0)
    return heads % shards == 0 and fits


def _tgi(serve: Mapping[str, Any], model: ModelSpec) -> Iterator[Problem]:
    if not model.tgi:
        yield "serve.engine", f"TGI 3.3.7 does not serve {model.architecture} models; {VLLM}"
    if serve["quantize"] and model.architecture.startswith("qwen3"):
        yield (
            "serve.quantize",
            f"{serve['quantize']}: TGI 3.3.7 runs {model.architecture} on its transformers backend, which has no "
            f"quantised layers; set it to null, or {VLLM}",
        )
    if serve["api_key_file"]:
        yield (
            "serve.api_key_file",
            "TGI prints its key when it starts and shows it in the process list; remove it and put a reverse proxy "
            f"with the key in front, or {VLLM}, or ENGINE=local",
        )


def _tgi_template(tree: Mapping[str, Any], model: ModelSpec) -> Iterator[Problem]:
    """Refuse a template that thinks unless told otherwise, for an adapter trained without thinking."""
    train, merge = (part if isinstance(part := tree.get(name), dict) else {} for name in ("train", "merge"))
    chosen = merge.get("chat_template", "auto")
    written = model.chat_template if chosen == "auto" else chosen
    if model.template == "qwen3" and train.get("enable_thinking") is False and written == "base":
        yield (
            "serve.engine",
            "the adapter is trained without thinking (train.enable_thinking: false), and TGI has no way to tell the "
            f"template; merge.chat_template: trained, which writes it into the template, or {VLLM}, whose clients can "
            "send chat_template_kwargs",
        )


def _tgi_dtype(serve: Mapping[str, Any], merge: Any) -> Iterator[Problem]:
    dtype, quantize = serve["dtype"], serve["quantize"]
    merged = merge.get("dtype") if isinstance(merge, dict) else None
    if "float32" in (dtype, merged if dtype == "auto" else None):
        given = "float32" if dtype == "float32" else "auto is float32 here (merge.dtype)"
        yield "serve.dtype", f"{given}: TGI serves bfloat16 and float16 only; serve.dtype: bfloat16, or {VLLM}"
    if quantize in WITHOUT_DTYPE and dtype != "float16":
        yield (
            "serve.quantize",
            f"{quantize}: TGI takes no dtype beside it and computes in float16; say so with serve.dtype: float16, "
            f"or bitsandbytes-nf4, or {VLLM}",
        )
