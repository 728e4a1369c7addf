"""Everything a report says about a run, read from the results of its stages and from their run.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper import __version__, pipeline, stage
from temper.eval import verdict

Facts = dict[str, Any]
SHOWN = 10  # most improved, and most damaged answers
STAGES = ("data", "train", "merge", "eval")


def gather(config: dict[str, Any]) -> Facts:
    """Return the facts of a scenario and profile, as page.render and card.card take them."""
    here, model = pipeline.folder(config), config["model"]
    made = {name: pipeline.stage(name, config).result for name in ("model", *STAGES)}
    measured = verdict.measured(made["eval"])
    scores = [json.loads(line) for line in _text(made["eval"] / "scores.jsonl").splitlines()]
    manifests = {name: stage.manifest(result) for name, result in made.items()}
    return {
        "scenario": config["scenario"],
        "profile": config["profile"],
        "description": config["description"],
        "model": {
            **{key: model[key] for key in ("name", "parameters", "licence")},
            "repository": model["source"].get("huggingface"),
        },
        "verdict": verdict.of(measured, config["eval"]),
        "sets": measured["sets"],
        "groups": measured["groups"],
        "improved": _changed(scores, -1),
        "damaged": _changed(scores, 1),
        "loss_curve": [json.loads(line) for line in _text(made["train"] / "loss.jsonl").splitlines()],
        "data": _data(json.loads(_text(made["data"] / "report.json") or "{}")),
        "training": _training(made["train"], manifests["train"]),
        "evaluation": _evaluation(made["eval"]),
        "bench": _bench(here / "bench" / "result.json"),
        "provenance": list(_provenance(manifests)),
        "versions": {"temper": __version__, **manifests["train"]["tools"]},
        "settings": {
            f"train.{key}": value for key, value in sorted(manifests["train"]["made_from"]["config"]["train"].items())
        },
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _run(result: Path) -> dict[str, Any]:
    return dict(json.loads(_text(result / "run.json") or "{}"))


def _changed(scores: list[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """Return the answers that changed most for the better (-1) or the worse (1), by the score, then ROUGE-L.

    Of two that changed alike the one whose likelihood changed more stands first.
    """

    def change(line: dict[str, Any]) -> tuple[float, ...]:
        names = ("score", "rouge_l", "loss")
        base, tuned = (line[model]["scores"] for model in ("base", "tuned"))
        moved = [tuned.get(name, 0.0) - base.get(name, 0.0) for name in names]
        return (sign * moved[0], sign * moved[1], -sign * moved[2])

    ranked = sorted((line for line in scores if change(line)[:2] < (0.0, 0.0)), key=change)
    return [
        {
            **{key: line[key] for key in ("id", "set", "question", "expected")},
            "base": line["base"]["answer"],
            "tuned": line["tuned"]["answer"],
            "base_score": line["base"]["scores"]["score"],
            "tuned_score": line["tuned"]["scores"]["score"],
            "why": "; ".join(line["tuned" if sign > 0 else "base"]["lacks"]),
        }
        for line in ranked[:SHOWN]
    ]


def _data(report: dict[str, Any]) -> dict[str, Any]:
    tokens = report.get("tokens") or {}
    counted = [tokens[side]["sum"] for side in ("train", "eval") if tokens.get(side)]
    return {
        **{key: report.get(key) for key in ("read", "rejected", "duplicates", "train", "eval")},
        "conflicts": (report.get("conflicts") or {}).get("questions"),
        "tokens": sum(counted) if counted else None,
    }


def _training(result: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    run, train = _run(result), manifest["made_from"]["config"]["train"]
    seconds, tokens = run.get("steps_seconds"), run.get("tokens")
    return {
        "seconds": run.get("seconds"),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if tokens and seconds else None,
        "peak_bytes": run.get("peak_bytes"),
        "energy_joules": run.get("energy_joules"),
        "samples": train.get("max_samples"),
        "epochs": train.get("num_train_epochs"),
        "threads": run.get("threads"),
        "device": run.get("device"),
    }


def _evaluation(result: Path) -> dict[str, Any]:
    run = _run(result)
    return {"seconds": run.get("seconds"), "asked": run.get("asked"), "latency": run.get("latency") or {}}


def _bench(path: Path) -> list[dict[str, Any]] | None:
    """Return what `make bench` measured last for this scenario and profile."""
    try:
        levels = json.loads(path.read_text(encoding="utf-8"))["levels"]
    except (OSError, ValueError):
        return None
    return [
        {
            "server": level["server"],
            "users": level["users"],
            "first_token_s": level["first_median"],
            "first_token_p95_s": level["first_p95"],
            "gap_ms": None if level["gap_median"] is None else 1000 * level["gap_median"],
            "tokens_per_second": level["tokens_per_s"],
        }
        for level in levels
    ]


def _provenance(manifests: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give each file of each result with its digest, and what environment made it."""
    for name, manifest in manifests.items():
        for what, known in manifest["outputs"].items():
            yield {"stage": name, "what": what, "sha256": known["sha256"], "size": known["size"]}
        made_from = manifest["made_from"]
        for what in ("lock", "image"):
            if digest := made_from[what]:
                yield {"stage": name, "what": what, "sha256": digest.removeprefix("sha256:"), "size": None}
