"""Two runs side by side, and the READMEs' table, from results on disk."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_facts import FULL

from temper.errors import ResultError, UsageError
from temper.report import compare, facts, table

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, scores: list[float], **changes: Any) -> Path:
    """Write a run's report and scores: one right or wrong answer to each question."""
    for name in ("report", "eval"):
        (folder / name).mkdir(parents=True)
    (folder / "report" / "metrics.json").write_text(json.dumps({**copy.deepcopy(FULL), **changes}), encoding="utf-8")
    lines = [
        {"set": "checks", "question": f"question {at}", "tuned": {"scores": {"correct": score}}}
        for at, score in enumerate(scores)
    ]
    (folder / "eval" / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_two_runs_are_compared_on_the_questions_both_were_asked(tmp_path: Path) -> None:
    """Means, a paired interval over shared questions, cost, and each setting that differs; equal ones are left out."""
    settings = {"train.learning_rate": 0.001, "train.lora_rank": 8}
    one = run(tmp_path / "one", [0, 0, 1, 1], settings=settings, sets={"checks": {}})
    other = run(tmp_path / "two", [1, 1, 1], settings={**settings, "train.lora_rank": 16}, sets={"checks": {}})
    page = list(compare.lines(compare.load(str(one)), compare.load(str(other))))
    assert "| checks: correct (3) | 0.333 | 1.000 | +0.667 (+0.000 to +1.000) |" in page
    assert "| train.lora_rank | 8 | 16 | |" in page
    assert not any("learning_rate" in line for line in page)
    assert sum("training, s" in line for line in page) == 1


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    """No name, and a folder without a report, are errors with the command that helps."""
    with pytest.raises(UsageError, match="needs two runs; make compare A="):
        compare.load(" ")
    with pytest.raises(ResultError, match="no report is there; run: make report"):
        compare.load(str(tmp_path))


def test_the_table_holds_runs_and_says_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scenario and profile has a row, a run's with its figures; written twice it is the same, in both READMEs."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in table.WORDS:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(table, "BUILD", tmp_path / "build")
    run(tmp_path / "build" / "financial-qa" / "cpu", [1.0])
    assert table.write() == ["table   README.md updated", "table   README.zh-CN.md updated"]
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition(table.BEGIN)[2].partition(table.END)[0].splitlines() if "|" in line]
    assert len(rows) == 2 + 3 * 2
    [made] = [row for row in rows if "financial-qa | cpu" in row]
    seconds = f"{FULL['training']['seconds']:.0f} s"
    assert seconds in made
    assert f"{FULL['verdict']['gain']:+.0%}" in made
    assert sum("no run yet" in row for row in rows) == 5
    assert table.write()[0] == "table   README.md is current"
    assert (tmp_path / "README.zh-CN.md").read_text(encoding="utf-8").count("尚未运行") == 5 * 5


def test_a_readme_without_the_marks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to put where."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UsageError, match="place is not marked; put <!-- make table: begin -->"):
        table.write()


def test_the_most_changed_answers_come_first() -> None:
    """Answers are ranked by score, then by ROUGE-L, then by likelihood; those that did not change are left out."""

    def line(name: str, base: dict[str, float], tuned: dict[str, float]) -> dict[str, Any]:
        answers = {model: {"answer": model, "scores": scores, "lacks": [f"{model} lacks"]}
                   for model, scores in (("base", base), ("tuned", tuned))}  # fmt: skip
        return {"id": name, "set": "checks", "question": "q", "expected": "e", **answers}

    wrong, right = {"score": 0.0, "rouge_l": 0.2, "loss": 2.0}, {"score": 1.0, "rouge_l": 0.9, "loss": 0.5}
    scores = [
        line("same", wrong, {**wrong, "loss": 1.0}),
        line("closer", wrong, {**wrong, "rouge_l": 0.5}),
        line("right", wrong, right),
        line("likelier", wrong, {**right, "loss": 0.1}),
        line("worse", right, wrong),
    ]
    assert [row["id"] for row in facts._changed(scores, -1)] == ["likelier", "right", "closer"]
    [damaged] = facts._changed(scores, 1)
    assert (damaged["id"], damaged["why"], damaged["base_score"]) == ("worse", "tuned lacks", 1.0)
