"""Experiment trackers, an optional extra: where training writes for them, and an evaluation's figures added later.

`train.report_to` passes through to LLaMA Factory. All of it is written under build/SCENARIO/PROFILE/track and nothing
is sent: wandb and swanlab run offline (`wandb sync`, `swanlab sync` send later), mlflow writes files unless
MLFLOW_TRACKING_URI names a server.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper.errors import MachineError

PROJECT = "temper"
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")


def asked(train: dict[str, Any]) -> list[str]:
    """Return the trackers that a train section or a YAML of LLaMA Factory names."""
    given = train.get("report_to") or []
    names = [given] if isinstance(given, str) else list(given)
    return list(TRACKERS) if names == ["all"] else [name for name in names if name in TRACKERS]


def refuse_absent(names: list[str]) -> None:
    """Raise MachineError for a tracker whose package is not installed here."""
    if absent := [name for name in names if not importlib.util.find_spec(name)]:
        raise MachineError(
            f"train.report_to: {', '.join(absent)} is not installed here", "make install EXTRA=track, and RUNTIME=local"
        )


def environment(root: Path, name: str) -> dict[str, str]:
    """Return the variables by which the trackers write under `root`, in a run called `name`."""
    for folder in ("wandb", "swanlab", "mlflow"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    here = root.resolve()
    return {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(here / "wandb"),
        "WANDB_PROJECT": PROJECT,
        "WANDB_NAME": name,
        "WANDB_SILENT": "true",
        "SWANLAB_MODE": "offline",
        "SWANLAB_LOG_DIR": str(here / "swanlab"),
        "SWANLAB_SAVE_DIR": str(here / "swanlab"),
        "SWANLAB_PROJECT_NAME": PROJECT,
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI") or (here / "mlflow").as_uri(),
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def figures(names: list[str], root: Path, name: str, values: dict[str, float]) -> None:
    """Add an evaluation's figures to each tracker; MachineError for one that is not installed here."""
    refuse_absent(names)
    os.environ |= environment(root, name)
    for tracker in names:
        WRITERS[tracker](root, name, values)


def _tensorboard(root: Path, name: str, values: dict[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(root / "tensorboard")) as writer:
        for key, value in values.items():
            writer.add_scalar(key, value)


def _wandb(root: Path, name: str, values: dict[str, float]) -> None:
    import wandb

    run = wandb.init(project=PROJECT, name=f"{name} eval", dir=str(root / "wandb"), mode="offline")
    run.log(values)
    run.finish()


def _swanlab(root: Path, name: str, values: dict[str, float]) -> None:
    import swanlab

    swanlab.init(project=PROJECT, experiment_name=f"{name} eval", logdir=str(root / "swanlab"), mode="offline")
    swanlab.log(values)
    swanlab.finish()


def _mlflow(root: Path, name: str, values: dict[str, float]) -> None:
    import mlflow

    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=f"{name} eval"):
        mlflow.log_metrics(values)


WRITERS: dict[str, Callable[[Path, str, dict[str, float]], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "swanlab": _swanlab,
    "mlflow": _mlflow,
}
