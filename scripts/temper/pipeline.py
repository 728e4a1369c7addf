"""The stages of one scenario and profile, in the order data flows: model and data, adapter, merged."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper import child, determinism, digests, runtime
from temper.config import cached
from temper.errors import ConfigError, TemperError
from temper.paths import BUILD, CONFIGS, lock_file
from temper.stage import TOOLS, Stage

ORDER = ("model", "data", "train", "merge", "eval", "report")
ON_HOST = ("model", "eval", "report")  # they fetch, ask servers, and read: nothing that needs an image
FRONT_DOORS = Path("scripts/llamafactory")


class ChildFailed(TemperError):
    """A stage's program failed and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.code = code


def folder(config: dict[str, Any]) -> Path:
    """Return build/SCENARIO/PROFILE."""
    return BUILD / config["scenario"] / config["profile"]


def state(scenario: str, profile: str) -> Path:
    """Return the folder of what Make watches for a scenario and profile."""
    return BUILD / scenario / profile / ".state"


def base(config: dict[str, Any]) -> Path:
    """Return the base model's folder, shared by all scenarios."""
    return BUILD / "models" / config["model"]["name"]


def _program(config: dict[str, Any], name: str, *arguments: str) -> None:
    code = runtime.run(config, FRONT_DOORS / name, *arguments)
    if code:
        raise ChildFailed(code if code > 0 else 128 - code)


def make(goal: str, given: argparse.Namespace, build: Path) -> None:
    """Run a goal of the Makefile, the graph and all, as `given` asks; ChildFailed when it fails.

    What other variables asked for stands in SET already, so they are emptied.
    """
    settings = {
        "SCENARIO": given.scenario,
        "PROFILE": given.profile,
        "MODEL": given.model,
        "SET": given.overrides,
        "RUNTIME": given.runtime,
        "BUILD": str(build),
        **dict.fromkeys(("PORT", "ENGINE", "DETERMINISTIC", "LANG_DOC"), ""),
    }
    code = child.run(["make", goal, *(f"{key}={value}" for key, value in settings.items())], dict(os.environ))
    if code:
        raise ChildFailed(code)


def _model(config: dict[str, Any]) -> Stage:
    model = config["model"]
    name = model["name"]
    known = CONFIGS / "models" / f"{name}.sha256"

    def run(work: Path) -> dict[str, Any]:
        from temper.models import fetch, spec

        fields = {key: value for key, value in model.items() if key != "name"}
        fetch.fetch(name, spec.ModelSpec.model_validate(fields), work, known, BUILD / "cache" / "models" / name)
        return {"summary": f"{name}: {model['parameters'] / 1e6:.0f} M parameters, {model['licence']}"}

    return Stage(
        "model",
        base(config),
        BUILD / "models" / f".{name}.lock",
        run,
        recorded={known.name: known},
        config={key: model[key] for key in ("source", "trust_remote_code", "end_token")},
    )


# What a tokenizer and its chat template are read from.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def _data(config: dict[str, Any]) -> Stage:
    data = config["data"]
    files, stamps = _inputs(data)
    counted = "tokens" not in data["skip"]

    def run(work: Path) -> dict[str, Any]:
        from temper.data import process

        if data["engine"] == "ray" and runtime.in_container(config):
            raise ConfigError("data.engine: ray needs RUNTIME=local", "set RUNTIME=local, or data.engine to local")
        words = [f"--{key}_col={name}" for key, name in sorted(data["columns"].items()) if name]
        words += [f"--{key}={data[key]}" for key in PASSED if data[key] is not None]
        words += [f"--steps={','.join(f'-{step}' for step in data['skip'])}"] if data["skip"] else []
        if counted:
            words += [f"--model={base(config)}", f"--model_name={config['model']['name']}"]
            words += [f"--cutoff_len={config['train']['cutoff_len']}"]
        for option, key in (("--input", "path"), ("--eval_input", "eval_path")):
            if paths := cached.listed(data[key]):
                words += [option, *(os.path.join(".", path) for path in paths)]  # -rows.csv is no option
        _program(config, "data_processor.py", "--quiet", f"--output={work}", *words)
        return {"summary": process.summary(work)}

    section = {key: value for key, value in data.items() if key not in ("path", "eval_path", "engine", "workers")}
    if counted:
        section["tokens"] = {"model": config["model"]["name"], "cutoff_len": config["train"]["cutoff_len"]}
    return Stage(
        "data",
        folder(config) / "data",
        folder(config) / ".lock",
        run,
        files=files,
        results={"model": (base(config), TOKENIZER)} if counted else {},
        stamped=stamps,
        config=section,
        revision=2,
    )


PASSED = ("system", "encoding", "eval_share", "max_rejected", "personal", "max_chars", "engine", "workers")


