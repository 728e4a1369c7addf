#!/usr/bin/env python3
"""Compare the streaming merge with PEFT and `llamafactory-cli export`: seconds, CPU seconds, peak memory, every bit.

    make bench-merge                   a random 1.5 B model in 5 shards; 3 minutes, 6.5 GB under the temporary folder
    make bench-merge BENCH=--small     a 135 M one; half a minute
    make bench-merge BENCH='--repeat 3'

Each way runs in a process of its own on the same files, one thread, and ends when the merged folder is written.
Exit code 1 when a tensor differs, or (at 1.5 B) when memory or CPU time misses the promised bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper.merge import export, lora, shards

SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rope_theta": 1e5,
}  # SmolLM2-135M
LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1e6,
}  # Qwen2.5-1.5B, biases apart
RANK = 16
MOST_MEMORY, LEAST_RATIO = 700e6, 2.0  # bytes; CPU seconds of llamafactory-cli export over ours
Shapes = dict[str, tuple[int, ...]]

PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out, shard = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter).merge_and_unload()
model.save_pretrained(out, max_shard_size=f"{shard}GB")
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""


def linear(shape: dict[str, Any]) -> Shapes:
    """Return [out, in] of each linear layer of a Llama model, by module name."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    one = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(shape["num_hidden_layers"])
    return {f"model.layers.{layer}.{name}": size for layer in layers for name, size in one.items()}


