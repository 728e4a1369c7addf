"""The shipped financial-qa rows: every number is stated, computed and balanced correctly."""

import ast
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

Row = dict[str, str]

FOLDER = Path(__file__).resolve().parents[2] / "data" / "financial-qa"
COLUMNS = ["id", "question", "answer", "value", "unit", "topic", "lang", "kind"]
YEARS = range(2021, 2026)
# The days on which the fund paid a distribution.
EX_DATES = {2022: "2022-01-17", 2025: "2025-01-15"}

NUMBER = r"(?<![\d.,])(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)"
MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
# How each unit is written beside its number in an answer.
SPELLINGS = {
    "%": rf"{NUMBER}%",
    "百分点": rf"{NUMBER}个百分点",
    "percentage points": rf"{NUMBER} percentage points",
    "元": rf"{NUMBER}元",
    "万元": rf"{NUMBER}万元",
    "亿元": rf"{NUMBER}亿元",
    "CNY": rf"CNY {NUMBER}(?![\d,]| million)",
    "CNY million": rf"CNY {NUMBER} million",
    "份": rf"{NUMBER}份",
    "亿份": rf"{NUMBER}亿份",
    "units": rf"{NUMBER} units",
    "亿股": rf"{NUMBER}亿股",
    "天": rf"{NUMBER}(?:天|个工作日)",
    "days": rf"{NUMBER} (?:working )?days?",
    "倍": rf"{NUMBER}倍",
    "次": rf"{NUMBER}次",
    "times": rf"{NUMBER} times",
    "比率": rf"比率为[^，。]*?{NUMBER}(?![\d,%])(?=。)",
    "ratio": rf"[Rr]atio.*?{NUMBER}(?![\d,%])(?=\.$)",
    "家": rf"{NUMBER}家",
    "stores": rf"{NUMBER} stores",
    "级": rf"R{NUMBER}级",
    "level": rf"(?:R|level ){NUMBER}",
    "年": rf"{NUMBER}年",
    "year": rf"{MONTH} {NUMBER}",
}
# Units of one amount in both languages, in terms of a common one.
COMMON = {
    "亿元": ("CNY million", 100),
    "元": ("CNY", 1),
    "份": ("units", 1),
    "家": ("stores", 1),
    "天": ("days", 1),
    "级": ("level", 1),
    "年": ("year", 1),
    "比率": ("ratio", 1),
}
EQUATION = re.compile(
    r"(?P<left>[\d.,%()×÷+−^√ -]+?) ?(?P<sign>[=≈]) ?(?:CNY )?"
    rf"(?P<result>{NUMBER})(?P<percent>%|个百分点| percentage points)?"
)
OPERATORS = {
    ast.Add: Decimal.__add__,
    ast.Sub: Decimal.__sub__,
    ast.Mult: Decimal.__mul__,
    ast.Div: Decimal.__truediv__,
    ast.Pow: Decimal.__pow__,
}


