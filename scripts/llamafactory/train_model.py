#!/usr/bin/env python3
"""Train an adapter with LLaMA Factory from one YAML file: checked first, fitted to this machine, resumable."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors, reexec

TEMPLATE = """\
# What `llamafactory-cli train` runs; every argument of LLaMA Factory 0.9.5 can stand here.
# Check it:  python scripts/llamafactory/train_model.py --config {name} --dry_run
# Train:     python scripts/llamafactory/train_model.py --config {name}
stage: sft
do_train: true
model_name_or_path: build/models/smollm2-135m   # made by: make model SCENARIO=customer-service PROFILE=cpu
template: smollm2                               # the chat format; must be the base model's own
dataset: train
dataset_dir: ./processed_data                   # made by: data_processor.py --output ./processed_data
output_dir: ./adapter
finetuning_type: lora
lora_target: all
lora_rank: 8                                    # size of the adapter; higher learns more and forgets more
lora_alpha: 16
cutoff_len: 1024                                # tokens; longer rows are cut
per_device_train_batch_size: 4                  # rows
gradient_accumulation_steps: 1
learning_rate: 1.0e-3
lr_scheduler_type: cosine
warmup_ratio: 0.05
num_train_epochs: 3
logging_steps: 5                                # steps
save_steps: 50                                  # steps; an interrupted run goes on from the last one
seed: 42
report_to: none
use_cpu: true                                   # remove on a machine with a GPU
# bf16 and the number of threads are chosen for the machine unless they stand here.
"""


NEEDED = ("model_name_or_path", "template", "dataset", "dataset_dir", "output_dir")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--create_config", action="store_true", help="write a commented train_config.yaml to start from")
    what.add_argument("--config", type=Path, help="YAML with LLaMA Factory's arguments")
    parser.add_argument("--dry_run", action="store_true", help="check the file and say what would run; train nothing")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as cores are idle)")
    parser.add_argument("--quiet", action="store_true", help="show progress only")
    parser.add_argument("--output", type=Path, default=Path("train_config.yaml"), help="where --create_config writes")
    return parser.parse_args()


def create(path: Path) -> int:
    """Write the commented configuration; refuse to overwrite one."""
    if path.exists():
        raise errors.UsageError(f"{path} exists", "choose another name with --output, or delete it")
    if not path.parent.is_dir():
        raise errors.UsageError(f"{path.parent}: no such folder", f"run: mkdir -p {path.parent}")
    path.write_text(TEMPLATE.format(name=path), encoding="utf-8")
    print(f"written {path}\nnext: python scripts/llamafactory/train_model.py --config {path} --dry_run")
    return 0


def _parsed(folder: Any, name: str) -> tuple[Any, str]:
    """Return a folder's JSON file and what is wrong with it ("" if nothing)."""
    try:
        return json.loads((Path(str(folder)) / name).read_text(encoding="utf-8")), ""
    except OSError:
        return None, f"{folder}: no {name} there; give a folder that has it"
    except ValueError:
        return None, f"{folder}: its {name} is not valid JSON; make the folder again"


def _inputs(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (key, what is wrong and the remedy) for a model or rows that are not there."""
    found = []
    for key, name in (("model_name_or_path", "config.json"), ("dataset_dir", "dataset_info.json")):
        content, wrong = _parsed(arguments[key], name) if arguments.get(key) else (None, "")
        found += [(key, wrong)] if wrong else []
    if not isinstance(content, dict):
        return found
    for dataset in filter(None, str(arguments.get("dataset") or "").split(",")):
        entry = content.get(dataset.strip())
        if not isinstance(entry, dict):
            there = f"{arguments['dataset_dir']} has: {', '.join(content)}"
            found.append(("dataset", f"there is no dataset {dataset.strip()}; {there}"))
        elif not (Path(arguments["dataset_dir"]) / str(entry.get("file_name"))).is_file():
            found.append(
                (
                    "dataset",
                    f"{dataset.strip()}: no file {entry.get('file_name')} in {arguments['dataset_dir']}; "
                    "run data_processor.py again",
                )
            )
    return found


def read(path: Path) -> dict[str, Any]:
    """Read and check the YAML; every problem at once."""
    import yaml

    from temper.config import lf_args

    if not path.is_file():
        raise errors.ConfigError(f"{path}: no such file", "make one with --create_config")
    try:
        arguments = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}", "correct it") from None
    if not isinstance(arguments, dict):
        raise errors.ConfigError(f"{path}: holds no keys and values", "make one with --create_config")
    found = lf_args.problems(arguments, owned={}, at="")
    found += [(key, "is missing; add it") for key in NEEDED if arguments.get(key) in (None, "")]
    if arguments.get("do_train") is not True:
        found.append(("do_train", "must be true: without it nothing is trained"))
    found += _inputs(arguments)
    if found:
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise errors.ConfigError("\n".join([f"{path}: {count}", *(f"  {key}: {text}" for key, text in found)]))
    return arguments


def dry_run(arguments: dict[str, Any], chosen: dict[str, Any]) -> int:
    """Say what would run."""
    from temper.plan import estimate

    for line in estimate.describe_run(arguments, chosen):
        print(line)
    print("nothing was trained (--dry_run)")
    return 0


def chosen_for(out: Path, arguments: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """Choose number format and threads for this machine; an interrupted run keeps its number format."""
    from temper.train import machine

    choice = machine.choose(bool(arguments.get("use_cpu")))
    note = out / "run.chosen.json"
    with contextlib.suppress(OSError, ValueError):  # there is none, or it was cut short
        choice["bf16"] = json.loads(note.read_text(encoding="utf-8"))["bf16"]
    choice["bf16"] = arguments.get("bf16", choice["bf16"] and not arguments.get("fp16", False))
    return {**choice, "threads": threads or choice["threads"]}


def train(arguments: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Train into output_dir, keeping the resolved YAML beside the adapter."""
    from temper.train import run, settings

    out = Path(arguments["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.chosen.json").write_text(json.dumps(chosen), encoding="utf-8")
    resolved = {"bf16": chosen["bf16"], **arguments, "output_dir": str(out / "checkpoints")}
    run.resume(resolved)
    comment = "By hand: .venv/bin/llamafactory-cli train THIS_FILE"
    settings.write(resolved, out / "run.yaml", comment)
    spent = run.train(out / "run.yaml", resolved, chosen["threads"])
    if "resume_from_checkpoint" not in arguments and resolved.pop("resume_from_checkpoint", None):
        settings.write(resolved, out / "run.yaml", comment)  # the checkpoint goes with the work folder
    run.collect(resolved, out, chosen, spent)


def main() -> int:
    """Do what the command line asks."""
    given = options()
    if given.create_config:
        return create(given.output)
    reexec.into_environment()
    arguments = read(given.config)
    chosen = chosen_for(Path(arguments["output_dir"]), arguments, given.threads)
    if given.dry_run:
        return dry_run(arguments, chosen)
    train(arguments, chosen)
    if not given.quiet:
        print(f"adapter written to {arguments['output_dir']}")
    return 0


if __name__ == "__main__":
    errors.main(main)
