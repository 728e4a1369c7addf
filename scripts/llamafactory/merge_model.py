#!/usr/bin/env python3
"""Merge an adapter into its base model and let the result through the gate only if a server sees what training saw."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors, reexec
from temper.train import machine

VOCABULARY = ("resize_vocab", "add_tokens", "add_special_tokens", "new_special_tokens")  # what an export must know too
GOLDEN_FROM_DATA = 4  # golden prompts taken from the training rows, besides the fixed ones


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, what in (("base", "base model's folder"), ("adapter", "adapter's folder"), ("output", "folder to write")):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument("--template", required=True, help="LLaMA Factory's template the adapter was trained with")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with train.jsonl, for golden prompts")
    parser.add_argument("--train_args", type=Path, metavar="FILE", help="YAML the adapter was trained with")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--shard_gb", type=float, default=5.0, help="largest weight file, GB (10^9 bytes)")
    parser.add_argument(
        "--chat_template",
        default="base",
        choices=("base", "trained"),
        help="trained: written from LLaMA Factory's template",
    )
    parser.add_argument("--end_token", help="the token that ends an answer")
    parser.add_argument("--no_tgi", action="store_true", help="the model will not be served by TGI")
    return parser.parse_args()


def conversations(data: Path | None) -> list[list[dict[str, str]]]:
    """Return a few conversations from the training rows, spread over the file."""
    if data is None:
        return []
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(line) for line in lines[:: max(1, len(lines) // GOLDEN_FROM_DATA)][:GOLDEN_FROM_DATA]]
    return [_messages(row) for row in chosen]


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return list(row["messages"][:-1])
    asked = {"role": "user", "content": "\n".join(filter(None, (row["instruction"], row.get("input"))))}
    return [{"role": "system", "content": row["system"]}, asked] if row.get("system") else [asked]


def merge(given: argparse.Namespace, train_args: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Write the merged folder; return the merge's figures and its seconds."""
    from temper.merge import make, parity

    started = time.time()
    done = make(
        given.base,
        given.adapter,
        given.output,
        template=given.template,
        dtype=given.dtype,
        max_shard_bytes=int(given.shard_gb * 10**9),
        end_token=given.end_token,
        arguments={key: train_args[key] for key in VOCABULARY if key in train_args},
    )
    if given.chat_template == "trained":
        parity.write_trained_template(given.output, given.template, train_args)
    return done, time.time() - started


def run() -> int:
    """Merge, pass the gate, and leave gate.json and golden.json in the folder."""
    given = options()
    reexec.into_environment()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.update(
        {name: value for name, value in machine.thread_environment(machine.threads()).items() if name not in os.environ}
    )
    import yaml

    from temper.merge import gate, golden

    train_args = yaml.safe_load(given.train_args.read_text(encoding="utf-8")) if given.train_args else {}
    done, seconds = merge(given, train_args)
    how = f"llamafactory-cli export, because {done['why']}" if done["why"] else "streaming"
    changed = f"{done['merged_tensors']} of {done['tensors']} tensors changed"
    print(f"merge   {changed}, {done['dtype']}, by {how} [{seconds:.1f} s]", flush=True)
    report, answers = gate.examine(
        given.base,
        given.adapter,
        given.output,
        given.template,
        given.end_token,
        train_args,
        prompts=conversations(given.data),
        tgi=not given.no_tgi,
        say=lambda text: print(text, flush=True),
    )
    gate.write(given.output / "gate.json", report)
    if not report["ok"] or answers is None:
        raise gate.refusal(given.output, report)
    gate.write(given.output / golden.FILE, answers)
    figures = {
        "summary": f"{done['merged_tensors']} tensors merged, {len(report['checks'])} checks of the gate passed",
        "run": {"merge_seconds": round(seconds, 2)},
    }
    (given.output / "run.result.json").write_text(json.dumps(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    errors.main(run)
