"""ROUGE-L over our tokens gives what Lin published and what two other packages give on the same tokens."""

from __future__ import annotations

import csv
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.eval import text

DATA = Path(__file__).resolve().parents[2] / "data"
WORDS = st.lists(st.sampled_from(["赎", "回", "费", "fee", "0.75", "天"]), max_size=12).map(" ".join)


def answers() -> list[str]:
    """Return the shipped answers of two scenarios, Chinese and English."""
    found = []
    for name in ("customer-service", "financial-qa"):
        with open(DATA / name / "rows.csv", encoding="utf-8-sig", newline="") as file:
            found += [row["answer"] for row in csv.DictReader(file)]
    return found[::5]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("营业收入为38.40亿元。", ["营", "业", "收", "入", "为", "38.40", "亿", "元"]),
        ("CNY 1,234.5 million", ["cny", "1,234.5", "million"]),
        ("790, 862；3.", ["790", "862", "3"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("T+1, don't", ["t", "1", "don", "t"]),
        ("ｶﾀかな한글", ["カ", "タ", "か", "な", "한", "글"]),
        ("Straße_É!", ["strasse", "é"]),
        ("365天3kg", ["365", "天", "3", "kg"]),
        ("……？!%", []),
    ],
)
def test_tokens(said: str, expected: list[str]) -> None:
    """Chinese is cut by character, English by word, numbers stay whole, punctuation goes."""
    assert text.tokens(said) == expected


@pytest.mark.parametrize(("said", "value"), [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)])
def test_rouge_l_is_what_lin_published(said: str, value: float) -> None:
    """The two candidates in section 3.1 of Lin (2004) score as printed there."""
    assert text.rouge_l(said, "police killed the gunman") == value


def test_rouge_l_agrees_with_rouge_score() -> None:
    """Google's package, given our tokens, scores the shipped answers alike."""
    with warnings.catch_warnings(action="ignore"):
        from rouge_score import rouge_scorer, tokenizers

    class Ours(tokenizers.Tokenizer):  # type: ignore[misc]
        def tokenize(self, said: str) -> list[str]:
            return text.tokens(said)

    scorer, said = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Ours()), answers()
    scores = [text.rouge_l(one, other) for one, other in pairwise(said)]
    peers = [scorer.score(other, one)["rougeL"].fmeasure for one, other in pairwise(said)]
    assert scores == pytest.approx(peers, abs=1e-12)
    assert len({round(score, 3) for score in scores}) > 20


def test_rouge_l_agrees_with_rouge_chinese() -> None:
    """The package for Chinese scores our tokens alike; it adds 1e-8 below its fraction."""
    with warnings.catch_warnings(action="ignore"):
        from rouge_chinese import Rouge

    said = answers()
    for one, other in pairwise(said):
        peer = Rouge(metrics=["rouge-l"]).get_scores(" ".join(text.tokens(one)), " ".join(text.tokens(other)))
        assert text.rouge_l(one, other) == pytest.approx(peer[0]["rouge-l"]["f"], abs=1e-7)


@given(WORDS, WORDS)
def test_rouge_l_is_symmetric_and_a_share(one: str, other: str) -> None:
    """Either text may be the reference; the score is 0 to 1, and 1 only for equal tokens."""
    score = text.rouge_l(one, other)
    assert score == text.rouge_l(other, one)
    assert 0 <= score <= 1
    assert (score == 1) == (one == other != "")


@pytest.mark.parametrize(("one", "other"), [("赎回费", "管理人"), ("", "赎回费"), ("?!", "?!"), ("gunmen", "gunman")])
def test_nothing_in_common_scores_nothing(one: str, other: str) -> None:
    """Disjoint, empty and tokenless texts score 0, and words are not stemmed."""
    assert text.rouge_l(one, other) == 0


def test_only_width_case_and_punctuation_are_forgiven() -> None:
    """The same words in another width and case score 1; another number does not."""
    assert text.rouge_l("ＮＡＶ为１．２２９６元", "nav 为 1.2296 元。") == 1
    assert text.rouge_l("净值1.2296元", "净值1.2297元") == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("said", "fact", "held"),
    [
        ("签收后１５ 天内", "15天", True),
        ("签收后15天内", "5天", False),
        ("共1,138元。", "138元", False),
        ("满减，138元起", "138元", True),
        ("适合A46 46平方米以内", "46平方米", True),
        ("call 400-000-0955 now", "400-000-0955", True),
        ("call 400-000-09551", "400-000-0955", False),
        ("version 2.15 days", "15 days", False),
        ("it is 18-Month long", "18-month", True),
        ("free of  charge", "free of charge", True),
        ("anything", "", True),
    ],
)
def test_a_fact_stands_whole(said: str, fact: str, held: bool) -> None:
    """Width, case and blanks do not count, but a number is not part of a longer one."""
    assert text.holds(said, fact) is held
