"""An answer states a number when it states it in any scale of its unit; never in another unit, nor in passing."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.eval import numbers

DATA = Path(__file__).resolve().parents[2] / "data"
REVENUE = ("38.40", "亿元")


def rows() -> list[dict[str, str]]:
    """Return the shipped rows and check set, each with answer, value and unit."""
    with open(DATA / "financial-qa" / "rows.csv", encoding="utf-8", newline="") as file:
        checks = (DATA / "checks" / "financial-qa.jsonl").read_text(encoding="utf-8").splitlines()
        return [*csv.DictReader(file), *map(json.loads, checks)]


def test_every_shipped_answer_states_its_own_value() -> None:
    """A perfect model scores 1 on every row."""
    assert [row["answer"] for row in rows() if not numbers.matches(row["answer"], row["value"], row["unit"])] == []
    assert len(rows()) > 280


def test_other_answers_match_only_by_their_value() -> None:
    """Of all pairs of rows with one unit, an answer states another row's value only when the two round alike."""
    differing, pairs = [], 0
    for said, meant in permutations(rows(), 2):
        if said["unit"] == meant["unit"]:
            pairs += 1
            if numbers.matches(said["answer"], meant["value"], meant["unit"]):
                one, other = Decimal(said["value"]), Decimal(meant["value"])
                differing += [(one, other)] if one != other else []
    coarser = [max(one.as_tuple().exponent, other.as_tuple().exponent) for one, other in differing]
    assert all(
        abs(one - other) <= Decimal(5).scaleb(step - 1) for (one, other), step in zip(differing, coarser, strict=True)
    )
    assert len(differing) < pairs / 1000


STATED = [
    # one amount in many scales
    *((text, *REVENUE) for text in (
        "38.40亿元", "38.4亿", "３８．４０亿元", "CNY 3,840 million", "3,840 CNY million", "3840000000元",
        "384,000万元", "38亿4000万元", "三十八点四亿元", "RMB3.84bn", "￥3.84 billion", "3.84 billion yuan",
        "人民币 38.40 亿元", "38.40亿元人民币", "**38.40**亿元", "$38.40$ \\text{亿元}", "合3,840百万元",
    )),
    ("5,985M yuan", "5985", "CNY million"), ("1.2万亿元", "12000", "亿元"), ("US$5.2m", "520", "万美元"),
    ("1 234.5元", "1234.5", "元"), ("１，２３４元", "1234", "元"), ("两百元", "200", "元"),
    ("CNY 5.00 per share", "5", "元"), ("¥100, or ¥50 ¥20", "20", "元"),
    ("1.16元/股", "1.16", "元/股"), ("1.16元", "1.16", "元/股"),
    # shares and points
    ("百分之十二点五", "12.5", "%"), ("12 per cent", "12", "%"), ("三成", "30", "%"), ("5‰", "0.5", "%"),
    ("80bp", "0.80", "%"), ("50 basis points", "0.50", "百分点"), ("0.5个百分点", "0.50", "percentage points"),
    # signs
    ("为-4.05亿元", "-4.05", "亿元"), ("净流出4.05亿元", "-4.05", "亿元"), ("CNY −235 million", "-235", "CNY million"),
    ("-CNY 235 million", "-235", "CNY million"), ("负3%", "-3", "%"), ("下降了3%", "-3", "%"), ("下降了3%", "3", "%"),
    ("it lost 6.34%", "-6.34", "%"), ("最大回撤为-10.80%", "10.80", "%"),
    # counts, times, years
    ("三十二家", "32", "stores"), ("the 862-store chain", "862", "家"), ("3 business days", "3", "天"),
    ("T+3", "3", "天"), ("R3级", "3", "level"), ("500 million shares", "5.00", "亿股"), ("1.74", "1.74", "倍"),
    ("1.74x", "1.74", "times"),
    ("2020年3月18日", "2020", "年"), ("18 March 2020", "2020", "year"), ("2020-03-18", "2020", "年"),
    ("二〇二〇年", "2020", "年"), ("2020", "2020", ""), ("35台设备", "35", "台"), ("5千克", "5", "千克"),
    ("12个月", "12", "月"),
    # what an equation ends with, and a change
    ("62−48=14", "14", ""), ("$$\\frac{7.35}{52.50} \\approx 14.00\\%$$", "14", "%"), ("\\boxed{14\\%}", "14.00", "%"),
    ("从38.40亿元增至59.85亿元", "59.85", "亿元"), ("fell from 3.1% to 2.5%", "2.5", "%"),
    # rounding
    ("21.4%", "21.43", "%"), ("21.4348%", "21.43", "%"), ("48.2亿元", "4816", "CNY million"),
    ("0.7312", "0.73", "ratio"), ("2.34%", "2.345", "%"), ("2.35%", "2.345", "%"), ("14%", "14.00", "%"),
]  # fmt: skip
OTHERS = [
    ("38.40元", *REVENUE), ("38.40", *REVENUE), ("38.40亿美元", *REVENUE), ("USD 3,840 million", *REVENUE),
    ("38.40%", *REVENUE), ("4.8亿元", "4816", "CNY million"), ("48亿元", "4816", "CNY million"), ("9.7%", "9.66", "%"),
    ("10.4元", "10", "元"), ("21.5%", "21.43", "%"), ("14.00", "14.00", "%"), ("862", "862", "家"), ("3", "3", "天"),
    ("0.50%", "0.50", "百分点"), ("0.5个百分点", "0.50", "%"), ("0.73%", "0.73", "ratio"), ("5.78亿", "5.78", ""),
    ("-3%", "3", "%"), ("3%", "-3", "%"), ("2025年", "2025", "元"), ("in 2025", "2025", "stores"),
    ("30%至50%", "30", "%"), ("30%-50%", "50", "%"), ("¥5-¥10", "10", "元"), ("30 to 179 days", "30", "days"),
    ("5.5亿–6亿元", "6", "亿元"), ("62−48=14", "48", ""), ("59.85−52.50=7.35亿元", "52.50", "亿元"),
    ("第三家", "3", "家"), ("3月18日", "18", "天"), ("15:00", "15", ""), ("Q3", "3", ""), ("砚桥稳进一号", "1", ""),
    ("R3", "3", ""), ("the 3rd", "3", ""), ("不知道", "3", "%"), ("", "3", "%"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "value", "unit"), STATED)
