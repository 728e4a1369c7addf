"""Two runs side by side, as a Markdown table: what each scored, what it cost, and what was set otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper.errors import ResultError, UsageError
from temper.eval import intervals
from temper.paths import BUILD

Run = dict[str, Any]


def load(named: str) -> Run:
    """Return a run's facts and its scores by question; `named` is build/SCENARIO/PROFILE, or SCENARIO/PROFILE.

    Raises UsageError for no name, ResultError where there is no report.
    """
    if not named.strip():
        raise UsageError(
            "make compare needs two runs", "make compare A=customer-service/cpu B=build-2/customer-service/cpu"
        )
    found = [path for path in (Path(named), BUILD / named) if (path / "report" / "metrics.json").is_file()]
    if not found:
        raise ResultError(f"{named}: no report is there", "run: make report SCENARIO=… PROFILE=…")
    facts = json.loads((found[0] / "report" / "metrics.json").read_text(encoding="utf-8"))
    lines = (found[0] / "eval" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    scores = {(line["set"], line["question"]): line["tuned"]["scores"] for line in map(json.loads, lines)}
    return {**facts, "scores": scores}


def lines(a: Run, b: Run) -> Iterator[str]:
    """Give the page line by line; differences are B less A over the questions that both were asked."""
    yield "| | A | B | B - A, 95 % interval |"
    yield "|---|---|---|---|"
    yield f"| run | {_named(a)} | {_named(b)} | |"
    yield f"| base model | {a['model']['name']} | {b['model']['name']} | |"
    yield f"| verdict | {_verdict(a)} | {_verdict(b)} | |"
    yield f"| gain over the base | {a['verdict']['gain']:+.3f} | {b['verdict']['gain']:+.3f} | |"
    for name in dict.fromkeys([*a["sets"], *b["sets"]]):
        yield from _scores(name, a, b)
    for key, label in (
        ("seconds", "training, s"),
        ("tokens_per_second", "tokens/s"),
        ("peak_bytes", "peak memory, bytes"),
    ):
        yield f"| {label} | {_cell(a['training'].get(key))} | {_cell(b['training'].get(key))} | |"
    for key in sorted({*a["settings"], *b["settings"]}):
        one, other = (json.dumps(run["settings"].get(key), ensure_ascii=False) for run in (a, b))
        if one != other:
            yield f"| {key} | {one} | {other} | |"
    inputs = [{(row["stage"], row["what"]): row["sha256"] for row in run["provenance"]} for run in (a, b)]
    for stage, what in sorted({*inputs[0]} & {*inputs[1]}):
        one, other = (known[stage, what] for known in inputs)
        if one != other and stage in ("model", "data"):
            yield f"| {stage}: {what} | {one[:12]} | {other[:12]} | |"


def _scores(name: str, a: Run, b: Run) -> Iterator[str]:
    both = [key for key in a["scores"] if key[0] == name and key in b["scores"]]
    metrics = dict.fromkeys(metric for key in both for metric in a["scores"][key])
    for metric in metrics:
        had = [key for key in both if metric in a["scores"][key] and metric in b["scores"][key]]
        if had:
            one, other = ([run["scores"][key][metric] for key in had] for run in (a, b))
            found = intervals.paired(one, other)
            values = f"{sum(one) / len(had):.3f} | {sum(other) / len(had):.3f}"
            yield (
                f"| {name}: {metric} ({len(had)}) | {values} | "
                f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}) |"
            )


def _named(run: Run) -> str:
    return f"{run['scenario']}, {run['profile']}"


def _verdict(run: Run) -> str:
    return "passed" if run["verdict"]["passed"] else "failed"


def _cell(value: Any) -> str:
    return "not measured" if value is None else f"{value:,}"
