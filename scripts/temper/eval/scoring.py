"""The scores of one answer, each from 0 to 1, and why it is not right."""

from __future__ import annotations

from dataclasses import dataclass, field

from temper.eval import answers, text
from temper.eval.cases import Case


@dataclass(frozen=True)
class Scored:
    """What an answer is worth: `values` by metric, and what it lacks in words."""

    values: dict[str, float]
    lacks: list[str] = field(default_factory=list)


def score(case: Case, answer: str) -> Scored:
    """Score an answer by what its row says is right.

    `score` is what the gate compares: whether the answer is right where the row can tell (facts, a number, unit tests,
    an obeyed instruction), else ROUGE-L with the row's answer.
    """
    kind, lacks = answers.metric(case.row["columns"]), answers.missing(answer, case.row)
    values: dict[str, float] = {}
    if kind != "pass_at_1":
        values["rouge_l"] = text.rouge_l(answer, case.row["output"])
    if kind is None:
        return Scored({"score": values["rouge_l"], **values})
    values = {"correct": float(not lacks), kind: float(not lacks), **values}
    if kind == "facts":
        stated = answers.facts(case.row["columns"])
        values["facts"] = 1 - len(lacks) / len(stated)
    return Scored({"score": values["correct"], **values}, lacks)
