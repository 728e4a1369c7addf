"""One resolved configuration from scenario, profile, model file and overrides, with the origin of every value."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from temper.config import cached, lf_args, serving
from temper.config.schema import Profile, Scenario
from temper.errors import ConfigError
from temper.models.spec import ModelSpec, refuse_retired
from temper.paths import CONFIGS

SECTIONS = ("data", "train", "merge", "serve", "ask", "eval", "report")
Problem = tuple[str, str, str]  # file, key, what is wrong and the remedy

# What every run starts from. The rest of LLaMA Factory's arguments keep LLaMA Factory's defaults.
TRAIN_DEFAULTS: dict[str, Any] = {
    "finetuning_type": "lora",
    "lora_target": "all",
    "cutoff_len": 1024,
    "seed": 42,
    "logging_steps": 1,  # a mean over more would be another one in a resumed run
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "plot_loss": False,
}


def names(kind: str) -> list[str]:
    """List what there is of `kind`: scenarios, profiles or models."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def read(kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    """Read configs/KIND/NAME.yaml; ConfigError with a suggestion when there is none or it is not YAML."""
    path = CONFIGS / kind / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(kind), 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{path}: there is no {kind[:-1]} named {name}", f"{hint}there are: {', '.join(names(kind))}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {line}", "correct the file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not keys and values", "correct the file")
    return path, content


def parse_overrides(text: str) -> dict[str, Any]:
    """Turn "train.lora_rank=16 serve.port=8001" into {"train.lora_rank": 16, …}."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"SET: {text}: {str(error).lower()}", "close the quote") from None
    values = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"SET: {word!r} is not key=value", "write for example SET='train.lora_rank=16'")
        try:
            values[key] = yaml.safe_load(value) if value else None
        except yaml.YAMLError:
            raise ConfigError(
                f"SET: {key}: {value!r} is not a YAML value", f"put it in quotes: {key}='\"…\"'"
            ) from None
    return values


def _put(tree: dict[str, Any], key: str, value: Any, origins: dict[str, str], origin: str) -> None:
    *above, last = key.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            return  # such as `train: [lora]` with keys of a profile over it: its type is reported, not covered up
    tree[last], origins[key] = value, origin


def _overlay(tree: dict[str, Any], values: dict[str, Any], origins: dict[str, str], origin: str, at: str = "") -> None:
    for key, value in values.items():
        if not at and key in SECTIONS and value in (None, {}):
            continue  # `train:` with every key commented out
        if isinstance(value, dict) and value:
            _overlay(tree, value, origins, origin, f"{at}{key}.")
        else:
            _put(tree, f"{at}{key}", value, origins, origin)


def _keys(model: type[BaseModel], at: tuple[Any, ...]) -> list[str]:
    for part in at:
        inner = model.model_fields.get(str(part))
        if inner is None or not (isinstance(inner.annotation, type) and issubclass(inner.annotation, BaseModel)):
            return []
        model = inner.annotation
    return list(model.model_fields)


def _typed_problems(error: ValidationError, model: type[BaseModel], where: Any) -> list[Problem]:
    found = []
    for item in error.errors():
        *above, last = item["loc"]
        key = ".".join(map(str, item["loc"]))
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(last), _keys(model, tuple(above)), 1, 0.5)
            prefix = "".join(f"{part}." for part in above)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(_keys(model, tuple(above)))}"
            text = f"unknown key; {hint}"
        elif item["type"] == "missing":
            text = "is missing; add it"
        else:
            text = f"{item['input']!r} {text}"
        found.append((where(key), key, text))
    return found


def report(problems: list[Problem]) -> ConfigError:
    """Make one error of all problems, grouped by file."""
    lines = []
    for file in dict.fromkeys(problem[0] for problem in problems):
        own = [(key, text) for where, key, text in problems if where == file]
        lines.append(f"{file}: {len(own)} problem{'s' if len(own) > 1 else ''}")
        lines += [f"  {key}: {text}" for key, text in own]
    return ConfigError("\n".join(lines))


def load_model(name: str) -> tuple[Path, ModelSpec]:
    """Read and check configs/models/NAME.yaml; a retired name is an error that names its successor."""
    refuse_retired(name)
    path, content = read("models", name)
    try:
        return path, ModelSpec.model_validate(content)
    except ValidationError as error:
        raise report(_typed_problems(error, ModelSpec, lambda key: str(path))) from None


def load_profile(name: str) -> tuple[Path, Profile]:
    """Read and check configs/profiles/NAME.yaml."""
    path, content = read("profiles", name)
    try:
        return path, Profile.model_validate(content)
    except ValidationError as error:
        raise report(_typed_problems(error, Profile, lambda key: str(path))) from None