def model(shape: dict[str, Any]) -> Shapes:
    """Return the shape of every tensor of a Llama model with tied embeddings."""
    hidden = (shape["hidden_size"],)
    norms = {
        f"model.layers.{layer}.{name}.weight": hidden
        for layer in range(shape["num_hidden_layers"])
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    weights = {f"{name}.weight": size for name, size in linear(shape).items()}
    return {
        "model.embed_tokens.weight": (shape["vocab_size"], *hidden),
        **weights,
        **norms,
        "model.norm.weight": hidden,
    }


def write_random(file: Path, parts: Shapes, code: str, scale: float) -> None:
    """Write random tensors, a few million elements at a time."""
    import torch

    with open(file, "wb", buffering=0) as out:
        shards.put(out, memoryview(shards.header((name, code, size) for name, size in parts.items())))
        for size in parts.values():
            for at in range(0, math.prod(size), 1 << 22):
                count = min(1 << 22, math.prod(size) - at)
                shards.write(out, torch.empty(count, dtype=getattr(torch, shards.TORCH[code])).normal_(0, scale))


def write_base(folder: Path, shape: dict[str, Any], files: int) -> None:
    """Write a bfloat16 base in about `files` shards, with a configuration and a byte-level tokenizer."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
        **shape,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    groups: list[Shapes] = list(_groups(model(shape), files))
    places: dict[str, str] = {}
    for at, group in enumerate(groups, 1):
        name = f"model-{at:05d}-of-{len(groups):05d}.safetensors" if files > 1 else shards.SINGLE
        write_random(folder / name, group, "BF16", 0.02)
        places |= dict.fromkeys(group, name)
    if files > 1:
        (folder / shards.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    write_tokenizer(folder)


def _groups(parts: Shapes, files: int) -> Iterator[Shapes]:
    limit, held, group = sum(map(math.prod, parts.values())) / files, 0, {}
    for name, size in parts.items():
        group[name] = size
        held += math.prod(size)
        if held >= limit:
            yield group
            held, group = 0, {}
    if group:
        yield group


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes: what it holds is of no matter here, but an export loads one."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    ids = {char: at for at, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_adapter(folder: Path, shape: dict[str, Any]) -> None:
    """Write a float32 adapter of rank 16 on every linear layer."""
    folder.mkdir()
    names = sorted({name.rpartition(".")[2] for name in linear(shape)})
    (folder / lora.CONFIG).write_text(
        json.dumps(
            {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": names}
        )
    )
    parts: Shapes = {}
    for name, (rows, columns) in linear(shape).items():
        parts |= {f"{lora.PREFIX}{name}{lora.A}": (RANK, columns), f"{lora.PREFIX}{name}{lora.B}": (rows, RANK)}
    write_random(folder / lora.FILE, parts, "F32", 0.02)


def measured(argv: list[str], env: dict[str, str], log: Path) -> dict[str, float]:
    """Run a command; return its wall and CPU seconds and its peak resident bytes. SystemExit when it fails."""
    started = time.perf_counter()
    with open(log, "wb") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(errors="replace")[-2000:]
        sys.exit(f"{' '.join(argv[:4])} … ended with code {process.returncode}:\n{said}")
    return {"wall": time.perf_counter() - started, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}


def digests(folder: Path) -> dict[str, str]:
    """Return dtype, shape and sha256 of every tensor of a merged folder."""
    found = {}
    for name, tensor in shards.model(folder).items():
        with open(tensor.file, "rb") as file:
            file.seek(tensor.start)
            total, left = hashlib.sha256(), tensor.size
            while left:
                total.update(block := file.read(min(left, 1 << 22)))
                left -= len(block)
        found[name] = f"{tensor.dtype} {tensor.shape} {total.hexdigest()}"
    return found


def commands(root: Path, shard_gb: int) -> dict[str, list[str]]:
    """Return each way's command line; each writes into root/out."""
    base, adapter, out = root / "base", root / "adapter", root / "out"
    exported = export.settings(base, adapter, out, "qwen", "auto", shard_gb * 10**9, {})
    (root / "export.yaml").write_text(json.dumps(exported))  # JSON is YAML
    return {
        "streaming": [
            sys.executable,
            "-m",
            "temper.merge",
            f"--base={base}",
            f"--adapter={adapter}",
            f"--out={out}",
            f"--shard-gb={shard_gb}",
            "--end-token=<|im_end|>",
        ],
        "PEFT merge_and_unload": [sys.executable, "-c", PEFT, str(base), str(adapter), str(out), str(shard_gb)],
        "llamafactory-cli export": export.command(root / "export.yaml"),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the measurements as Markdown, each with its ratio to the streaming merge."""
    own = rows["streaming"]
    lines = ["| | wall s | CPU s | peak MB |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = [
            f"{row[key] / unit:.{digits}f} ({row[key] / own[key]:.1f}x)"
            for key, unit, digits in (("wall", 1, 1), ("cpu", 1, 1), ("peak", 1e6, 0))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(root: Path, shard_gb: int, repeat: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return each way's run with the least CPU time of `repeat`, and every tensor that differs from PEFT's."""
    scripts = str(Path(__file__).resolve().parents[1])
    env = export.environment() | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([scripts, env["PYTHONPATH"]])
    rows: dict[str, dict[str, float]] = {}
    made: dict[str, dict[str, str]] = {}
    for name, argv in list(commands(root, shard_gb).items()) * repeat:
        row = measured(argv, env, root / "log")
        rows[name] = min(row, rows.get(name, row), key=lambda one: one["cpu"])
        made[name] = digests(root / "out")
        shutil.rmtree(root / "out")
        print(f"{name}: {row['wall']:.1f} s, {row['cpu']:.1f} CPU s", file=sys.stderr, flush=True)
    right = made["PEFT merge_and_unload"]
    return rows, [
        f"{tensor} of {name}"
        for name, held in made.items()
        for tensor in sorted(right.keys() | held.keys())
        if right.get(tensor) != held.get(tensor)
    ]


def main() -> int:
    """Measure, print the table, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="135 M parameters in place of 1.5 B")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each way; the one with the least CPU time counts"
    )
    given = parser.parse_args()
    small = given.small
    shape = SMALL if small else LARGE
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
        root = Path(folder)
        write_base(root / "base", shape, 1 if small else 5)
        write_adapter(root / "adapter", shape)
        rows, differing = compare(root, 1, given.repeat)
    count = sum(map(math.prod, model(shape).values()))
    print(
        f"{count / 1e6:.0f} M parameters in bfloat16, rank {RANK} on every linear layer, one thread, "
        f"least CPU time of {given.repeat} run(s) each\n"
    )
    print(f"{table(rows)}\n")
    print(
        f"{len(model(shape))} tensors, bit for bit the same by all three"
        if not differing
        else f"{len(differing)} tensors differ: {', '.join(differing[:5])}"
    )
    ratio = rows["llamafactory-cli export"]["cpu"] / rows["streaming"]["cpu"]
    kept = small or (rows["streaming"]["peak"] <= MOST_MEMORY and ratio >= LEAST_RATIO)
    if not kept:
        print(f"over the bound: at most {MOST_MEMORY / 1e6:.0f} MB and {LEAST_RATIO:.0f}x fewer CPU seconds")
    return 0 if kept and not differing else 1


if __name__ == "__main__":
    sys.exit(main())
