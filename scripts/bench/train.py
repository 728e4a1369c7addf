#!/usr/bin/env python3
"""Training speed of profile cpu against LLaMA Factory's defaults, in real tokens per CPU second (make bench-train).

Both train the same rows of customer-service once, with the same model and adapter, each in a process of its own.
Start-up is taken out by subtracting a run of one step. Real tokens, as LLaMA Factory counts them: no padding.
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

# What LLaMA Factory does when nothing is said about speed.
PEER: dict[str, Any] = {"bf16": False, "per_device_train_batch_size": 8}


def arguments(base: Path, data: Path, out: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Return a training run over the rows once, without checkpoints."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(base),
        "template": "smollm2",
        "dataset": "train",
        "dataset_dir": str(data),
        "output_dir": str(out),
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": 16,
        "cutoff_len": 1024,
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 42,
        "include_num_input_tokens_seen": "non_padding",
        **own,
    }


def once(config: dict[str, Any], threads: int, where: Path) -> tuple[float, int]:
    """Run `llamafactory-cli train`; return the CPU seconds of it and its children, and the real tokens it saw."""
    path = where / "run.yaml"
    settings.write(config, path, "benchmark")
    env = child.environment(**machine.thread_environment(threads), HF_DATASETS_CACHE=str(where / "cache"))
    before = os.times()
    done = subprocess.run(run.command(path), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: llamafactory-cli ended with code {done.returncode}: {done.stderr[-2000:]}")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    totals = json.loads((where / "out" / "train_results.json").read_text(encoding="utf-8"))
    return seconds, int(totals["num_input_tokens_seen"])


def rate(base: Path, data: Path, threads: int, own: dict[str, Any]) -> float:
    """Return real tokens per CPU second over one epoch, its first step and the start-up left out."""
    with tempfile.TemporaryDirectory(dir="build") as scratch:
        where = Path(scratch)
        found = []
        for extra in ({"max_steps": 1}, {}):
            found.append(once(arguments(base, data, where / "out", own | extra), threads, where))
            shutil.rmtree(where / "out")
        (start, first), (whole, tokens) = found
        return (tokens - first) / (whole - start)


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    enter_root()
    base, data = Path("build/models/smollm2-135m"), Path("build/customer-service/cpu/data")
    if not (base / "config.json").exists() or not (data / "train.jsonl").exists():
        sys.exit("error: no model or rows yet; run: make model data SCENARIO=customer-service PROFILE=cpu")
    profile = yaml.safe_load(Path("configs/profiles/cpu.yaml").read_text(encoding="utf-8"))["train"]
    taken = ("lora_target", "lora_rank", "lora_alpha", "per_device_train_batch_size")
    ours = {**settings.CPU, "bf16": machine.choose(True)["bf16"], **{key: profile[key] for key in taken}}
    sides = {"LLaMA Factory's defaults": PEER, "profile cpu": ours}
    print(f"{given.rows} rows of customer-service, {given.threads} threads")
    for _ in range(given.rounds):
        rates = [rate(base, data, given.threads, {**own, "max_samples": given.rows}) for own in sides.values()]
        for name, value in zip(sides, rates, strict=True):
            print(f"{name:<26} {value:7.1f} real tokens per CPU second")
        print(f"ratio                      {rates[1] / rates[0]:.2f}")


if __name__ == "__main__":
    main()
