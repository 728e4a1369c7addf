"""`python -m temper` with small stage bodies: what Make calls in these tests in place of training and merging.

The guard, the lock, the work folder, publishing and the manifest are the real ones, and so is the data stage, unless
STUB_DATA is set.
A body here writes a few files derived from every file and key it reads, so that a changed input changes the output.
Variables: STUB_LOGS, a folder where ran.log gets the name of each stage whose body runs, and asked.log what Make asked
for; STUB_SECONDS, how long a body takes; STUB_KB, how large its large files are; STUB_KILL_AT, as "stage 3", the goal
and the change to the file system, counted from 1, before which the process kills itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import scratch

import temper.__main__
from temper import errors, pipeline
from temper.stage import Stage

SECONDS = float(os.environ.get("STUB_SECONDS", "0"))
KILOBYTES = int(os.environ.get("STUB_KB", "16"))
KILL_IN, _, KILL_AT = os.environ.get("STUB_KILL_AT", "").partition(" ")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "ctypes.dlsym")  # the last: renameat2
WRITES = 8  # per large file, so that a body can be killed with half a file written
Body = Callable[[Path], dict[str, Any]]


def _log(file: str, line: str) -> None:
    with open(Path(os.environ["STUB_LOGS"]) / file, "a", encoding="utf-8") as log:
        log.write(line + "\n")


def _read(folder: Path, *patterns: str) -> bytes:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith("run.")})
    assert files, f"{folder} has none of {patterns}"
    return b"".join(path.name.encode() + path.read_bytes() for path in files)


def _write(path: Path, *sources: bytes) -> None:
    """Write bytes that follow from `sources`, slowly if so asked."""
    block = hashlib.sha256(b"\0".join(sources)).digest() * 32  # 1 kB
    with open(path, "wb", buffering=0) as file:
        for _ in range(WRITES):
            file.write(block * max(1, KILOBYTES // WRITES))
            time.sleep(SECONDS / WRITES / 2)


def _value(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _model(config: dict[str, Any]) -> Body:
    model = config["model"]

    def run(work: Path) -> dict[str, Any]:
        known = Path("configs/models") / f"{model['name']}.sha256"
        if not known.exists():
            known.write_text(f"{hashlib.sha256(_value(model['source'])).hexdigest()}  model.safetensors\n")
        _write(work / "model.safetensors", _value(model["source"]))
        (work / "config.json").write_bytes(_value({"end": model["end_token"]}))
        scratch.tokenizer(work, eos_token=model["end_token"])  # the same in every release of a model
        return {"summary": model["name"]}

    return run


def _data(config: dict[str, Any]) -> Body:
    source = Path(config["data"]["path"])

    def run(work: Path) -> dict[str, Any]:
        with open(source, "rb") as file:
            _write(work / "train.jsonl", file.read(1000), _value(config["data"]["columns"]))
        (work / "dataset_info.json").write_text("{}")
        return {"summary": "processed"}

    return run


def _train(config: dict[str, Any]) -> Body:
    here, base = pipeline.folder(config), pipeline.base(config)
    own = {key: value for key, value in config["train"].items() if key != "logging_steps"}  # says how often, not what

    def run(work: Path) -> dict[str, Any]:
        read = (_read(base, "*.safetensors", "*.json"), _read(here / "data", "train.jsonl", "dataset_info.json"))
        _write(work / "run.log", b"what happened")
        _write(work / "adapter_model.safetensors", *read, _value(own), _value(config["model"]["template"]))
        (work / "adapter_config.json").write_bytes(_value({"r": own["lora_rank"]}))
        return {"summary": "trained", "chosen": {"threads": 1}, "run": {"train_seconds": time.time()}}

    return run


def _merge(config: dict[str, Any]) -> Body:
    here, base = pipeline.folder(config), pipeline.base(config)

    def run(work: Path) -> dict[str, Any]:
        read = (_read(base, "*.safetensors"), _read(here / "adapter", "adapter_*"), _read(here / "data", "train.jsonl"))
        _write(work / "model.safetensors", *read, _value(config["merge"]))
        (work / "golden").mkdir(exist_ok=True)
        _write(work / "golden" / "prompts.json", *read)
        return {"summary": "merged"}

    return run


BODIES = {"model": _model, "train": _train, "merge": _merge} | ({"data": _data} if "STUB_DATA" in os.environ else {})


def stage(name: str, config: dict[str, Any]) -> Stage:
    """Return the real stage with a body that logs its name, and is small unless it is the data stage's own."""
    made = real_stage(name, config)
    body = BODIES[name](config) if name in BODIES else made.run

    def run(work: Path) -> dict[str, Any]:
        _log("ran.log", name)
        time.sleep(SECONDS / 4)
        result = body(work)
        time.sleep(SECONDS / 4)
        return result

    return replace(made, run=run)


def _kill_at(limit: int) -> None:
    """End this process as kill -9 does, before its change number `limit` to the file system."""
    count = 0

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)


real_stage = pipeline.stage

if __name__ == "__main__":
    if sys.argv[1] == KILL_IN:
        _kill_at(int(KILL_AT))
    pipeline.stage = stage
    _log("asked.log", " ".join(sys.argv[1:3]) if sys.argv[1] == "stage" else sys.argv[1])
    errors.main(lambda: temper.__main__.run(sys.argv[1:]))
