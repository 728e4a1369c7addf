"""LLaMA Factory's training arguments, read from the installed source without importing it.

Importing LLaMA Factory loads torch and takes seconds; parsing the dataclasses takes a tenth of one.
Covers names, and the types int, float, bool, str and Literal. Does not cover: values that only make sense together,
which LLaMA Factory itself checks when it starts.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.errors import MachineError

# Set by Temper from the scenario, the profile and the stage; a second value for them would be a contradiction.
OWNED = {
    "model_name_or_path": "model",
    "adapter_name_or_path": "model",
    "trust_remote_code": "the model file",
    "template": "the model file",
    "dataset": "data.path",
    "eval_dataset": "data.path",
    "dataset_dir": "data.path",
    "output_dir": "BUILD",
    "overwrite_output_dir": "the train stage",
    "resume_from_checkpoint": "the train stage",
    "do_train": "the train stage",
    "stage": "the train stage",
    "use_cpu": "the profile",
    "export_dir": "merge",
    "export_size": "merge.shard_gb",
    "default_system": "data.system",
    "logging_first_step": "the train stage",
    "logging_nan_inf_filter": "the train stage",
    "include_num_input_tokens_seen": "the train stage",
}

# Where LLaMA Factory itself fails only after the model has loaded, or trains nothing.
POSITIVE = {
    "learning_rate",
    "num_train_epochs",
    "lora_rank",
    "lora_alpha",
    "cutoff_len",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_samples",
}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MachineError(f"{name} is not installed in this environment", "run: make install")
    return Path(spec.origin).parent


def _annotation(node: ast.expr) -> Any:
    """Reduce an annotation to {'int','float','bool','str'} or a tuple of literal values; None: anything goes."""
    text = ast.unparse(node)
    if "Literal[" in text and "None" not in text.replace("Optional", ""):
        inner = text[text.index("Literal[") + 8 : text.rindex("]")].rstrip("]")
        return tuple(ast.literal_eval(f"[{inner}]"))
    names = {part.strip() for part in text.replace("Optional[", "").replace("]", "").split("|")} - {"None"}
    return next(iter(names)) if len(names) == 1 and names <= {"int", "float", "bool", "str"} else None


def _fields(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for item in node.body:
                given = not (isinstance(item, ast.AnnAssign) and item.value and "init=False" in ast.unparse(item.value))
                if given and isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    found[item.target.id] = _annotation(item.annotation)
    return found


def known() -> dict[str, Any]:
    """Return every argument `llamafactory-cli train` accepts, with its type where it is a plain one."""
    hparams, transformers = _package("llamafactory") / "hparams", _package("transformers")
    files = [
        transformers / "training_args.py",
        transformers / "training_args_seq2seq.py",
        *(path for path in sorted(hparams.glob("*_args.py")) if path.name != "evaluation_args.py"),
    ]
    return {key: kind for path in files for key, kind in _fields(path).items() if not key.startswith("_")}


# What people write from memory for the arguments used most.
COMMON = {
    "learning_rate": ("lr", "lrate"),
    "num_train_epochs": ("epochs", "epoch", "num_epochs"),
    "lora_rank": ("rank", "r"),
    "per_device_train_batch_size": ("batch_size", "bs", "train_batch_size"),
    "cutoff_len": ("max_length", "max_len"),
    "gradient_accumulation_steps": ("accumulation", "grad_accum"),
    "lora_alpha": ("alpha",),
    "bf16": ("dtype",),
    "lora_target": ("target_modules", "lora_target_modules"),
}


def _suggest(key: str, arguments: dict[str, Any], at: str) -> str:
    for name, nicknames in COMMON.items():
        if key in nicknames:
            return f"did you mean {at}{name}?"
    near = difflib.get_close_matches(key, arguments, 1, 0.6)
    return f"did you mean {at}{near[0]}?" if near else "see the arguments of llamafactory-cli train"


def _wrong_type(value: Any, kind: Any) -> str:
    if kind is None or value is None:
        return ""
    if isinstance(kind, tuple):
        return "" if value in kind else f"must be one of {', '.join(map(str, kind))}"
    if kind == "float" and isinstance(value, str):  # YAML reads 1e-4 as text; LLaMA Factory does the same and converts
        try:
            float(value)
        except ValueError:
            return "must be a number"
        return ""
    accepted = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        return "must be " + {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}[kind]
    return ""


def _wrong_value(key: str, value: Any) -> str:
    if key == "finetuning_type" and value in ("full", "freeze"):
        return "gives no adapter to merge; must be lora"
    if key in POSITIVE and isinstance(value, int | float | str) and not float(value) > 0:
        return "must be more than 0"
    return ""


def problems(train: dict[str, Any], owned: Mapping[str, str] = OWNED, at: str = "train.") -> list[tuple[str, str]]:
    """Return (key, what is wrong and the remedy) for every bad key of a `train:` section.

    Keys in `owned` are refused; a YAML that a person runs by hand owns none. Suggestions stand under `at`.
    """
    arguments, found = known(), []
    for key, value in train.items():
        if key in owned:
            found.append((key, f"is set by Temper from {owned[key]}; remove it"))
        elif key not in arguments:
            found.append((key, f"unknown key; {_suggest(key, arguments, at)}"))
        elif wrong := _wrong_type(value, arguments[key]) or _wrong_value(key, value):
            found.append((key, f"{value!r}: {wrong}"))
    return found