def _inputs(data: dict[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files of rows by the names they are known by, and the stamps of folders in which one may be added."""
    from temper.data import sources

    stamps: dict[str, str] = {}
    for path in cached.inputs(data):
        seen = set()
        for here, inside, _ in os.walk(path, followlinks=True):  # nothing for a file
            if (real := os.path.realpath(here)) in seen:
                inside.clear()
                continue
            seen.add(real)
            stamps[here] = digests.stamp(Path(here))
    found: dict[str, Path] = {}
    for key, before in (("path", ""), ("eval_path", "eval: ")):
        paths = [Path(path) for path in cached.listed(data[key])]
        found |= {f"{before}{name}": path for name, path in sources.find(paths)} if paths else {}
    return found, stamps


def _train(config: dict[str, Any]) -> Stage:
    here = folder(config)

    def run(work: Path) -> dict[str, Any]:
        from temper.plan import estimate
        from temper.train import settings

        arguments = settings.resolved(config, base(config), here / "data", work)
        origins = [f"{key} from {origin}" for key, origin in config["origins"].items() if key.startswith("train.")]
        settings.write(arguments, work / "run.config.yaml", "\n".join(["What the stage asked for.", *origins]))
        _program(config, "train_model.py", "--quiet", f"--config={work / 'run.config.yaml'}")
        result = dict(json.loads((work / "run.result.json").read_text(encoding="utf-8")))
        if tokens := result["run"]["tokens"]:
            estimate.remember(config["model"]["name"], tokens / result["run"]["steps_seconds"])
        return result

    section = {"train": config["train"], "template": config["model"]["template"], "gpu": config["gpu"]}
    section |= determinism.section(config)
    return Stage(
        "train",
        here / "adapter",
        here / ".lock",
        run,
        config=section,
        results={"model": (base(config), ()), "data": (here / "data", ("train.jsonl", "dataset_info.json"))},
        revision=2,
    )


def _merge(config: dict[str, Any]) -> Stage:
    here, merge, model = folder(config), dict(config["merge"]), config["model"]
    if merge["chat_template"] == "auto":
        merge["chat_template"] = model["chat_template"]

    def run(work: Path) -> dict[str, Any]:
        arguments = [
            f"--base={base(config)}",
            f"--adapter={here / 'adapter'}",
            f"--data={here / 'data'}",
            f"--train_args={here / 'adapter' / 'run.yaml'}",
            f"--output={work}",
            f"--template={model['template']}",
            f"--dtype={merge['dtype']}",
            f"--shard_gb={merge['shard_gb']}",
            f"--chat_template={merge['chat_template']}",
        ]
        arguments += [f"--end_token={model['end_token']}", *([] if model["tgi"] else ["--no_tgi"])]
        _program(config, "merge_model.py", *arguments)
        return dict(json.loads((work / "run.result.json").read_text(encoding="utf-8")))

    section = {**merge, "template": model["template"], "end_token": model["end_token"], "tgi": model["tgi"]}
    section |= determinism.section(config)
    return Stage(
        "merge",
        here / "merged",
        here / ".lock",
        run,
        config=section,
        results={
            "model": (base(config), ()),
            "data": (here / "data", ("train.jsonl",)),
            "adapter": (here / "adapter", ("adapter_*",)),
        },
    )


def _eval(config: dict[str, Any]) -> Stage:
    here, settings, serve = folder(config), config["eval"], config["serve"]
    thresholds = ("min_gain", "max_retention_loss", "concurrency", "judge_key_file")

    def run(work: Path) -> dict[str, Any]:
        from temper.eval import evaluate

        return evaluate.run(config, work, lambda line: print(line, flush=True))

    section = {key: value for key, value in settings.items() if key not in thresholds}
    section["serve"] = {
        key: serve[key] for key in ("engine", "dtype", "quantize", "max_input_tokens", "max_total_tokens")
    }
    watched = []
    if serve["engine"] != "local":
        from temper.images import pinned

        section["serve"]["image"] = pinned.read().get(serve["engine"], {}).get("digest")
        watched.append(pinned.LOCK)
    section |= {"max_new_tokens": settings["max_new_tokens"] or config["ask"]["max_new_tokens"]}
    section |= {"columns": config["data"]["columns"], "system": config["data"]["system"]}
    named = {f"{key}: {settings[key]}": Path(settings[key]) for key in ("checks", "retention") if settings[key]}
    named = {name: path for name, path in named.items() if path.exists()}  # else the body says which is not
    return Stage(
        "eval",
        here / "eval",
        here / ".lock",
        run,
        config=section,
        files=named,
        watched=tuple(watched),
        results={
            "model": (base(config), ()),
            "data": (here / "data", ("eval.jsonl", "checks.jsonl")),
            "merged": (here / "merged", ()),
        },
    )


def _report(config: dict[str, Any]) -> Stage:
    here, bench = folder(config), folder(config) / "bench" / "result.json"

    def run(work: Path) -> dict[str, Any]:
        from temper.report import write

        return write.write(config, work)

    thresholds = {key: config["eval"][key] for key in ("min_gain", "max_retention_loss")}
    return Stage(
        "report",
        here / "report",
        here / ".lock",
        run,
        config={**config["report"], **thresholds, "description": config["description"]},
        files={"bench": bench} if bench.exists() else {},
        results={
            "data": (here / "data", ("report.json",)),
            "adapter": (here / "adapter", ("loss.jsonl",)),
            "merged": (here / "merged", ()),
            "eval": (here / "eval", ()),
        },
    )


def stage(name: str, config: dict[str, Any]) -> Stage:
    """Return one of ORDER for a resolved configuration."""
    made = {
        "model": _model,
        "data": _data,
        "train": _train,
        "merge": _merge,
        "eval": _eval,
        "report": _report,
    }[name](config)
    watched = [*made.watched, *map(Path, config["files"]), state(config["scenario"], config["profile"]) / "settings"]
    if runtime.in_image(config) and name not in ON_HOST:
        from temper.images import pinned

        watched.append(pinned.LOCK)
        made = replace(made, image=runtime.digest(config), tools=lambda: runtime.tools(config, TOOLS))
    where = runtime.describe(config) if name not in ON_HOST else "local"
    return replace(made, watched=tuple(path for path in watched if path.exists()), where=where)


def lock(config: dict[str, Any]) -> Path:
    """Return the lock of the environment the stages run in."""
    return lock_file(config["gpu"])
