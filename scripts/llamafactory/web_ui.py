#!/usr/bin/env python3
"""LLaMA Board, LLaMA Factory's page for training by hand, with a YAML's settings filled in, on this machine only."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import child, errors, reexec

# LLaMA Factory's argument: the field of the board that stands for it. What has no field goes into its "extra" one.
FIELDS = {
    "finetuning_type": "top.finetuning_type",
    "template": "top.template",
    "quantization_method": "top.quantization_method",
    "dataset_dir": "train.dataset_dir",
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.num_train_epochs",
    "max_samples": "train.max_samples",
    "max_grad_norm": "train.max_grad_norm",
    "cutoff_len": "train.cutoff_len",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "lr_scheduler_type": "train.lr_scheduler_type",
    "logging_steps": "train.logging_steps",
    "save_steps": "train.save_steps",
    "warmup_steps": "train.warmup_steps",
    "lora_rank": "train.lora_rank",
    "lora_alpha": "train.lora_alpha",
    "lora_dropout": "train.lora_dropout",
    "lora_target": "train.lora_target",
}
WORDS = ("learning_rate", "num_train_epochs", "max_samples", "max_grad_norm")  # text fields for numbers
# Those the board sets by itself, and those that other fields stand for.
BOARD = {"stage", "do_train", "model_name_or_path", "output_dir", "dataset", "trust_remote_code", "report_to"}
BOARD |= {"bf16", "fp16", "quantization_bit", "plot_loss", "preprocessing_num_workers", "run_name", "logging_dir"}


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with LLaMA Factory's arguments")
    parser.add_argument("--name", default="model", help="what to call the base model")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the board keeps what it writes")
    return parser.parse_args()


def values(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what each field of the board is to hold."""
    found = {
        field: str(arguments[key]) if key in WORDS else arguments[key]
        for key, field in FIELDS.items()
        if key in arguments
    }
    rest = {key: value for key, value in arguments.items() if key not in FIELDS and key not in BOARD}
    return found | {
        "train.dataset": [name.strip() for name in str(arguments["dataset"]).split(",")],
        "train.compute_type": "bf16" if arguments.get("bf16", True) else "fp16" if arguments.get("fp16") else "fp32",
        "train.extra_args": json.dumps(rest),
        "top.quantization_bit": str(arguments.get("quantization_bit") or "none"),
    }


def serve(arguments: dict[str, Any], name: str, language: str, port: int) -> None:
    """Open the board on loopback until it is interrupted."""
    from llamafactory.extras import constants
    from llamafactory.webui import common, engine, interface

    constants.SUPPORTED_MODELS[name] = {constants.DownloadSource.DEFAULT: arguments["model_name_or_path"]}
    constants.DEFAULT_TEMPLATE[name] = arguments["template"]
    filled = {**values(arguments), "top.lang": language, "top.model_name": name}
    filled["top.model_path"] = arguments["model_name_or_path"]

    class Loaded(engine.Engine):
        """The board, beginning with the settings rather than with its own defaults."""

        def resume(self) -> Iterator[dict[Any, Any]]:
            """Fill the fields in after the board has."""
            yield from super().resume()
            yield self._update_component({field: {"value": value} for field, value in filled.items()})

    interface.Engine = Loaded
    common.save_config(language)
    print(f"webui   http://127.0.0.1:{port}   stop it with Ctrl-C", flush=True)
    interface.create_ui().queue().launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True)


def main() -> int:
    """Do what the command line asks."""
    given = options()
    reexec.into_environment()
    import yaml

    arguments = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    for key in ("model_name_or_path", "dataset_dir"):
        arguments[key] = str(Path(arguments[key]).resolve())
    os.environ |= child.QUIET
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    serve(arguments, given.name, given.language, given.port)
    return 0


if __name__ == "__main__":
    errors.main(main)
