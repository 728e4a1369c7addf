"""Obedience that a program can check: each constraint tells an answer that keeps it from one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from temper.errors import DataError
from temper.eval.instructions import KINDS, broken

# constraint, answers that obey, answers that do not
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"contains": ["春天", "花"]}, ["春天里花开了"], ["春天来了", "花"]),
    ({"contains": ["New York"]}, ["in new\nyork", "ＮＥＷ ＹＯＲＫ"], ["York"]),
    ({"excludes": ["sand", "sea"]}, ["a beach"], ["Sand!", "the sea"]),
    ({"starts_with": "您好，"}, ["您好,请坐", " 您好，"], ["好，您好，"]),
    ({"ends_with": "goodbye."}, ["Well, goodbye.\n"], ["goodbye", "goodbye. Bye"]),
    ({"lines": 2}, ["a\n\nb\n"], ["a", "a\nb\nc"]),
    ({"bullets": 2}, ["- a\n  * b", "Two:\n1. a\n2) b"], ["- a", "- a\n- b\n- c", "a\nb"]),
    ({"max_words": 3}, ["don't well-known 3", "一二三四"], ["one two three 4"]),
    ({"max_chars": 4}, ["  蓝色的。 "], ["蓝色的天。"]),
    ({"min_chars": 3}, ["abc"], ["ab ", " "]),
    ({"lower": True}, ["all lower 1."], ["One"]),
    ({"upper": True}, ["GREEN 1."], ["GREEn"]),
    ({"json": True}, ['{"a": 1}', "Here:\n```json\n[1]\n```\nDone."], ["{'a': 1}", "a", "```\n1\n```\n```\n2\n```"]),
    ({"keys": ["a", "b"]}, ['{"a": 1, "b": 2, "c": 3}', '```\n{"a":1,"b":2}\n```'], ['{"a": 1}', '["a", "b"]', '"ab"']),
    ({"language": "zh"}, ["我喜欢秋天，2025。", "这是一个关于苹果的故事 a"], ["I like 秋天", "123", "わたしです"]),
    ({"language": "en"}, ["Café, 2025!", "It is autumn today 秋"], ["我喜欢 autumn", "123"]),
    ({"count": {"echo": 2}}, ["Echo echo", "echo, echoes, echo"], ["echo", "echo echo echo", "echoecho"]),
    ({"count": {"好": 3}}, ["好好好", "好，好，好"], ["好好", "好好好好"]),
]


@pytest.mark.parametrize(("must", "good", "bad"), CASES, ids=[str(must) for must, _, _ in CASES])
def test_each_constraint_tells_good_from_bad(must: dict[str, Any], good: list[str], bad: list[str]) -> None:
    """An answer that obeys breaks nothing; one that does not breaks that constraint, which is named."""
    assert [answer for answer in good if broken(answer, must)] == []
    (name,) = must
    for answer in bad:
        assert [text.split(":")[0] for text in broken(answer, must)] == [name], answer


def test_every_constraint_is_tried_above() -> None:
    """No constraint is left without a case."""
    assert {name for must, _, _ in CASES for name in must} == set(KINDS)


def test_every_broken_constraint_is_named_with_what_was_wanted() -> None:
    """Several constraints are judged each for itself, in their order; none asks nothing."""
    assert broken("Five words are in here", {"max_words": 4, "min_chars": 5, "lower": True}) == [
        "max_words: 4",
        "lower: True",
    ]
    assert broken("anything", {}) == []


@pytest.mark.parametrize("must", [must for must, _, _ in CASES], ids=str)
def test_an_empty_answer_obeys_nothing(must: dict[str, Any]) -> None:
    """Saying nothing breaks every constraint, even those on what must not be said."""
    assert len(broken(" \n", must)) == 1


@pytest.mark.parametrize(
    ("must", "where"), [({"max_letters": 3}, "max_letters"), ({"language": "fr"}, "fr"), ({"max_chars": "9"}, "'9'")]
)
def test_a_constraint_that_cannot_be_checked_is_refused(must: dict[str, Any], where: str) -> None:
    """An unknown constraint and an impossible value are errors in the data, whatever the answer, and are named."""
    for answer in ("", "answer"):
        with pytest.raises(DataError, match=where):
            broken(answer, must)