def test_a_number_is_known_however_it_is_written(answer: str, value: str, unit: str) -> None:
    """Scale, language, width, currency's place, sign's word and fair rounding do not matter."""
    assert numbers.matches(answer, value, unit), numbers.found(answer)


@pytest.mark.parametrize(("answer", "value", "unit"), OTHERS)
def test_another_number_is_not_taken_for_it(answer: str, value: str, unit: str) -> None:
    """Another unit, a lost scale, coarse rounding, a range's end, a date and an equation's terms do not count."""
    assert not numbers.matches(answer, value, unit), numbers.found(answer)


@given(st.integers(100, 10**9))
def test_one_amount_matches_in_every_scale(amount: int) -> None:
    """An amount of so many 万元 is the same in 元, 亿元 and CNY million, and ten times it is not."""
    tenfold = Decimal(amount) / 10
    spellings = [
        f"{amount:,}万元",
        f"{amount}0000元",
        f"{Decimal(amount) / 10000:f}亿元",
        f"CNY {amount / 100:,.2f} million",
    ]
    for said in spellings:
        assert numbers.matches(f"It was {said}.", str(amount), "万元")
        assert not numbers.matches(f"It was {said}.", f"{tenfold:f}", "万元")


@pytest.mark.parametrize(
    ("written", "value"),
    [("十二", 12), ("二十", 20), ("一百零五", 105), ("两千三百", 2300), ("三万零五十", 30050),
     ("一亿两千万", 120_000_000), ("一万亿", 10**12), ("一九九八", 1998), ("三点一四", "3.14")],
)  # fmt: skip
def test_chinese_numerals_are_read(written: str, value: int | str) -> None:
    """Numerals in words and numerals read out digit by digit have their value."""
    assert [quantity.value for quantity in numbers.found(f"{written}元")] == [Decimal(value)]


def test_found_gives_value_step_and_unit() -> None:
    """A number is scaled, and so is the step of its last digit."""
    assert numbers.found("2025年营收38.40亿元，增长百分之十四。") == [
        numbers.Quantity(Decimal(2025), Decimal(1), "year"),
        numbers.Quantity(Decimal(3_840_000_000), Decimal(1_000_000), "CNY"),
        numbers.Quantity(Decimal(14), Decimal(1), "%"),
    ]


@pytest.mark.parametrize(
    "part", ["9", "一", "十", "1,", "1 ", "1-", "¥", "\\", "百分之", "1亿", "从1到", "降", "9,999", "(", "."]
)
def test_no_answer_takes_long(part: str) -> None:
    """A model that repeats itself for 50,000 characters is read within two seconds, and states nothing."""
    import time

    before = time.perf_counter()
    assert not numbers.matches(part * (50_000 // len(part)), *REVENUE)
    assert time.perf_counter() - before < 2


@pytest.mark.parametrize("value", ["", "many", "3 4 5"])
def test_a_row_without_a_number_is_refused(value: str) -> None:
    """An expected value that is no number is an error, not a wrong answer."""
    with pytest.raises(ValueError, match="not one number"):
        numbers.matches("3%", value, "%")
