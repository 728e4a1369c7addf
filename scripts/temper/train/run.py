"""Run LLaMA Factory on a resolved YAML, show its progress, and say in one line why it stopped."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from temper import child, tracking
from temper.errors import DiskError, TrainError
from temper.train import checkpoints, curve, energy, machine

BAR = re.compile(rb"\d+%\|")  # a tqdm progress bar
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
LOG, RESULT = "run.log", "run.result.json"

# What the log says when training cannot go on, and what to change.
DISK = re.compile(r"No space left on device|Disk quota exceeded|os error 28")
MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory|MemoryError")
SMALLER = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps) or train.cutoff_len, "
    "or take a smaller MODEL"
)


EVERY_S = 5  # between lines, where there is no terminal


class Watch:
    """Follow a run: LLaMA Factory's bar on a terminal, else a line every few seconds; a NaN loss stops it."""

    def __init__(self, log: Path, trainer_log: Path) -> None:
        self.log, self.trainer_log, self.live = log, trainer_log, sys.stderr.isatty()
        self.at = log.stat().st_size if log.exists() else 0
        self.due = 0.0  # when the next line is
        self.held, self.seen = b"", len(_lines(trainer_log))
        self.meter = energy.Meter()
        self.joules: float | None = None

    def __call__(self) -> None:
        """Show what is new; raise TrainError when a loss is not a number."""
        self.joules = self.meter()
        self._bar()
        for line in _lines(self.trainer_log)[self.seen :]:
            self.seen += 1
            self._step(line)

    def _bar(self) -> None:
        if not (self.live and self.log.exists()):
            return
        with open(self.log, "rb") as file:
            file.seek(self.at)
            fresh = file.read()
        self.at += len(fresh)
        *whole, self.held = re.split(rb"(?<=[\r\n])", self.held + fresh)
        sys.stderr.buffer.write(b"".join(part for part in whole if BAR.search(part)))
        sys.stderr.flush()

    def _step(self, line: dict[str, Any]) -> None:
        loss, step = line.get("loss"), line["current_steps"]
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss is {loss} at step {step}",
                "lower train.learning_rate, or set train.max_grad_norm=0.3 or train.bf16=false",
            )
        if not self.live and (step == line["total_steps"] or time.monotonic() >= self.due):
            self.due = time.monotonic() + EVERY_S
            left = line.get("remaining_time", "?")
            print(f"train   step {step} of {line['total_steps']}, loss {loss:.2f}, {left} left", flush=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break  # the last line is still being written
    return found


def _failure(code: int, log: Path) -> Exception:
    text = log.read_text(encoding="utf-8", errors="replace")[-20000:]
    if DISK.search(text):
        return DiskError(f"training stopped: no space left for {log.parent}", "free some space, then run it again")
    if MEMORY.search(text) or code == -9:
        said = "killed, most likely for memory" if code == -9 else "out of memory"
        return TrainError(f"training stopped: {said}", SMALLER)
    if code == -7:  # SIGBUS: the mapped weights lost their end, or /dev/shm is full
        return TrainError(
            "training stopped: a file it was reading shrank, or shared memory is full",
            "let no other program write to build/models, then run it again",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not BAR.search(line.encode())]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    last = (errors or lines or ["no message"])[-1]
    return TrainError(f"llamafactory-cli train ended with code {code}: {last}", f"the whole log is in {log}")


def command(config: Path) -> list[str]:
    """Return the bare command that a person can run too."""
    beside = Path(sys.executable).with_name("llamafactory-cli")  # in an image it is elsewhere on the path
    return [str(beside) if beside.exists() else "llamafactory-cli", "train", str(config)]


def train(config: Path, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run `llamafactory-cli train config`; return its seconds and joules (null: not readable).

    TrainError or DiskError says what to change.
    `arguments` are the YAML's; the log goes to run.log beside the YAML.
    """
    log, out = config.parent / LOG, Path(arguments["output_dir"])
    env = child.environment(**machine.thread_environment(threads), HF_DATASETS_CACHE=str(config.parent / "run.cache"))
    if trackers := tracking.asked(arguments):
        tracking.refuse_absent(trackers)
        root = Path(arguments.get("logging_dir") or config.parent / "run.track" / "tensorboard").parent
        env |= tracking.environment(root, arguments.get("run_name") or config.parent.name)
    if arguments.get("use_cpu"):
        env["CUDA_VISIBLE_DEVICES"] = ""
    watch = Watch(log, out / "trainer_log.jsonl")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="temper-") as scratch:
        # LLaMA Factory splits torchrun's command at blanks, so the YAML it is given must have none in its path.
        given = Path(shutil.copy(config, scratch)) if re.search(r"\s", str(config)) else config
        code = child.run(command(given), env, log, watch)
    seconds = time.monotonic() - started
    watch()
    if watch.live:
        print(file=sys.stderr)
    if code:
        raise _failure(code, log)
    return {"llamafactory_seconds": round(seconds, 1), "energy_joules": watch.joules and round(watch.joules)}


def collect(arguments: dict[str, Any], into: Path, chosen: dict[str, Any], spent: dict[str, Any]) -> None:
    """Keep the adapter, the loss curve and the figures of a finished run in `into`; drop the rest.

    `spent` is what train() returned.
    """
    out = Path(arguments["output_dir"])
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    rows = curve.write(state, into)
    totals = json.loads((out / "train_results.json").read_text(encoding="utf-8"))
    for name in ADAPTER:
        os.replace(out / name, into / name)
    adapter = json.loads((into / ADAPTER[1]).read_text(encoding="utf-8"))
    base = Path(arguments["model_name_or_path"])
    adapter["base_model_name_or_path"] = f"build/models/{base.name}"  # the same wherever it was trained
    (into / ADAPTER[1]).write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(out)
    shutil.rmtree(into / "run.cache", ignore_errors=True)
    losses = [row["loss"] for row in rows if "loss" in row] or [totals["train_loss"]]
    summary = (
        f"{state['global_step']} steps, loss {losses[0]:.2f} -> {losses[-1]:.2f}, {chosen['threads']} threads, "
        f"{'bf16' if arguments.get('bf16') else 'float32'}"
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    figures = {
        **spent,
        "threads": chosen["threads"],
        "device": machine.processor() if arguments.get("use_cpu") else chosen.get("gpu"),
        "peak_bytes": peak,
        "steps_seconds": totals["train_runtime"],
        "tokens": totals.get("num_input_tokens_seen", 0),
    }
    result = {
        "summary": summary,
        "chosen": {key: value for key, value in chosen.items() if key != "threads"},
        "run": figures,
    }
    (into / RESULT).write_text(json.dumps(result), encoding="utf-8")


def resume(arguments: dict[str, Any]) -> None:
    """Continue from the last whole checkpoint in output_dir, if there is one."""
    last = checkpoints.latest(Path(arguments["output_dir"]))
    if last:
        arguments["resume_from_checkpoint"] = str(last)
        print(f"train   resumes from {last.name}", flush=True)
