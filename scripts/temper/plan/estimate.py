"""Parameters, memory, disk and time of a run, from the model's shape, the settings and what was measured before.

Memory follows from the sizes of tensors, and was held against measured runs (docs/log.md): within a fifth at 135 M.
Time is only stated where a run of this kind was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from temper.models.spec import Shape
from temper.paths import BUILD
from temper.stage import human

START_S = 12  # seconds from the command to the first step: imports, model, tokenizer, rows
RUNTIME_BYTES = 0.9e9  # Python, torch and LLaMA Factory before any weight
# Measured on 2 cores of a processor with AVX-512 bf16 (docs/log.md): parameters x tokens / (s x cores).
CPU_RATE = 1.6e10


def projections(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of each linear layer that LoRA can stand beside, by the usual module names."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.intermediate
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }


def trainable(shape: Shape, train: dict[str, Any]) -> int:
    """Count the adapter's parameters: rank x (inputs + outputs) for each target in each layer."""
    sizes, target = projections(shape), str(train.get("lora_target", "all"))
    wanted = list(sizes) if target == "all" else [name.strip() for name in target.split(",")]
    total = 0
    for name in wanted:  # down_proj is one in each layer, 18.mlp.down_proj one in all
        layers = 1 if "." in name else shape.layers
        total += layers * int(train.get("lora_rank", 8)) * sum(sizes.get(name.rpartition(".")[2], ()))
    return total


def training_bytes(shape: Shape, train: dict[str, Any], parameters: int, longest: int, on_cpu: bool) -> float:
    """Estimate peak memory of training: weights, adapter with Adam's state, activations and logits of one batch.

    `longest` is the longest row in tokens, as cut by cutoff_len.
    """
    weight = 0.55 if train.get("quantization_bit") == 4 else 2.0 if train.get("bf16") or train.get("fp16") else 4.0
    tokens = int(train.get("per_device_train_batch_size", 8)) * longest
    kept = (
        40 * shape.hidden + 16 * shape.intermediate if train.get("disable_gradient_checkpointing") else 2 * shape.hidden
    )
    activations = tokens * (shape.layers * kept + 14 * shape.vocab)
    return RUNTIME_BYTES * on_cpu + parameters * weight + trainable(shape, train) * 16 + activations


def merging_bytes(shape: Shape) -> float:
    """Estimate peak memory of the streaming merge: a few copies of the largest tensor in float32."""
    largest = max(shape.vocab * shape.hidden * 0.5, shape.hidden * shape.intermediate)
    return 0.25e9 + 4 * largest * 2


def steps(rows: int, train: dict[str, Any]) -> int:
    """Count the optimiser's steps over all epochs."""
    rows = min(rows, int(train.get("max_samples") or rows))
    batch = int(train.get("per_device_train_batch_size", 8))
    updates = max(1, math.ceil(math.ceil(rows / batch) / int(train.get("gradient_accumulation_steps", 1))))
    limit = int(train.get("max_steps") or -1)
    return limit if limit > 0 else math.ceil(updates * float(train.get("num_train_epochs", 3)))


def token_counts(rows: Iterable[dict[str, Any]], tokenizer: Path) -> list[int]:
    """Count each row's tokens without template: by the base model's tokenizer when it is there, else as bytes / 3."""
    texts = [_text(row) for row in rows]
    if not tokenizer.is_file():
        return [len(text.encode()) // 3 for text in texts]
    from tokenizers import Tokenizer

    coder = Tokenizer.from_file(str(tokenizer))
    return [len(item.ids) for item in coder.encode_batch(texts)]


def _text(row: dict[str, Any]) -> str:
    said = [message["content"] for message in row.get("messages", ())]
    return " ".join([*said, *(str(row.get(key, "")) for key in ("system", "instruction", "input", "output"))])


def _memory_file() -> Path:
    return BUILD / ".cache" / "throughput.json"


def measured(model: str) -> float | None:
    """Return tokens per second of the last training run of this model on this machine, if there was one."""
    try:
        return float(json.loads(_memory_file().read_text(encoding="utf-8"))[model])
    except (OSError, ValueError, KeyError):
        return None


def remember(model: str, tokens_per_second: float) -> None:
    """Keep the throughput of a finished run for later estimates."""
    from temper import digests

    try:
        known = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    digests.write_atomic(_memory_file(), json.dumps({**known, model: round(tokens_per_second, 1)}))


def seconds(tokens: int, parameters: int, model: str, on_cpu: bool, cores: int) -> tuple[float | None, str]:
    """Return (training time in seconds or None, what that rests on) for `tokens` over all epochs."""
    rate = measured(model)
    if rate:
        return START_S + tokens / rate, f"{rate:.0f} tokens/s in the last run here"
    if on_cpu:
        rate = CPU_RATE * cores / parameters
        return START_S + tokens / rate, f"{rate:.0f} tokens/s, scaled from a measured 2-core machine"
    return None, "no run of this model on this machine has been measured yet"


def duration(value: float) -> str:
    """Return seconds as people read them."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _shape_of(folder: Path) -> Shape | None:
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        heads = known["num_attention_heads"]
        return Shape(
            hidden=known["hidden_size"],
            layers=known["num_hidden_layers"],
            heads=heads,
            kv_heads=known.get("num_key_value_heads") or heads,
            vocab=known["vocab_size"],
            head_dim=known.get("head_dim") or known["hidden_size"] // heads,
            intermediate=known["intermediate_size"],
            tied=known.get("tie_word_embeddings", True),
        )
    except KeyError:
        return None


def _dataset_rows(arguments: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield each row's text, all columns of it: their names are the dataset's own."""
    from temper.data import records

    data = Path(arguments["dataset_dir"])
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    for name in arguments["dataset"].split(","):
        for fields in records.read(data / info[name.strip()]["file_name"]):
            yield {"instruction": " ".join(map(str, fields.values()))}


def describe_run(arguments: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """Say what `train_model.py --config FILE` would do, from the YAML's own arguments."""
    folder = Path(arguments["model_name_or_path"])
    counts = token_counts(_dataset_rows(arguments), folder / "tokenizer.json")
    cutoff = int(arguments.get("cutoff_len", 2048))
    found = [
        f"model   {folder}",
        f"rows    {len(counts)}, {sum(counts)} tokens, longest {max(counts, default=0)} (cut at {cutoff})",
        f"steps   {steps(len(counts), arguments)}",
    ]
    found.append(f"chosen  {'bf16' if chosen['bf16'] else 'float32'}, {chosen['threads']} threads")
    if shape := _shape_of(folder):
        longest = min(cutoff, max(counts, default=1))
        train = {**arguments, "bf16": chosen["bf16"]}
        need = training_bytes(shape, train, shape.parameters(), longest, bool(arguments.get("use_cpu")))
        found.append(
            f"needs   {shape.parameters() / 1e6:.1f} M parameters, {trainable(shape, train) / 1e6:.2f} M trainable,"
            f" {human(need)} of memory"
        )
    return found