def read_rows() -> list[Row]:
    """Return the rows as they are in the file."""
    with (FOLDER / "rows.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Read the rows once."""
    return read_rows()


def decimal(text: str) -> Decimal:
    """Return a number written with thousands separators."""
    return Decimal(text.replace(",", ""))


def evaluate(node: ast.expr) -> Decimal:
    """Compute a parsed formula of decimals; anything else raises KeyError or TypeError."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate(node.operand)
    if isinstance(node, ast.Constant):
        # repr of a float is its shortest form, so 59.85 stays exactly 59.85
        return Decimal(repr(node.value))
    raise TypeError(ast.dump(node))


def compute(formula: str) -> Decimal:
    """Compute a formula as it is written in an answer: × ÷ − ^ √, percent, thousands separators."""
    plain = formula.strip(" .,").replace(",", "").replace(" ", "")
    plain = plain.replace("×", "*").replace("÷", "/").replace("−", "-").replace("^", "**")
    plain = re.sub(r"√(\d+)", r"(\1**0.5)", plain)
    plain = re.sub(r"([\d.]+)%", r"(\1/100)", plain)
    return evaluate(ast.parse(plain, mode="eval").body)


def equation_problems(answer: str) -> Iterator[str]:
    """Name each equation whose result is wrong, wrongly rounded, or has the wrong sign of equality."""
    found = list(EQUATION.finditer(answer))
    if len(found) != len(re.findall("[=≈]", answer)):
        yield "an equation that cannot be read"
    for match in found:
        exact = compute(match["left"]) * (100 if match["percent"] else 1)
        stated = decimal(match["result"])
        half_step = Decimal((0, (5,), int(stated.as_tuple().exponent) - 1))
        if abs(exact - stated) > half_step:
            yield f"{match[0].strip()}: the result is {exact:.6f}"
        elif (exact == stated) != (match["sign"] == "="):
            yield f"{match[0].strip()}: '=' is for exact results, '≈' for rounded ones"


def value_problems(row: Row) -> Iterator[str]:
    """Name what keeps `value` with `unit` from being the number that the answer states."""
    stated = list(re.finditer(SPELLINGS[row["unit"]], row["answer"]))
    numbers = [decimal(match[1]) for match in stated]
    if Decimal(row["value"]) not in numbers:
        yield f"value {row['value']} {row['unit']} is not in the answer, which has {numbers}"
    elif row["kind"] != "lookup":
        rest = row["answer"][stated[-1].end() :].strip("。.")
        if rest or numbers[-1] != Decimal(row["value"]):
            yield "the answer does not end with its result"


def row_problems(row: Row) -> list[str]:
    """List what is wrong with one row's numbers; an empty list means nothing is."""
    problems = [*value_problems(row), *equation_problems(row["answer"])]
    if (row["kind"] != "lookup") != bool(re.search("[=≈]", row["answer"])):
        problems.append(f"kind {row['kind']} does not fit an answer with or without an equation")
    return [f"{row['id']}: {problem}" for problem in problems]


def amount(row: Row) -> tuple[str, Decimal]:
    """Return the row's common unit and its value in that unit."""
    unit, factor = COMMON.get(row["unit"], (row["unit"], 1))
    return unit, Decimal(row["value"]) * factor


def facts_of(rows: list[Row]) -> dict[str, set[tuple[str, Decimal]]]:
    """Collect what the rows say about each fact; a fact is an id without its language and number."""
    facts: dict[str, set[tuple[str, Decimal]]] = {}
    for row in rows:
        fact = re.sub(r"-(zh|en)\d+$", "", row["id"])
        facts.setdefault(fact, set()).add(amount(row))
    return facts


def growth(new: Decimal, old: Decimal) -> Decimal:
    """Return the growth in percent, two decimals."""
    return round((new - old) / old * 100, 2)


def identities(v: dict[str, Decimal]) -> Iterator[tuple[str, Decimal, Decimal]]:
    """Yield (name, left side, right side) for every sum that the stated facts must satisfy."""
    for y in YEARS:
        yield f"gross profit {y}", v[f"gross-profit-{y}"], v[f"revenue-{y}"] - v[f"cost-{y}"]
        yield f"balance {y}", v[f"assets-{y}"], v[f"liabilities-{y}"] + v[f"equity-{y}"]
        if y > 2021:
            rate = growth(v[f"revenue-{y}"], v[f"revenue-{y - 1}"])
            yield f"revenue growth {y}", v[f"revenue-growth-{y}"], rate
        reinvested = v[f"nav-{y}"]
        if y in EX_DATES:
            reinvested *= 1 + v[f"fund-dividend-{y}"] / 10 / v[f"nav-{EX_DATES[y]}"]
        yield f"fund return {y}", v[f"fund-return-{y}"], growth(reinvested, v[f"nav-{y - 1}"])
    assets = [v[f"allocation-{part}-2025"] for part in ("equity", "bond", "cash", "repo", "other")]
    yield "asset allocation", Decimal(100), sum(assets, Decimal(0))
    holdings = [v[f"holding-{rank:02}-2025"] for rank in range(1, 11)]
    yield "ten largest holdings", v["concept-concentration"], sum(holdings, Decimal(0))
    flows = [v[f"{part}-cash-flow-2025"] for part in ("operating", "investing", "financing")]
    yield "change of cash 2025", v["cash-change-2025"], sum(flows, Decimal(0))
    for y in (2024, 2025):
        yield f"benchmark {y}", v[f"concept-benchmark-{y}"], v[f"benchmark-return-{y}"]
    excess = v["fund-return-2025"] - v["benchmark-return-2025"]
    yield "excess return 2025", v["excess-return-2025"], excess
    # equity moves by the year's profit less the dividend that was declared for the year before
    kept = v["net-profit-2025"] - v["company-dividend-2024"] * v["share-count-2025"] * 100 / 10
    yield "equity 2025", v["equity-2025"] - v["equity-2024"], kept


def identity_problems(rows: list[Row]) -> list[str]:
    """List facts that rows disagree on and sums that do not come out."""
    facts = facts_of(rows)
    problems = [f"{fact}: {sorted(said)}" for fact, said in facts.items() if len(said) > 1]
    values = {fact: next(iter(said))[1] for fact, said in facts.items()}
    sums = identities(values)
    return problems + [f"{name}: {left} is not {right}" for name, left, right in sums if left != right]


def test_there_are_at_least_200_different_questions(rows: list[Row]) -> None:
    """There are 200 rows or more, and no id or question comes twice."""
    assert len(rows) >= 200
    for column in ("id", "question"):
        assert [text for text, n in Counter(row[column] for row in rows).items() if n > 1] == []


def test_file_is_plain_utf8_csv(rows: list[Row]) -> None:
    """The file is UTF-8 without BOM, with LF, and is what a CSV writer makes of its rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert (FOLDER / "rows.csv").read_bytes() == text.getvalue().encode("utf-8")


def test_both_languages_are_there(rows: list[Row]) -> None:
    """Chinese is 50 to 60 % of the rows, and each row is written in the language it names."""
    share = sum(row["lang"] == "zh" for row in rows) / len(rows)
    assert 0.5 <= share <= 0.6
    for row in rows:
        chinese = [bool(re.search(r"[\u4e00-\u9fff]", row[column])) for column in ("question", "answer")]
        assert chinese == [row["lang"] == "zh"] * 2, row["id"]
        assert f"-{row['lang']}" in row["id"]


def test_every_kind_and_unit_is_known(rows: list[Row]) -> None:
    """Each row is a lookup, a calc or a concept, has a known unit, and no kind is missing."""
    assert {row["kind"] for row in rows} == {"lookup", "calc", "concept"}
    assert {row["unit"] for row in rows} <= set(SPELLINGS)


def test_every_number_is_stated_and_every_equation_holds(rows: list[Row]) -> None:
    """Each answer states its row's value with its unit, and each equation in it comes out."""
    assert [problem for row in rows for problem in row_problems(row)] == []


def test_a_changed_value_is_caught_in_every_row(rows: list[Row]) -> None:
    """The check rejects each row when 1 is added to the last digit of its value."""
    for row in rows:
        value = Decimal(row["value"])
        wrong = value + Decimal((0, (1,), int(value.as_tuple().exponent)))
        assert row_problems({**row, "value": str(wrong)}), row["id"]


def test_a_changed_step_is_caught_in_every_calculation(rows: list[Row]) -> None:
    """The check rejects each calculation when the first number of its last equation is doubled."""
    for row in (row for row in rows if row["kind"] != "lookup"):
        last = list(EQUATION.finditer(row["answer"]))[-1]
        first = re.search(r"\d[\d,.]*", last["left"])
        assert first is not None
        start = last.start("left") + first.start()
        doubled = f"{decimal(first[0]) * 2}"
        answer = row["answer"][:start] + doubled + row["answer"][start + len(first[0]) :]
        assert row_problems({**row, "answer": answer}), answer


def test_accounts_and_fund_add_up(rows: list[Row]) -> None:
    """Rows agree on each fact; statements balance, weights sum, growth rates and returns come out."""
    assert identity_problems(rows) == []


@pytest.mark.parametrize(
    "fact", ["gross-profit-2022", "liabilities-2024", "allocation-repo-2025", "nav-2023", "holding-07-2025"]
)
def test_a_changed_fact_breaks_a_sum(rows: list[Row], fact: str) -> None:
    """The identity check names a sum once any one of its stated facts is changed."""
    changed = [dict(row) for row in rows]
    for row in changed:
        if re.fullmatch(rf"{fact}-(zh|en)\d+", row["id"]):
            row["value"] = str(Decimal(row["value"]) + 1)
    assert changed != rows
    assert identity_problems(changed) != []


def test_answers_are_short(rows: list[Row]) -> None:
    """Lookups are one short sentence, and a row has 90 tokens or fewer on average, as estimated."""
    tokens = 0.0
    for row in rows:
        text = row["question"] + " " + row["answer"]
        # 2 tokens for a Chinese character and 1.35 for a word or number: upper estimates
        words = re.findall(r"[\w.,%]+", text, re.ASCII)
        tokens += 2 * len(re.findall(r"[\u4e00-\u9fff]", text)) + 1.35 * len(words)
        if row["kind"] == "lookup":
            length = len(row["answer"]) if row["lang"] == "zh" else len(row["answer"].split())
            assert length <= (45 if row["lang"] == "zh" else 30), row["id"]
    assert tokens / len(rows) <= 90


def test_readme_states_the_counts(rows: list[Row]) -> None:
    """README.md gives the number of rows, by kind and language, that the file has."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    counts = Counter((row["kind"], row["lang"]) for row in rows)
    for kind in ("lookup", "calc", "concept"):
        zh, en = counts[kind, "zh"], counts[kind, "en"]
        assert f"| {kind} | {zh} | {en} | {zh + en} |" in readme
    assert f"{len(rows)} rows" in readme
