"""Each stage that would run with its reason, and what the whole would need."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from temper import digests, pipeline, runtime, stage
from temper.config import cached
from temper.errors import ResultError
from temper.models.spec import Shape
from temper.paths import BUILD
from temper.plan import estimate
from temper.stage import human
from temper.train import machine, settings

BEFORE = {
    "model": (),
    "data": ("model",),
    "train": ("model", "data"),
    "merge": ("train",),
    "eval": ("merge",),
    "report": ("eval",),
}


def verdicts(config: dict[str, Any]) -> dict[str, list[str]]:
    """Return for each stage why it would run; an empty list where its result is current."""
    found: dict[str, list[str]] = {}
    for name in pipeline.ORDER:
        earlier = [before for before in BEFORE[name] if found[before]]
        made = pipeline.stage(name, config)
        if earlier and not (made.result / "manifest.json").is_file():
            found[name] = ["there is no result yet"]
        elif earlier:
            found[name] = [f"if {' or '.join(earlier)} gives another result", *_own(made)]
        else:
            found[name] = stage.reasons(made, stage.made_from(made, digests.of(pipeline.lock(config))))
    return found


def _own(made: stage.Stage) -> list[str]:
    """Return the differences that do not wait for an earlier stage: this stage's own keys."""
    old = stage.manifest(made.result)["made_from"]
    return stage.differences(old, {**old, "config": made.config, "revision": made.revision})


def _rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    made = pipeline.folder(config) / "data" / "train.jsonl"
    if made.is_file():
        return [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    from temper.data import process
    from temper.data.options import Options

    data = config["data"]
    paths, held = ([Path(path) for path in cached.listed(data[key])] for key in ("path", "eval_path"))
    options = Options(
        columns=data["columns"],
        encoding=data["encoding"],
        system=data["system"] or "",
        eval_share=data["eval_share"],
        max_rejected=data["max_rejected"],
        max_chars=data["max_chars"],
        steps=frozenset({"read", "normalise", "exact", "split", "write"}),
    )
    with tempfile.TemporaryDirectory() as scratch:
        process.process(paths, Path(scratch), options, held)
        return [json.loads(line) for line in open(Path(scratch) / "train.jsonl", encoding="utf-8")]


def needs(config: dict[str, Any]) -> list[str]:
    """Say what training and merging need: parameters, memory, disk, time."""
    model, shape = config["model"], Shape.model_validate(config["model"]["shape"])
    on_cpu = not config["gpu"]
    train = settings.resolved(config, pipeline.base(config), pipeline.folder(config) / "data", Path("."))
    train.setdefault("bf16", bool(machine.BF16_FLAGS & machine.cpu_flags()) if on_cpu else True)
    counts = estimate.token_counts(_rows(config), pipeline.base(config) / "tokenizer.json") or [1]
    around = 30  # tokens of the template around a question and its answer
    longest = min(int(train.get("cutoff_len", 2048)), max(counts) + around)
    used = estimate.steps(len(counts), train) * int(train.get("per_device_train_batch_size", 8))
    tokens = int(used * int(train.get("gradient_accumulation_steps", 1)) * (sum(counts) / len(counts) + around))
    memory = estimate.training_bytes(shape, train, model["parameters"], longest, on_cpu)
    time, basis = estimate.seconds(tokens, model["parameters"], model["name"], on_cpu, machine.cores())
    trainable = estimate.trainable(shape, train)
    disk = model["parameters"] * 2 * 2 + trainable * 4 * 4
    free = shutil.disk_usage(BUILD if BUILD.exists() else ".").free
    have = "GPU" if config["gpu"] else f"free: {human(os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}"
    return [
        f"needs   {model['name']}: {model['parameters'] / 1e6:.1f} M parameters, {trainable / 1e6:.2f} M trainable"
        f" ({trainable / model['parameters']:.1%})",
        f"        {len(counts)} rows, about {tokens} tokens in {estimate.steps(len(counts), train)} steps",
        f"        memory: {human(memory)} to train ({have}), {human(estimate.merging_bytes(shape))} to merge",
        f"        disk:   {human(disk)} for weights (free: {human(free)})",
        f"        time:   {'about ' + estimate.duration(time) if time else 'unknown'} to train ({basis})",
    ]


def lines(config: dict[str, Any]) -> list[str]:
    """Return the whole plan, a line each."""
    about = f"{config['scenario']}, profile {config['profile']}, model {config['model']['name']}"
    found = [f"plan    {about}, runtime {runtime.describe(config)}"]
    try:
        for name, why in verdicts(config).items():
            found.append(f"{name:<7} {'would run: ' + '; '.join(why) if why else 'up to date'}")
    except ResultError as error:
        found.append(f"error   {error}")
    return [*found, *needs(config)]
