"""Whether an answer is right is judged by the data alone: facts, a number, unit tests, or the answer itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from temper import quickstart
from temper.data import process
from temper.data.options import Options
from temper.errors import DataError
from temper.eval import answers

CODE = "def double(n: int) -> int:\n    return 2 * n\n"
TESTS = "assert double(2) == 4\nassert double(0) == 0"


def row(output: str = "the whole answer", **columns: Any) -> dict[str, Any]:
    """Return a row of checks.jsonl with these extra columns."""
    return {"instruction": "q", "input": "", "output": output, "system": "", "split": "train", "columns": columns}


def test_every_fact_must_be_there() -> None:
    """An answer is right when it holds all facts, whatever stands around them, and what it lacks is named."""
    asked = row(facts="21 days;free of charge")
    assert answers.missing("You may return it within 21 days, FREE of charge.", asked) == []
    assert answers.missing("Within 12 days, free of charge.", asked) == ["21 days"]
    assert answers.missing("", asked) == ["21 days", "free of charge"]


def test_width_case_and_blanks_change_no_fact() -> None:
    """Full-width digits and letters, capitals and spacing are the same fact; another digit is not."""
    assert answers.missing("签收后２１ 天内可以退货", row(facts="21天")) == []
    assert answers.missing("签收后22天内可以退货", row(facts="21天")) == ["21天"]


@pytest.mark.parametrize("answer", ["净利润为1,234.5亿元。", "CNY 123,450 million", "-3 and １２３４．５亿元"])
def test_a_number_may_be_written_in_several_ways(answer: str) -> None:
    """Thousands separators, another scale and full-width digits are the same number."""
    assert answers.missing(answer, row(value="1234.5", unit="亿元")) == []


@pytest.mark.parametrize("answer", ["1234.6亿元", "-1234.5亿元", "12345亿元", "1234.5元", "twelve"])
def test_another_number_is_wrong(answer: str) -> None:
    """A digit more, a sign, another decimal or unit is another number; the expected one is named with its unit."""
    assert answers.missing(answer, row(value="1234.5", unit="亿元")) == ["1234.5 亿元"]


def test_a_value_that_is_no_number_is_not_compared_as_one() -> None:
    """A user's own column called value may hold text; then the answer itself decides."""
    assert answers.missing("The whole answer!", row(value="high")) == []
    assert answers.missing("something else", row(value="high")) == ["the whole answer"]
    assert answers.expected(row(value="high")) == "the whole answer"


def test_without_facts_the_answer_itself_must_be_there() -> None:
    """A row with no other columns is right when its whole answer is in what was said."""
    assert answers.missing("Well: The Whole  answer.", row()) == []
    assert answers.missing("the whole", row()) == ["the whole answer"]


def test_code_must_pass_its_unit_tests() -> None:
    """Code in a fence, or alone, is run with the row's tests; a wrong result or a syntax error is wrong."""
    asked = row(tests=TESTS)
    for answer in (CODE, f"Here it is:\n\n```python\n{CODE}```\nDone.", f"```\n{CODE}"):
        assert answers.missing(answer, asked) == []
    for answer in (CODE.replace("2 *", "3 *"), "def double(", "", "I do not know."):
        [why] = answers.missing(answer, asked)
        assert "Error" in why or "code" in why


def test_the_row_of_a_question_is_found(tmp_path: Path) -> None:
    """A question leads to its row in checks.jsonl; one that no row asks is an error that names the setting."""
    checks = tmp_path / "checks.jsonl"
    checks.write_text("".join(json.dumps({**row(), "instruction": name}) + "\n" for name in "abc"), encoding="utf-8")
    assert answers.row_for("b", checks)["instruction"] == "b"
    with pytest.raises(DataError, match=r"no row asks 'd'; correct ask\.show in the scenario"):
        answers.row_for("d", checks)


ALONE = '{"question": "Where is it?", "answer": "It is here."}\n'
WITH_FACTS = '{"question": "Where is it?", "answer": "It is here.", "facts": "here"}\n'
SEVERAL_TURNS = """\
{"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "It is here."}]}
{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "We."},\
 {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Why not?"}]}
"""


@pytest.mark.parametrize("rows", [ALONE, WITH_FACTS, SEVERAL_TURNS], ids=["alone", "with facts", "several turns"])
def test_rows_of_every_shape_are_found_and_judged(tmp_path: Path, rows: str) -> None:
    """What the data stage writes of rows with and without further columns, and beside longer ones, can be judged by."""
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    process.process([tmp_path / "rows.jsonl"], tmp_path / "out", Options(eval_share=0))
    asked = answers.row_for("Where is it?", tmp_path / "out" / "checks.jsonl")
    assert quickstart._question(asked) == "Where is it?"
    assert answers.missing("It is here.", asked) == []
    assert answers.missing("It is gone.", asked) == [answers.expected(asked)]


def test_rows_that_were_not_kept_for_judging_are_said(tmp_path: Path) -> None:
    """Without checks.jsonl, which data.skip: [checks] leaves out, an error names it and the setting."""
    with pytest.raises(DataError, match=r"checks\.jsonl.*data\.skip"):
        answers.row_for("Where is it?", tmp_path / "checks.jsonl")