def _layers(scenario: str, profile: str, model: str, overrides: str) -> tuple[dict[str, Any], dict[str, str], Profile]:
    path, content = read("scenarios", scenario)
    profile_path, overlay = load_profile(profile)
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _overlay(tree, {"train": TRAIN_DEFAULTS}, origins, "Temper's default")
    _overlay(tree, content, origins, str(path))
    for key in ("model", "determinism"):
        if value := getattr(overlay, key):
            _put(tree, key, value, origins, str(profile_path))
    for values in ({key: getattr(overlay, key) for key in SECTIONS}, overlay.scenarios.get(scenario, {})):
        _overlay(tree, values, origins, str(profile_path))
    _overlay(tree, parse_overrides(overrides), origins, "SET")
    if model:
        _put(tree, "model", model, origins, "MODEL")
    return tree, origins, overlay


def _problems(tree: dict[str, Any], profile: Profile, where: Callable[[str], str]) -> list[Problem]:
    """Return what the types do not show: bad keys of `train:`, a GPU that is not there, rows that are not there."""
    train = tree.get("train")
    found = lf_args.problems(train) if isinstance(train, dict) else []
    if isinstance(train, dict) and train.get("quantization_bit") and not profile.gpu:
        found.append(("quantization_bit", "QLoRA needs a CUDA GPU; set it to null, or PROFILE=gpu-24g"))
    if isinstance(train, dict) and tree.get("determinism") == "portable" and not profile.gpu:
        lower = [key for key in ("bf16", "fp16", "pure_bf16") if train.get(key)]
        found += [(key, "is not portable between types of CPU; leave it out, or determinism: machine") for key in lower]
    problems = [(where(f"train.{key}"), f"train.{key}", text) for key, text in found]
    named = [("data", "path"), ("data", "eval_path"), ("eval", "checks"), ("eval", "retention")]
    for section, name in named:
        given = tree.get(section)
        for path in cached.listed(given.get(name) if isinstance(given, dict) else None):
            if isinstance(path, str) and not Path(path).exists():
                key = f"{section}.{name}"
                problems.append((where(key), key, f"{path}: no such file or folder; give a path that exists"))
    return problems


def _base(tree: dict[str, Any], where: Callable[[str], str], found: list[Problem]) -> tuple[Path, ModelSpec] | None:
    """Return the model file and what it says, with what it forbids added to `found`; None when no model is named."""
    name, train = tree.get("model"), tree.get("train")
    if not isinstance(name, str):
        return None
    try:
        path, spec = load_model(name)
    except ConfigError as error:
        raise ConfigError("\n".join([*([str(report(found))] if found else []), str(error)])) from None
    cutoff = train.get("cutoff_len") if isinstance(train, dict) else None
    if isinstance(cutoff, int) and cutoff > spec.context:
        text = f"{cutoff} is more than {name}'s {spec.context} positions; lower it"
        found.append((where("train.cutoff_len"), "train.cutoff_len", text))
    return path, spec


def resolve(scenario: str, profile: str, model: str = "", overrides: str = "") -> dict[str, Any]:
    """Return the whole configuration as plain values.

    {"scenario", "profile", "gpu", "model": {"name", …the model file}, "data", "train", "merge", "serve", "ask",
    "eval", "report",
    "origins": {key: file or variable}, "files": [the files it was read from]}.
    Raises ConfigError with every problem at once: file, key, value and remedy.
    """
    tree, origins, overlay = _layers(scenario, profile, model, overrides)
    file = CONFIGS / "scenarios" / f"{scenario}.yaml"

    def where(key: str) -> str:
        return origins.get(key) or next((v for k, v in origins.items() if k.startswith(f"{key}.")), str(file))

    found: list[Problem] = []
    sections: dict[str, Any] = {}
    try:
        sections = Scenario.model_validate(tree).model_dump()
    except ValidationError as error:
        found = _typed_problems(error, Scenario, where)
    found += _problems(tree, overlay, where)
    base = _base(tree, where, found)
    if base is not None:
        found += [(where(key), key, text) for key, text in serving.problems(tree, overlay.gpu, base[1])]
    if found or base is None:
        raise report(found)
    spec_path, spec = base
    files = [file, CONFIGS / "profiles" / f"{profile}.yaml", spec_path]
    return {
        "scenario": scenario,
        "profile": profile,
        "description": sections["description"],
        "determinism": sections["determinism"],
        "gpu": overlay.gpu,
        "gpu_memory_gb": overlay.gpu_memory_gb,
        "model": {"name": sections["model"], **spec.model_dump()},
        **{key: sections[key] for key in SECTIONS},
        "origins": origins,
        "files": [str(path) for path in files],
    }
