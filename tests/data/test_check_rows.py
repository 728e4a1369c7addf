"""The shipped check sets and the retention set: new questions, whose answers agree with the scenarios' rows."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import test_code_rows as code
import test_financial_rows as financial

from temper.eval import answers, text

Row = dict[str, Any]

DATA = Path(__file__).resolve().parents[2] / "data"
# scenario, how its ids begin, how many checks, and its question's field
SCENARIOS = {
    "customer-service": ("cs", 48, "question"),
    "financial-qa": ("fq", 40, "question"),
    "code-generation": ("cg", 16, "instruction"),
}
# What each financial check asks, in terms of the facts that rows.csv states; money in yuan, the rest as it stands.
FORMULAS = """
net-profit-2025
revenue-2021
net-profit-2024 ÷ revenue-2024 × 100
(net-profit-2023 − net-profit-2022) ÷ net-profit-2022 × 100
rd-spend-2024
liabilities-2025
net-profit-2025 − net-profit-2023
net-profit-2023 ÷ revenue-2023 × 100
gross-profit-2022
net-profit-2022
stores-2024 − stores-2023
gross-profit-2022 ÷ revenue-2022 × 100
fund-return-2023
revenue-2025
company-dividend-2024 ÷ 10 × 1,000
stores-2025 − stores-2022
assets-2025
stores-2023
allocation-bond-2025 − allocation-equity-2025
1,200,000 − 1,200,000 ÷ (1 + subscription-fee-1m-3m ÷ 100)
stores-2024
nav-2025-09-30
5,000 × nav-2025 × redemption-fee-30d-179d ÷ 100
2,500 × nav-2024
redemption-fee-180d-364d
fund-return-2024
liabilities-2022 ÷ assets-2022 × 100
(scale-2025q2 − scale-2025q1) ÷ scale-2025q1 × 100
subscription-fee-5m-up
redemption-fee-7d-29d
segment-air-2025 ÷ revenue-2025 × 100
gross-profit-2021 ÷ revenue-2021 × 100
scale-2025q3
subscription-fee-3m-5m
net-profit-2021 ÷ revenue-2021 × 100
holding-03-2025
capex-2025
income-tax-2025
holding-05-2025
equity-limit-low
""".strip().splitlines()
MONEY = {"亿元": 10**8, "万元": 10**4, "元": 1, "CNY million": 10**6, "CNY": 1}


def lines(path: Path) -> list[Row]:
    """Return a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def checks(scenario: str) -> list[Row]:
    """Return a scenario's check set."""
    return lines(DATA / "checks" / f"{scenario}.jsonl")


