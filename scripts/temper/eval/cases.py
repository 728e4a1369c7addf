"""What both models are asked: the rows held out, the scenario's own check set, and the retention set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from temper.errors import DataError

SETS = ("heldout", "checks", "retention")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Case:
    """One conversation to be answered, and the row that says what is right."""

    id: str  # set and place in it: "checks-0007"
    set: str
    messages: list[dict[str, str]]  # up to the last question
    row: dict[str, Any] = field(hash=False)  # instruction, input, output, columns


def spread(rows: Sequence[Row], most: int | None) -> list[Row]:
    """Return at most so many rows, evenly spaced, so that what stands in order of kind or language stays mixed."""
    if most is None or most >= len(rows):
        return list(rows)
    return [rows[at * len(rows) // most] for at in range(most)]


def gather(config: dict[str, Any], data: Path) -> list[Case]:
    """Return the cases of all sets, in their order; DataError when neither rows nor checks are there to ask.

    `data` is the data stage's result; the row limit eval.max_rows is of each set.
    """
    settings, columns = config["eval"], config["data"]["columns"]
    rows = {
        "heldout": _held_out(data),
        "checks": _own(settings["checks"], columns),
        "retention": _own(settings["retention"], {}),
    }
    if not rows["heldout"] and not rows["checks"]:
        raise DataError(
            "there is nothing to ask: no rows are held out, and there is no check set",
            "raise data.eval_share, or name a file in eval.checks",
        )
    system = config["data"]["system"]
    return [
        Case(f"{name}-{at:04}", name, _messages(row, system if name != "retention" else None), row)
        for name in SETS
        for at, row in enumerate(spread(rows[name], settings["max_rows"]))
    ]


def _held_out(data: Path) -> list[dict[str, Any]]:
    """Return the rows held out, with their further columns where checks.jsonl keeps them."""
    checks = data / "checks.jsonl"
    if checks.exists():
        return [row for row in _lines(checks) if row["split"] == "eval"]
    rows = _lines(data / "eval.jsonl") if (data / "eval.jsonl").exists() else []
    return [{"columns": {}, **row, **_last_turn(row)} for row in rows]


def _last_turn(row: dict[str, Any]) -> dict[str, str]:
    """Return question and answer of a row of several turns."""
    if "messages" not in row:
        return {}
    return {"instruction": row["messages"][-2]["content"], "input": "", "output": row["messages"][-1]["content"]}


def _own(path: str | None, columns: dict[str, str | None]) -> list[dict[str, Any]]:
    """Return a file of rows in the form of checks.jsonl; its columns are named as the scenario's, or as in Alpaca's."""
    if not path:
        return []
    found = []
    for number, row in enumerate(_lines(Path(path)), 1):
        fields = {name: str(row.get(columns.get(name) or name, "")) for name in ("instruction", "input", "output")}
        if not fields["instruction"].strip():
            named = columns.get("instruction") or "instruction"
            raise DataError(f"{path}:{number}: no {named}", "each line asks something")
        found.append({**fields, "system": str(row.get("system", "")), "columns": row})
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; DataError names the line that is none."""
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "correct eval.checks or eval.retention") from None
    for number, line in enumerate(lines, 1):
        try:
            found += [dict(json.loads(line))] if line.strip() else []
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}", "each line is one JSON object") from None
    return found


def _messages(row: dict[str, Any], system: str | None) -> list[dict[str, str]]:
    if "messages" in row:
        return [{"role": said["role"], "content": said["content"]} for said in row["messages"][:-1]]
    asked = "\n".join(filter(None, (row["instruction"], row["input"])))
    said = row.get("system") or system
    return [*([{"role": "system", "content": said}] if said else []), {"role": "user", "content": asked}]
