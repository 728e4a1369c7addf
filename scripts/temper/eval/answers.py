"""Whether an answer is right, judged against the scenario's own rows: facts, a number with its unit, or unit tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from temper.errors import DataError
from temper.eval import instructions, numbers, sandbox
from temper.eval.text import holds

REFUSED = "refuse"  # the topic of rows whose right answer declines


def row_for(question: str, checks: Path) -> dict[str, Any]:
    """Return the row of checks.jsonl that asks `question`; DataError when there is none."""
    if not checks.exists():
        raise DataError(f"{checks}: there is none", "take checks out of data.skip")
    for line in checks.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["instruction"] == question:
            return dict(row)
    raise DataError(f"{checks}: no row asks {question!r}", "correct ask.show in the scenario")


def facts(columns: dict[str, Any]) -> list[str]:
    """Return what a right answer holds word for word; nothing when the row names no facts."""
    return [part.strip() for part in str(columns.get("facts") or "").split(";") if part.strip()]


def value(columns: dict[str, Any]) -> str:
    """Return the number that a right answer states; "" when the row has none."""
    text = str(columns.get("value") or "").strip()
    return text if re.fullmatch(r"-?\d+(\.\d+)?", text) else ""


def metric(columns: dict[str, Any]) -> str | None:
    """Return the metric by which a row tells right from wrong; None when its answer can only be compared."""
    if columns.get("tests"):
        return "pass_at_1"
    if facts(columns):
        return "refusal" if columns.get("topic") == REFUSED else "facts"
    if value(columns):
        return "numeric"
    if columns.get("must"):
        return "obeyed"
    return "known" if columns.get("accept") else None


def missing(answer: str, row: dict[str, Any]) -> list[str]:
    """Return what a right answer to `row` must hold and `answer` lacks; empty for a right answer."""
    columns = row["columns"]
    match metric(columns):
        case "pass_at_1":
            outcome = sandbox.passes(answer, columns["tests"])
            return [] if outcome.passed else [outcome.why or "code that passes the row's unit tests"]
        case "facts" | "refusal":
            return [fact for fact in facts(columns) if not holds(answer, fact)]
        case "numeric":
            number, unit = value(columns), str(columns.get("unit") or "")
            return [] if numbers.matches(answer, number, unit) else [f"{number} {unit}".strip()]
        case "obeyed" | "known":
            return _kept(answer, columns)
        case _:
            return [] if holds(answer, row["output"]) else [row["output"]]


def _kept(answer: str, columns: dict[str, Any]) -> list[str]:
    """Return what a row of the retention set wants and the answer lacks: one of the accepted words, and obedience."""
    accepted = columns.get("accept") or []
    known = not accepted or any(holds(answer, word) for word in accepted)
    return [*([] if known else [" / ".join(accepted)]), *instructions.broken(answer, columns.get("must") or {})]


def expected(row: dict[str, Any]) -> str:
    """Say in a few words what a right answer to `row` holds."""
    columns = row["columns"]
    match metric(columns):
        case "pass_at_1":
            return "passes its unit tests"
        case "numeric":
            return f"{value(columns)} {columns.get('unit') or ''}".strip()
        case "facts" | "refusal":
            return ", ".join(facts(columns))
        case _:
            return str(row["output"])
