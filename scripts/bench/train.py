#!/usr/bin/env python3
"""Training speed of profile cpu against LLaMA Factory's defaults, in real tokens per CPU second (make bench-train).

Both train the same rows of customer-service with the same model, rank and batch, for the same number of steps, each in
a process of its own. Start-up is taken out by subtracting a run of one step. Real tokens: padding does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from temper import child
from temper.paths import enter_root
from temper.train import machine, run, settings

# What LLaMA Factory does when nothing is said; the adapter and the rows are the same on both sides.
PEER: dict[str, Any] = {"bf16": False, "disable_gradient_checkpointing": False, "group_by_length": False}


def arguments(base: Path, data: Path, out: Path, steps: int, **own: Any) -> dict[str, Any]:
    """Return a training run of `steps` optimiser steps without checkpoints."""
    return {
        "stage": "sft", "do_train": True, "model_name_or_path": str(base), "template": "smollm2", "dataset": "train",
        "dataset_dir": str(data), "output_dir": str(out), "finetuning_type": "lora", "lora_target": "all",
        "lora_rank": 16, "cutoff_len": 1024, "per_device_train_batch_size": 4, "learning_rate": 1e-4, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "seed": 42, "max_steps": steps, **own,
    }


def cpu_seconds(config: dict[str, Any], threads: int, where: Path) -> float:
    """Run `llamafactory-cli train` and return the CPU seconds of it and its children."""
    path = where / "run.yaml"
    settings.write(config, path, "benchmark")
    env = child.environment(**machine.thread_environment(threads), HF_DATASETS_CACHE=str(where / "cache"))
    before = os.times()
    done = subprocess.run(run.command(path), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: llamafactory-cli ended with code {done.returncode}: {done.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def real_tokens(base: Path, data: Path, steps: int, batch: int = 4) -> float:
    """Return the mean number of tokens, template included, in `steps` batches of training rows."""
    from tokenizers import Tokenizer

    coder = Tokenizer.from_file(str(base / "tokenizer.json"))
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    from jinja2 import Template

    template = Template(config["chat_template"])
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [template.render(messages=[{"role": "user", "content": row["instruction"]},
                                       {"role": "assistant", "content": row["output"]}]) for row in rows]
    lengths = [len(item.ids) for item in coder.encode_batch(texts, add_special_tokens=False)]
    return steps * batch * sum(lengths) / len(lengths)


def measure(base: Path, data: Path, steps: int, threads: int, own: dict[str, Any]) -> float:
    """Return CPU seconds of `steps` steps beyond the first."""
    with tempfile.TemporaryDirectory(dir="build") as scratch:
        where = Path(scratch)
        times = []
        for count in (1, steps + 1):
            times.append(cpu_seconds(arguments(base, data, where / "out", count, **own), threads, where))
            shutil.rmtree(where / "out", ignore_errors=True)
        return times[1] - times[0]


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    enter_root()
    base, data = Path("build/models/smollm2-135m"), Path("build/customer-service/cpu/data")
    if not (base / "config.json").exists() or not (data / "train.jsonl").exists():
        sys.exit("error: no model or rows yet; run: make model data SCENARIO=customer-service PROFILE=cpu")
    profile = yaml.safe_load(Path("configs/profiles/cpu.yaml").read_text(encoding="utf-8"))["train"]
    ours = {**settings.CPU, "bf16": machine.choose(True)["bf16"],
            **{key: profile[key] for key in ("lora_target",) if key in profile}}
    tokens = real_tokens(base, data, given.steps)
    print(f"{given.steps} steps of 4 rows, {tokens:.0f} real tokens, {given.threads} threads")
    for _ in range(given.rounds):
        seconds = {"LLaMA Factory's defaults": measure(base, data, given.steps, given.threads, PEER),
                   "profile cpu": measure(base, data, given.steps, given.threads, ours)}
        for name, value in seconds.items():
            print(f"{name:<26} {value:7.1f} CPU s   {tokens / value:7.1f} real tokens per CPU second")
        first, second = seconds.values()
        print(f"ratio                      {first / second:.2f}")


if __name__ == "__main__":
    main()
