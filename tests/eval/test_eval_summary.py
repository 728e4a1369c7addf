"""A perfect and a useless model score as they should, and the gate follows from their figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from temper.config import resolve
from temper.errors import EvalError, ResultError
from temper.eval import cases, summary, verdict
from temper.eval.asking import Reply
from temper.eval.cases import Case

ROOT = Path(__file__).resolve().parents[2]
THRESHOLDS = {"min_gain": 0.0, "max_retention_loss": 0.1}
SCENARIOS = ("customer-service", "code-generation", "financial-qa")


def asked(scenario: str, folder: Path) -> list[Case]:
    """Return the shipped checks and retention rows of a scenario."""
    (folder / "eval.jsonl").touch()
    return cases.gather(resolve.resolve(scenario, "gpu-24g"), folder)


def reply(case: Case, answer: str, nats: float | None = 2.0) -> Reply:
    """Return a server's reply to a case."""
    return {
        "id": case.id,
        "answer": answer,
        "tokens": len(answer),
        "finish_reason": "stop",
        "seconds": 0.5,
        "nats": nats,
        "answer_tokens": 4 if nats is not None else None,
        "error": "",
    }


def measured(found: list[Case], base: dict[str, Reply], tuned: dict[str, Reply]) -> dict[str, Any]:
    """Return the table of two models' replies."""
    scores = summary.score(found, {"base": base, "tuned": tuned}, {}, lambda _: None)
    return summary.metrics(scores)


def metric(table: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    """Return one line of a set's table."""
    return next(line for line in table["sets"][part]["metrics"] if line["name"] == name)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_right_answers_are_perfect_and_silence_is_useless(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric of right and wrong is 1 for the reference answers and 0 for none, so the gain is 1 and certain."""
    monkeypatch.chdir(ROOT)
    found = asked(scenario, tmp_path)
    right = {case.id: reply(case, case.row["output"], 0.4) for case in found}
    silent = {case.id: reply(case, "") for case in found}
    table = measured(found, silent, right)
    for part in ("checks", "retention"):
        for name in [line["name"] for line in table["sets"][part]["metrics"] if line["better"] == "higher"]:
            line = metric(table, part, name)
            assert (line["base"], line["tuned"], line["difference"]) == (0, 1, 1), (part, name)
    kinds = {"customer-service": {"facts", "refusal"}, "code-generation": {"pass_at_1"}, "financial-qa": {"numeric"}}
    assert {line["name"] for line in table["sets"]["checks"]["metrics"]} >= kinds[scenario] | {"correct", "loss"}
    assert table["gain"] == {"value": 1, "low": 1, "high": 1, "cases": table["sets"]["checks"]["cases"]}
    assert verdict.of(table, THRESHOLDS)["passed"]


def test_a_model_that_forgot_fails_though_it_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right on the checks, silent on the retention set: the gain passes, the loss does not, and the error says so."""
    monkeypatch.chdir(ROOT)
    found = asked("customer-service", tmp_path)
    base = {case.id: reply(case, case.row["output"] if case.set == "retention" else "") for case in found}
    tuned = {case.id: reply(case, "" if case.set == "retention" else case.row["output"]) for case in found}
    judged = verdict.of(measured(found, base, tuned), THRESHOLDS)
    assert (judged["passed"], judged["gain"], judged["retention_loss"]) == (False, 1, 1)
    with pytest.raises(EvalError, match=r"^1.000 of the retention score is lost: more than eval.max_retention_loss"):
        verdict.refuse_failed(judged)
    assert verdict.of(measured(found, base, tuned), {**THRESHOLDS, "max_retention_loss": 1.0})["passed"]


def test_the_same_answers_are_no_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned model that answers as its base does gains nothing, and does not pass; nor has it forgotten anything."""
    monkeypatch.chdir(ROOT)
    found = asked("financial-qa", tmp_path)
    same = {case.id: reply(case, case.row["output"] if at % 2 else "no") for at, case in enumerate(found)}
    judged = verdict.of(measured(found, same, same), THRESHOLDS)
    assert (judged["passed"], judged["gain"], judged["retention_loss"]) == (False, 0, 0)
    assert math.copysign(1, judged["retention_loss"]) == 1


def row(**columns: Any) -> Case:
    """Return a case with these columns."""
    fields = {"instruction": "q", "input": "", "output": "the answer is 21 days, free", "columns": columns}
    return Case(f"checks-{len(columns)}", "checks", [{"role": "user", "content": "q"}], fields)


def test_figures_are_means_over_the_cases_that_have_them() -> None:
    """Half the facts are half of `facts` and not `correct`; perplexity is exp of nats per token over all of them."""
    one, other = row(facts="21 days;free"), row(facts="21 days", lang="en")
    base = {one.id: reply(one, "x", 8.0), other.id: {**reply(other, "x", None), "error": "too long"}}
    tuned = {one.id: reply(one, "in 21 days", 4.0), other.id: reply(other, "21 days", 6.0)}
    table = measured([one, other], base, tuned)
    assert metric(table, "checks", "facts")["tuned"] == 0.75
    assert metric(table, "checks", "correct")["tuned"] == 0.5
    assert metric(table, "checks", "loss") | {"low": 0, "high": 0} == {
        "name": "loss", "better": "lower", "cases": 1, "base": 2, "tuned": 1, "difference": -1, "low": 0, "high": 0,
    }  # fmt: skip
    assert metric(table, "checks", "perplexity")["base"] == pytest.approx(math.exp(2), rel=1e-4)
    assert metric(table, "checks", "answer_tokens")["cases"] == 1
    assert summary.figures(table)["eval/checks/facts/tuned"] == 0.75


def test_rows_that_name_no_facts_are_compared_with_their_answer() -> None:
    """Where nothing tells right from wrong the score is ROUGE-L, and no share of right answers is claimed."""
    case = row()
    table = measured([case], {case.id: reply(case, "nothing")}, {case.id: reply(case, "the answer is 21 days, free")})
    assert metric(table, "checks", "score")["tuned"] == 1
    assert "correct" not in {line["name"] for line in table["sets"]["checks"]["metrics"]}
    assert table["gain"]["value"] == 1
    assert table["retention_loss"] is None
    assert verdict.of(table, THRESHOLDS)["retention_loss"] is None


def test_a_judge_shares_a_point_between_the_answers() -> None:
    """What the judge gives the tuned answer, the base answer does not get."""
    case = row(facts="21 days")
    replies = {model: {case.id: reply(case, "21 days")} for model in summary.MODELS}
    table = summary.metrics(summary.score([case], replies, {case.id: 1.0}, lambda _: None))
    assert metric(table, "checks", "judge") == {
        "name": "judge", "better": "higher", "cases": 1, "base": 0, "tuned": 1, "difference": 1, "low": 1, "high": 1,
    }  # fmt: skip


def test_latency_is_of_the_answers_that_came() -> None:
    """Median, 95th percentile and tokens per second leave refused questions out."""
    case = row()
    came = [{**reply(case, "x" * 10), "seconds": seconds} for seconds in (1.0, 2.0, 3.0)]
    assert summary.latency([*came, {**reply(case, ""), "seconds": None}]) == {
        "median_s": 2.0, "p95_s": 2.9, "tokens_per_second": 5.0,
    }  # fmt: skip
    assert summary.latency([]) is None


def test_no_evaluation_is_an_error_with_the_goal(tmp_path: Path) -> None:
    """The gate without a result names make eval."""
    with pytest.raises(ResultError, match=r"there is no evaluation; run: make eval"):
        verdict.measured(tmp_path)
