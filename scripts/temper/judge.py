"""Whether an answer is right, judged against the scenario's own rows."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from temper.errors import DataError


def fold(text: str) -> str:
    """Return text without what does not change a fact: width, case and blanks."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def row_for(question: str, checks: Path) -> dict[str, Any]:
    """Return the row of checks.jsonl that asks `question`; DataError when there is none."""
    for line in checks.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["instruction"] == question:
            return dict(row)
    raise DataError(f"{checks}: no row asks {question!r}", "correct ask.show in the scenario")


def expected(row: dict[str, Any]) -> list[str]:
    """Return what a right answer must hold: the row's facts where it has any, else its whole answer."""
    columns = row["columns"]
    if facts := [part.strip() for part in str(columns.get("facts") or "").split(";") if part.strip()]:
        return facts
    return [row["output"]]


def missing(answer: str, row: dict[str, Any]) -> list[str]:
    """Return the facts of `row` that `answer` lacks; empty for a right answer."""
    return [fact for fact in expected(row) if fold(fact) not in fold(answer)]