def rows(scenario: str) -> list[Row]:
    """Return a scenario's rows."""
    folder = DATA / scenario
    if (folder / "rows.jsonl").exists():
        return lines(folder / "rows.jsonl")
    with open(folder / "rows.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def right(answer: str, row: Row) -> bool:
    """Say whether the evaluation takes an answer to a check as right."""
    return not answers.missing(answer, {"output": row.get("answer") or row["output"], "columns": row})


def near(one: str, other: str) -> bool:
    """Say whether two questions have the same numbers and nearly the same letters."""
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return False
    alike = SequenceMatcher(None, one, other)
    return alike.real_quick_ratio() > 0.85 and alike.quick_ratio() > 0.85 and alike.ratio() > 0.85


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_checks_have_the_fields_of_their_rows(scenario: str) -> None:
    """Each set has its size, ids counted up, half of it in each language, and its rows' fields, topics and kinds."""
    prefix, size, _ = SCENARIOS[scenario]
    found, base = checks(scenario), rows(scenario)
    assert [row["id"] for row in found] == [f"{prefix}-check-{number:03}" for number in range(1, size + 1)]
    assert Counter(row["lang"] for row in found) == {"zh": size // 2, "en": size // 2}
    for row in found:
        assert set(row) == set(base[0]) and all(isinstance(part, str) for part in row.values()), row["id"]
        for field in {"topic", "kind", "unit"} & set(row):
            assert row[field] in {other[field] for other in base}, row["id"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_check_is_asked_in_the_rows(scenario: str) -> None:
    """No question stands in the rows or twice in the checks, and none is nearly one of the rows'."""
    field = SCENARIOS[scenario][2]
    base = {text.fold(row[field]) for row in rows(scenario)}
    asked = [text.fold(row[field]) for row in checks(scenario)]
    assert set(asked).isdisjoint(base) and len(set(asked)) == len(asked)
    assert [text for text in asked if any(near(text, other) for other in base)] == []
    assert near("砚桥电器2025年的净利润是多少?", "砚桥电器2025年净利润是多少?")


@pytest.mark.parametrize("scenario", [*SCENARIOS, "retention"])
def test_files_are_plain_utf8_json_lines(scenario: str) -> None:
    """Each line is what a JSON writer makes of it, with Chinese as it is, LF and no byte order mark."""
    path = DATA / "retention" / "rows.jsonl" if scenario == "retention" else DATA / "checks" / f"{scenario}.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines(path))
    assert path.read_bytes() == text.encode("utf-8")


def test_customer_facts_stand_in_the_answers_and_in_the_rows() -> None:
    """Each check's facts are letter for letter in its answer and in an answer of the rows in the same language."""
    said = {lang: [row["answer"] for row in rows("customer-service") if row["lang"] == lang] for lang in ("zh", "en")}
    for row in checks("customer-service"):
        for fact in row["facts"].split(";"):
            assert fact and fact in row["answer"], row["id"]
            assert any(fact in answer for answer in said[row["lang"]]), row["id"]
    combined = [row["id"] for row in checks("customer-service") if row["answer"] not in said[row["lang"]]]
    assert len(combined) == 6  # all others are answered word for word as in the rows


def test_customer_answers_to_other_questions_are_wrong() -> None:
    """A check accepts its own answer and none of the rows' other answers."""
    given = {row["answer"] for row in rows("customer-service")}
    for row in checks("customer-service"):
        passing = {answer for answer in {*given, row["answer"]} if right(answer, row)}
        assert passing == {row["answer"]}, row["id"]


def test_a_quarter_of_the_customer_checks_must_be_refused() -> None:
    """Each reason to refuse is tried once in each language."""
    refused = {row["answer"] for row in rows("customer-service") if row["topic"] == "refuse"}
    found = [row["answer"] for row in checks("customer-service") if row["topic"] == "refuse"]
    assert sorted(found) == sorted(refused) and len(found) == 12


def facts() -> dict[str, Decimal]:
    """Return each fact of the financial rows; money in yuan."""
    base = rows("financial-qa")
    names = (re.sub(r"-(zh|en)\d+$", "", row["id"]) for row in base)
    return {name: Decimal(row["value"]) * MONEY.get(row["unit"], 1) for name, row in zip(names, base, strict=True)}


def recomputed(formula: str, row: Row, known: dict[str, Decimal]) -> Decimal:
    """Return what the formula gives in the row's unit, rounded half up to the row's decimals."""
    exact = financial.compute(re.sub(r"[a-z][a-z0-9-]*", lambda name: f"{known[name[0]]:f}", formula))
    last = Decimal(row["value"]).as_tuple().exponent
    return (exact / MONEY.get(row["unit"], 1)).quantize(Decimal((0, (1,), int(last))), ROUND_HALF_UP)


def test_financial_values_follow_from_the_rows() -> None:
    """Every value is that of a fact of the rows or is computed from such facts, in the unit and decimals asked for."""
    known, found = facts(), checks("financial-qa")
    wrong = {
        row["id"]: (row["value"], computed)
        for formula, row in zip(FORMULAS, found, strict=True)
        if (computed := recomputed(formula, row, known)) != Decimal(row["value"])
    }
    assert wrong == {}
    assert len(set(FORMULAS)) == len(FORMULAS)


def test_financial_answers_state_their_values() -> None:
    """Each answer states its value with its unit, its equations hold, and the evaluation takes it as right."""
    found = checks("financial-qa")
    assert [problem for row in found for problem in financial.row_problems(row)] == []
    assert [row["id"] for row in found if not right(row["answer"], row)] == []
    doubled = [{**row, "value": str(2 * Decimal(row["value"]))} for row in found]
    assert [row["id"] for row in doubled if right(row["answer"], row)] == []
    assert {row["kind"] for row in found} == {"lookup", "calc", "concept"}
    assert any("," in number for row in found for number in re.findall(r"[\d,]+\d", row["answer"]))


def test_code_checks_pass_their_tests_and_can_fail() -> None:
    """Each answer passes its tests; no function emptied does, and no code to be fixed."""
    report = code.report(DATA / "checks" / "code-generation.jsonl")
    assert report == {"failing": {}, "surviving": {}, "unbroken": {}}
    assert sum(code.is_python(row["input"]) for row in checks("code-generation")) >= 2


def code_problems(row: Row) -> Iterator[str]:
    """Name what keeps a code check from the form of the rows."""
    source, tests = code.code_of(row), row["tests"]
    if not code.ANSWER.fullmatch(row["output"]):
        yield "the answer is not one fenced block"
    if not 3 <= sum(isinstance(node, ast.Assert) for node in ast.parse(tests).body) <= 6:
        yield "not 3 to 6 asserts"
    used = code.defined_in(source) & code.names_in(tests)
    if not used or used - set(re.findall(r"\w+", row["instruction"], re.ASCII)):
        yield "a name is not told"
    for part in (source, tests):
        if code.imports_of(part) - code.MODULES or code.names_in(part) & code.UNSTEADY:
            yield "it reaches outside or is not steady"
    if not all(map(code.in_house_form, code.errors_in(source))):
        yield "an error is not in the house form"


def test_code_checks_have_the_form_of_the_rows() -> None:
    """One fenced block, names told, 3 to 6 asserts, harmless imports, errors in the house form."""
    assert {row["id"]: found for row in checks("code-generation") if (found := list(code_problems(row)))} == {}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_readmes_tell_of_the_checks(scenario: str) -> None:
    """Each scenario's README.md has a section on its check set with its size."""
    readme = (DATA / scenario / "README.md").read_text(encoding="utf-8")
    assert f"`data/checks/{scenario}.jsonl` holds {SCENARIOS[scenario][1]} " in readme


def test_retention_rows_have_their_shape() -> None:
    """60 different rows: 10 of each kind in each language, with exactly the documented fields."""
    found = lines(DATA / "retention" / "rows.jsonl")
    assert Counter((row["kind"], row["lang"]) for row in found) == {
        (kind, lang): 10 for kind in ("knowledge", "instruction", "language") for lang in ("zh", "en")
    }
    asked = {text.fold(row["instruction"] + row["input"]) for row in found}
    assert len(asked) == len({row["id"] for row in found}) == 60
    for row in found:
        assert re.fullmatch(rf"keep-{row['kind'][0]}-{row['lang']}-\d\d", row["id"])
        assert list(row) == ["id", "instruction", "input", "output", "kind", "lang", "accept", "must"], row["id"]
        assert row["accept"] or row["kind"] != "knowledge"
        assert row["must"] or row["kind"] != "instruction"


def test_retention_references_are_right_and_silence_is_wrong() -> None:
    """Each reference is accepted and obeys; an empty answer never does, nor does repeating a knowledge question."""
    for row in lines(DATA / "retention" / "rows.jsonl"):
        assert right(row["output"], row), row["id"]
        assert not right("", row), row["id"]
        if row["kind"] == "knowledge":
            assert not right(row["instruction"], row), row["id"]


def test_retention_rows_tell_references_apart() -> None:
    """Another row's reference is right for few: each row that can be judged accepts at most a fifth of all others."""
    found = lines(DATA / "retention" / "rows.jsonl")
    loose = {row["id"]: sum(right(other["output"], row) for other in found) for row in found if row["accept"]}
    assert {name: count for name, count in loose.items() if count > 12} == {}


def test_the_retention_readme_states_the_counts() -> None:
    """README.md gives the numbers of rows by kind and language, and the licence."""
    readme = (DATA / "retention" / "README.md").read_text(encoding="utf-8")
    found = lines(DATA / "retention" / "rows.jsonl")
    counts = Counter((row["kind"], row["lang"]) for row in found)
    for kind in ("knowledge", "instruction", "language"):
        assert f"| {kind} | {counts[kind, 'zh']} | {counts[kind, 'en']} |" in readme
    assert f"{len(found)} rows" in readme and "MIT" in readme
