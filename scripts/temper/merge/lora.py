"""A LoRA adapter as PEFT 0.18 saves it: what it changes, by how much, and whether that is all it does."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.errors import ModelError
from temper.merge import shards

if TYPE_CHECKING:
    import torch

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# What PEFT puts after a module's name: factors, whole copies, or the module's own parameter.
PART = re.compile(r"\.(?:lora_\w+|modules_to_save|original_module|base_layer|weight|bias)(?:\.|$)")
# Settings whose merge is more than W + scale * B A.
BEYOND = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA biases",
    "modules_to_save": "whole modules trained beside LoRA",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "replicated layers",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
}
# PEFT subtracts these from the base's own weights each time it loads the adapter.
REBASED = ("pissa", "olora", "corda", "loftq")
# Factors that mean nothing while their partner is zero.
FREE = (".lora_A.", ".lora_embedding_B", ".lora_magnitude_vector")
CONV1D = {"gpt2", "openai-gpt"}  # model types whose linear weights are stored [in, out]


@dataclass(frozen=True)
class Change:
    """What is added to one weight: scale * B @ A, transposed for a weight that is stored [in, out]."""

    a: shards.Tensor  # [rank, in]
    b: shards.Tensor  # [out, rank]
    scale: float
    transposed: bool


def config(adapter: Path) -> dict[str, Any]:
    """Return the adapter's own settings; ModelError when the folder is no adapter."""
    try:
        return dict(json.loads((adapter / CONFIG).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelError(f"{adapter} holds no {CONFIG}", "train the adapter first: make train") from None
    except ValueError:
        raise ModelError(f"{adapter / CONFIG} cannot be read", "train the adapter again") from None


def stored(adapter: Path) -> dict[str, shards.Tensor]:
    """Return the adapter's tensors; ModelError when there are none, or only a pickle."""
    if not (adapter / FILE).is_file() and (adapter / "adapter_model.bin").is_file():
        raise ModelError(
            f"{adapter} holds a pickle only (adapter_model.bin), which runs code when it is loaded",
            f"save the adapter as {FILE}",
        )
    return shards.tensors(adapter / FILE)


def targets(adapter: Path) -> list[str]:
    """Return the names of the modules the adapter changes."""
    return sorted({PART.split(name.removeprefix(PREFIX))[0] for name in stored(adapter)})


def beyond(adapter: Path) -> str:
    """Say what about the adapter is more than plain LoRA or rsLoRA on linear layers; "" when nothing is."""
    own = config(adapter)
    if own.get("peft_type") != "LORA":
        return f"its type is {own.get('peft_type')}, not LoRA"
    found = [said for key, said in BEYOND.items() if own.get(key)]
    if found:
        return f"it has {found[0]}"
    if own.get("bias", "none") != "none":
        return f"it has trained biases (bias: {own['bias']})"
    start = own.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REBASED):
        return f"its starting point {start} also changes the base's weights"
    extra = [name for name in stored(adapter) if not name.endswith((A, B))]
    return f"it stores {extra[0].removeprefix(PREFIX)}, which is no LoRA factor" if extra else ""


def _by_pattern(patterns: dict[str, float], module: str, default: float) -> float:
    # The first key that matches the module's name, or its end after a dot, as in peft.utils.other.get_pattern_key.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def changes(adapter: Path, base: dict[str, shards.Tensor], model_type: str) -> dict[str, Change]:
    """Return the change of each base weight that the adapter targets, by the weight's name.

    Raises ModelError for a factor without its pair, without a base weight, or of another shape.
    """
    own, held = config(adapter), stored(adapter)
    modules = sorted({name.removeprefix(PREFIX).removesuffix(A).removesuffix(B) for name in held})
    if not modules:
        raise ModelError(f"{adapter / FILE} holds no tensors", "train the adapter again")
    return {f"{module}.weight": _change(adapter, own, held, module, base, model_type) for module in modules}


def _change(
    adapter: Path,
    own: dict[str, Any],
    held: dict[str, shards.Tensor],
    module: str,
    base: dict[str, shards.Tensor],
    model_type: str,
) -> Change:
    a, b = (held.get(f"{PREFIX}{module}{end}") for end in (A, B))
    weight = base.get(f"{module}.weight")
    if a is None or b is None:
        raise ModelError(f"{adapter / FILE} holds only one LoRA factor of {module}", "train the adapter again")
    if weight is None:
        raise ModelError(
            f"the adapter changes {module}, which the base model does not have",
            "merge it into the base it was trained on",
        )
    rank = int(_by_pattern(own.get("rank_pattern") or {}, module, own["r"]))
    alpha = _by_pattern(own.get("alpha_pattern") or {}, module, own["lora_alpha"])
    # PEFT goes by the layer's kind and overrules the adapter's own fan_in_fan_out, so that key is not read.
    transposed = model_type in CONV1D and module != "lm_head"
    sides = weight.shape[::-1] if transposed else weight.shape
    if len(sides) != 2 or a.shape != (rank, sides[1]) or b.shape != (sides[0], rank):
        raise ModelError(
            f"the adapter's factors of {module} have shapes {list(b.shape)} and {list(a.shape)}, "
            f"rank {rank}, the base's weight {list(weight.shape)}",
            "merge it into the base it was trained on",
        )
    return Change(a, b, alpha / math.sqrt(rank) if own.get("use_rslora") else alpha / rank, transposed)


def check(adapter: Path) -> bool:
    """Return whether the adapter changes nothing (all its products are zero); ModelError for NaN or infinite values."""
    import torch

    zero = True
    for name, tensor in stored(adapter).items():
        values = shards.buffer(tensor)
        if not torch.isfinite(values).all():
            raise ModelError(
                f"{adapter / FILE} holds NaN or infinite values in {name}",
                "train again with a lower train.learning_rate",
            )
        zero = zero and (any(part in name for part in FREE) or not values.any())
    return zero


def product(change: Change, scratch: torch.Tensor) -> torch.Tensor:
    """Return B @ A, not yet scaled, in float32, written into `scratch` (float32, reused between calls).

    PEFT holds the factors in float32 whatever they were stored as (autocast_adapter_dtype), so the product is float32
    for bfloat16 and float16 bases too. The whole product is made at once: another split of it might round differently.
    """
    import torch

    a, b = (shards.buffer(part).to(torch.float32) for part in (change.a, change.b))
    rows, columns = b.shape[0], a.shape[1]
    out = scratch[: rows * columns].view(rows, columns)
    torch.mm(b, a, out=out)
    return out.T if change.transposed else out
