"""Checkpoints of an interrupted run: the last whole one is resumed, half-written ones are removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# transformers writes trainer_state.json last, so a checkpoint without it was interrupted.
NEEDED = ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt")


def _step(path: Path) -> int:
    number = path.name.partition("-")[2]
    return int(number) if number.isdigit() else -1


def _whole(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((path / name).is_file() for name in NEEDED)


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in `folder` and delete the broken ones; None if there is none."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if _whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=_step, default=None)
