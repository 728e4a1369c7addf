"""Which questions are asked: rows held out, the scenario's checks, and the retention set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from temper.errors import DataError
from temper.eval import cases

ROOT = Path(__file__).resolve().parents[2]


def config(**settings: Any) -> dict[str, Any]:
    """Return what of a configuration is read here."""
    columns = {"instruction": "question", "input": None, "output": "answer"}
    return {
        "eval": {"checks": None, "retention": None, "max_rows": None, **settings},
        "data": {"columns": columns, "system": "Be brief."},
    }


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_sets_come_in_order_with_their_system_prompts(tmp_path: Path) -> None:
    """Held-out rows, then the checks by the scenario's columns, then the retention set without a prompt."""
    row = {"input": "", "output": "b", "system": "", "columns": {"facts": "b"}}
    written(
        tmp_path / "checks.jsonl",
        {"instruction": "a?", "split": "train", **row},
        {"instruction": "b?", "split": "eval", **row},
    )
    own = written(tmp_path / "own.jsonl", {"id": "x", "question": "c?", "answer": "d", "value": 3})
    kept = written(tmp_path / "kept.jsonl", {"instruction": "e?", "input": "f", "output": "g", "must": {"lines": 1}})
    found = cases.gather(config(checks=str(own), retention=str(kept)), tmp_path)
    assert [case.id for case in found] == ["heldout-0000", "checks-0000", "retention-0000"]
    assert [case.messages[-1]["content"] for case in found] == ["b?", "c?", "e?\nf"]
    assert [len(case.messages) for case in found] == [2, 2, 1]
    assert found[0].messages[0] == {"role": "system", "content": "Be brief."}
    assert found[1].row["output"] == "d"
    assert found[1].row["columns"]["value"] == 3


def test_rows_without_checks_are_read_from_the_split(tmp_path: Path) -> None:
    """Where the data stage wrote no checks.jsonl, eval.jsonl is asked, several turns and all."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"instruction": "x", "input": "", "output": "y", "system": "s"}]
    written(tmp_path / "eval.jsonl", *rows, {"messages": [*said, {"role": "assistant", "content": "d"}]})
    one, several = cases.gather(config(), tmp_path)
    assert one.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    assert several.messages == said
    assert several.row["output"] == "d"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"own.jsonl:1: .*; each line is one JSON object"),
        ('{"answer": "x"}\n', r"own.jsonl:1: no question; each line asks something"),
        (None, r"there is no such file; correct eval.checks"),
    ],
)
def test_a_check_set_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    """File, line and remedy stand in the error."""
    if content is not None:
        (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        cases.gather(config(checks=str(tmp_path / "own.jsonl")), tmp_path)


def test_nothing_to_ask_is_an_error(tmp_path: Path) -> None:
    """Without held-out rows and checks no gain can be measured, and the error says what to change."""
    with pytest.raises(DataError, match=r"nothing to ask.*raise data.eval_share, or name a file in eval.checks"):
        cases.gather(config(), tmp_path)


@pytest.mark.parametrize(
    ("count", "most", "found"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (6, 3, [0, 2, 4]), (60, 1, [0])],
)
def test_a_limit_takes_rows_from_the_whole_file(count: int, most: int | None, found: list[int]) -> None:
    """Fewer rows are evenly spaced, never more than there are."""
    assert cases.spread(range(count), most) == found


def test_the_shipped_sets_of_every_scenario_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scenario's own check set and the retention set are read as they ship, by the scenario's columns."""
    from temper.config import resolve

    monkeypatch.chdir(ROOT)
    (tmp_path / "eval.jsonl").touch()
    for scenario in ("customer-service", "code-generation", "financial-qa"):
        found = cases.gather({**resolve.resolve(scenario, "gpu-24g")}, tmp_path)
        counts = {name: sum(case.set == name for case in found) for name in cases.SETS}
        assert counts["checks"] >= 16
        assert counts["retention"] == 60
        assert all(case.row["output"] and case.messages for case in found)
