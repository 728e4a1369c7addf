"""The YAML that `llamafactory-cli train` runs: the scenario's own keys and those Temper sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from temper import determinism, tracking

# Faster on a CPU and equal in result: see docs/log.md, "Training speed".
CPU = {"use_cpu": True, "disable_gradient_checkpointing": True, "group_by_length": True, "flash_attn": "disabled"}


def resolved(config: dict[str, Any], base: Path, data: Path, out: Path) -> dict[str, Any]:
    """Return LLaMA Factory's arguments for a resolved configuration, training into `out`."""
    own = {key: value for key, value in config["train"].items() if value is not None}
    speed = {} if config["gpu"] else CPU
    fixed = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(base),
        "template": config["model"]["template"],
        "trust_remote_code": config["model"]["trust_remote_code"],
        "dataset": "train",
        "dataset_dir": str(data),
        "output_dir": str(out),
        "include_num_input_tokens_seen": "non_padding",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
    }
    if tracking.asked(own):
        fixed |= {
            "logging_dir": str(out.parent / "track" / "tensorboard"),
            "run_name": f"{config['scenario']}-{config['profile']}",
        }
    if config["model"]["default_system"]:
        fixed["default_system"] = config["model"]["default_system"]
    return {**speed, **own, **determinism.arguments(config), **fixed}


def write(arguments: dict[str, Any], path: Path, comment: str) -> None:
    """Write the arguments as YAML under a comment."""
    body = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
    path.write_text("".join(f"# {line}\n" for line in comment.splitlines()) + body, encoding="utf-8")
