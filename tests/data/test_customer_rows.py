"""The shipped customer-service rows: consistent facts in two languages, from which an answer can be judged."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from temper.eval import answers, text

Row = dict[str, str]

FOLDER = Path(__file__).resolve().parents[2] / "data" / "customer-service"
COLUMNS = ["id", "question", "answer", "topic", "lang", "facts"]
HAN = re.compile(r"[\u4e00-\u9fff]")
# How numbers are written where the other language has figures.
WORDS = {"one extra year": "1", "one coupon": "1", "twice": "2", "march": "3"}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return every row as text."""
    with open(FOLDER / "rows.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def facts(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Return the first Chinese and the first English row of each fact: one answer after the other in the file."""
    firsts = [rows[0]] + [row for before, row in pairwise(rows) if row["answer"] != before["answer"]]
    return list(zip(firsts[::2], firsts[1::2], strict=True))


def numbers(text: str) -> list[int]:
    """Return the numbers a text states, in order of size; 92折 is 8 percent off."""
    text = re.sub(r"(\d+)折", lambda found: str(100 - int(found[1])), text)
    text = re.sub(
        "|".join(rf"\b{word}\b" for word in WORDS), lambda found: WORDS[found[0].lower()], text, flags=re.IGNORECASE
    )
    return sorted(map(int, re.findall(r"\d+", text)))


def test_there_are_at_least_240_different_questions(rows: list[Row]) -> None:
    """There are 240 rows or more, and no id or question comes twice, however it is spaced or cased."""
    assert len(rows) >= 240
    assert [row["id"] for row in rows] == [f"cs-{number:04}" for number in range(1, len(rows) + 1)]
    assert [text for text, n in Counter(text.fold(row["question"]) for row in rows).items() if n > 1] == []


def test_file_is_plain_utf8_csv(rows: list[Row]) -> None:
    """The file is UTF-8 without BOM, with LF, and is what a CSV writer makes of its rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert (FOLDER / "rows.csv").read_bytes() == text.getvalue().encode("utf-8")


def test_both_languages_are_there(rows: list[Row]) -> None:
    """Each language has two fifths of the rows or more, and each answer is in the language its row names."""
    share = sum(row["lang"] == "zh" for row in rows) / len(rows)
    assert 0.4 <= share <= 0.6
    assert [row["id"] for row in rows if bool(HAN.search(row["answer"])) != (row["lang"] == "zh")] == []
    mixed = [row["id"] for row in rows if row["lang"] == "en" and HAN.search(row["question"])]
    assert 1 <= len(mixed) <= 10  # as real customers write


def test_every_fact_stands_literally_in_its_answer(rows: list[Row]) -> None:
    """Each row has facts, each is a part of its answer letter for letter, and the judge takes the answer as right."""
    for row in rows:
        parts = row["facts"].split(";")
        assert all(parts), row["id"]
        assert [part for part in parts if part not in row["answer"]] == [], row["id"]
        assert answers.missing(row["answer"], {"output": row["answer"], "columns": row}) == [], row["id"]


def test_the_same_fact_is_always_answered_the_same(rows: list[Row]) -> None:
    """Rows that share their facts share their answer word for word, and each answer has two or three questions."""
    answers = defaultdict(set)
    for row in rows:
        answers[row["lang"], row["facts"]].add(row["answer"])
    assert {key: said for key, said in answers.items() if len(said) > 1} == {}
    assert set(Counter(row["answer"] for row in rows).values()) == {2, 3}


def test_both_languages_state_the_same_numbers(facts: list[tuple[Row, Row]]) -> None:
    """Each fact has one Chinese and one English answer, on the same topic and with the same numbers."""
    for chinese, english in facts:
        assert (chinese["lang"], english["lang"]) == ("zh", "en")
        assert chinese["topic"] == english["topic"]
        assert numbers(chinese["answer"]) == numbers(english["answer"]), (chinese["id"], english["id"])


def test_a_changed_number_is_caught(facts: list[tuple[Row, Row]]) -> None:
    """The comparison of languages notices every answer in which one figure is changed."""
    changed = [(chinese, english) for chinese, english in facts if re.search(r"\d", chinese["answer"])]
    assert len(changed) > 30
    for chinese, english in changed:
        wrong = re.sub(r"\d", lambda found: str((int(found[0]) + 1) % 10), chinese["answer"], count=1)
        assert numbers(wrong) != numbers(english["answer"]), chinese["id"]


def test_an_answer_to_another_question_is_judged_wrong(facts: list[tuple[Row, Row]]) -> None:
    """No answer passes as right for a fact that is not its own, in either language."""
    firsts = [row for pair in facts for row in pair]
    for row in firsts:
        asked = {"output": row["answer"], "columns": row}
        passing = [other["id"] for other in firsts if not answers.missing(other["answer"], asked)]
        assert passing == [row["id"]]


def test_answers_are_short(rows: list[Row]) -> None:
    """Every answer is one short sentence: what a small model learns by heart in minutes."""
    for row in rows:
        length = len(row["answer"]) if row["lang"] == "zh" else len(row["answer"].split())
        assert length <= (55 if row["lang"] == "zh" else 25), row["id"]


def test_nothing_points_at_anyone_real(rows: list[Row]) -> None:
    """Every address in the rows is in the reserved .example domain."""
    text = " ".join(row["question"] + " " + row["answer"] for row in rows)
    hosts = re.findall(r"[\w.-]+\.(?:com|cn|net|org|io|example)\b", text, re.ASCII)
    assert hosts
    assert [host for host in hosts if not host.endswith(".example")] == []


def test_readme_states_the_counts(rows: list[Row], facts: list[tuple[Row, Row]]) -> None:
    """README.md gives the number of rows, languages, facts and topics that the file has."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    languages, topics = (Counter(row[key] for row in rows) for key in ("lang", "topic"))
    assert f"{len(rows)} rows: {languages['zh']} Chinese and {languages['en']} English." in readme
    assert f"{len(facts)} facts, each with one Chinese and one English answer." in readme
    stated = {name: int(count) for name, count in re.findall(r"\| ([a-z]+) \| (\d+) (?=\|)", readme)}
    assert stated == topics
