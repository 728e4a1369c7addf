"""docs/data.md lists what the data stage knows."""

from __future__ import annotations

from pathlib import Path

from temper.data.options import STEPS
from temper.data.reasons import REASONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_reason_stands_there_with_its_remedy() -> None:
    """The table of reasons is the code's own, in its order."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.split(" | ")[0][2:] in REASONS]
    assert rows == [f"| {code} | {reason.text} | {reason.remedy} |" for code, reason in REASONS.items()]


def test_every_step_stands_there() -> None:
    """Each step but writing has a row, in the order they are done."""
    rows = [line.split(" | ")[0][2:] for line in PAGE.splitlines() if line.startswith("| ")]
    assert [name for name in rows if name in STEPS] == [step for step in STEPS if step != "write"]
