"""A judge model: its words are read, both orders are asked, and nothing is asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.eval.test_eval_asking import answered
from tests.serve.serving import Running

from temper.eval import judge
from temper.eval.cases import Case
from temper.eval.client import Client

CASES = [
    Case(f"checks-{n:04}", "checks", [{"role": "user", "content": said}], {"output": "tick tock", "columns": {}})
    for n, said in enumerate(("Who are you?", "Write code.", "tick " * 300))
]


@pytest.mark.parametrize(
    ("words", "wins"),
    [("A", 1), ("B", 0), ("T", 0.5), ("Answer: B.", 0), ("**A**", 1), ("", 0.5), ("neither", 0.5), ("答案是 B", 0)],
)
def test_a_verdict_is_read_from_the_judges_words(words: str, wins: float) -> None:
    """The first letter by itself decides; a judge that says something else has not decided."""
    assert judge.read(words) == wins


def test_each_pair_is_asked_in_both_orders_and_once(server: Running, tmp_path: Path) -> None:
    """A real model judges: two requests for each pair, a draw for one that says neither; its opinions are kept."""
    client, path = Client(server.url, "openai", model="tiny"), tmp_path / "run.judge.jsonl"
    replies = {model: {case.id: {"answer": model} for case in CASES} for model in ("base", "tuned")}
    before, said = answered(server), list[str]()
    found = judge.opinions(client, CASES, replies, path, 2, said.append)
    assert found == {"checks-0000": 0.5, "checks-0001": 0.5}  # the third is too long for the judge
    assert answered(server) - before == 2 * len(CASES) - 1
    assert said == ["eval    asks the judge tiny about 3 pairs of answers"]
    assert judge.opinions(client, CASES, replies, path, 2, said.append) == found
    assert answered(server) - before == 2 * len(CASES) - 1
    assert len(said) == 1
