"""Whether an answer states the expected number: numbers with their units, in Chinese and English text.

Read: thousands separators, full-width forms, 万 to 万亿, thousand to trillion, k m b, Chinese numerals (二百, 一点五亿,
百分之十二, 三成), 38亿4000万元, currencies before or after, LaTeX and Markdown around a number.
Not read: scientific notation, fractions, (405) as a negative, 三万五 for 35,000, a unit named once for several numbers.
Not judged: whether the sentence says of the number what was asked, or also states a wrong one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import lru_cache
from itertools import pairwise

ANY = "?"  # the unit after a scale alone: 5.78亿 may be money or shares, and fits all

# The normal form of a unit, and how it is written: ~ is a blank; English plurals need no entry.
_MONEY = {
    "CNY": "人民币 cny rmb ¥ yuan renminbi 元 圆 块钱",
    "USD": "us$ usd $ dollar 美元 美金",
    "EUR": "eur € euro 欧元",
    "HKD": "hk$ hkd 港元 港币",
    "GBP": "gbp £ 英镑",
    "JPY": "jpy yen 日元",
}
_OTHER = {
    "%": "% percent per~cent pct",
    "percentage point": "个百分点 百分点 percentage~point pp",
    "basis point": "个基点 基点 basis~point bp",
    "": "倍 次 times x 比率 ratio",
    "store": "家 家门店 门店 个门店 家店 store shop outlet",
    "share": "股 share",
    "unit": "份 unit",
    "level": "级 level",
    "day": "天 日 个工作日 工作日 个交易日 交易日 day",
    "week": "周 个星期 星期 week",
    "month": "个月 month",
    "year": "年 year",
}
_UNITS = {form.replace("~", " "): unit for unit, forms in (_MONEY | _OTHER).items() for form in forms.split()}
_FACTORS = {"‰": Decimal("0.1"), "成": Decimal(10)}  # of a percent: 三成 is 30 %
_BEFORE = {form: unit for unit, forms in _MONEY.items() for form in forms.split()}
_BEFORE |= {"level": "level", "r": "level", "t+": "day"}  # R3, a level of risk; T+1, a working day later
_WORDS = {"thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12, "tn": 12}
_LETTERS = {"k": 3, "m": 6, "b": 9}  # only right after a digit
_MARKS = {"亿": 8, "万": 4, "千": 3, "百": 2, "十": 1}
_HAN = "零〇一二两三四五六七八九"
_DIGITS = str.maketrans(_HAN, "001223456789")

_GROUPS = r"[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9])"
_ARABIC = rf"(?:{_GROUPS}|[0-9]+)(?:\.[0-9]+)?"
_CHINESE = rf"[{_HAN}十百][{_HAN}十百千万亿]{{0,20}}(?:点[{_HAN}]{{1,20}})?"
_MONTHS = "january february march april may june july august september october november december"
_MONTH = "(?:" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in _MONTHS.split()) + ")(?![a-z])"
_DATE = (
    r"(?<![0-9])(?:(?P<year>(?:19|20)[0-9]{2})(?: ?年 ?[0-9]{1,2} ?月|(?P<dash>[-/.])[0-9]{1,2}(?P=dash)[0-9]{1,2})"
    r"(?: ?[0-9]{1,2} ?日)?|[0-9]{1,2} ?月(?: ?[0-9]{1,2} ?日)?|[0-9]{1,2}:[0-9]{2}"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)? {_MONTH})|(?<![a-z]){_MONTH} [0-9]{{1,2}}(?![0-9%]|\.[0-9])"
)
_FALL = re.compile(  # words that stand for a minus
    "(?:降|跌|减少|下滑|亏损|流出|回撤|decreas|declin|fell|fall|drop|los[st]|down|outflow)[^0-9.;,。]{0,16}$"
)
_BETWEEN = re.compile(r" ?(?:至|到|~|-|–|—|to) ?")


@dataclass(frozen=True)
class Quantity:
    """A number as written: 38.40亿元 is 3840000000, in steps of 1000000, CNY."""

    value: Decimal  # scaled
    places: Decimal  # what one step of its last digit is worth, scaled
    unit: str  # "CNY", "%", "percentage point", "day", …; "" without one, and for 倍, times, ratio; ANY


def matches(answer: str, value: str, unit: str) -> bool:
    """Tell whether `answer` states `value` (a plain decimal) of `unit` ("亿元", "CNY million", "%", "天", "").

    After an equation only what follows the last = or ≈ counts. The scale is free, the unit is not: % is no percentage
    point, and a number without any unit is a bare ratio or a year. 5.78亿 alone may have any unit.
    Rounding, half up or half even, may leave three significant digits or more; a finer answer needs fewer where the
    expected value has decimals (0.7312 for 0.73, but not 10.4 for 10). ValueError when `value` is no number.
    """
    own = re.sub("^月$", "个月", _plain(re.split("/| per ", unit)[0]).strip())  # 12月 is December
    unknown = "" if re.fullmatch(_suffix(""), own) else own  # then known as the row writes it
    match = _pattern(unknown).fullmatch(f"{value} {own}".strip())
    if not match or not match["number"]:
        raise ValueError(f"{value!r} {unit!r} is not one number with its unit")
    meant = next(_readings(match, unknown))
    meant = meant if own else replace(meant, unit="")  # 2020 of no unit is no year
    stated = found(re.split("[=≈]", _plain(answer))[-1], unknown) or found(answer, unknown)
    return any(_same_unit(said.unit, meant.unit) and _same(said, meant, "." in value) for said in stated)


def _same_unit(said: str, meant: str) -> bool:
    return said in (meant, ANY) or (said == "year" and not meant)


def _same(said: Quantity, meant: Quantity, measured: bool) -> bool:
    fine, coarse = (meant, said) if said.places > meant.places else (said, meant)
    if abs(coarse.value / coarse.places) < 100 and not (measured and coarse is meant):
        return said.value == meant.value
    steps = fine.value / coarse.places
    return coarse.value in (steps.to_integral_value(how) * coarse.places for how in (ROUND_HALF_UP, ROUND_HALF_EVEN))


def found(text: str, unknown: str = "") -> list[Quantity]:
    """Return the numbers of a text in their order; `unknown` is a further unit to know, as it is written.

    Left out: both ends of a range (30%至50%), dates but for their year, 第三, F00, 3rd. Two readings stand both:
    after a word of falling (下降3%, fell 3%) a number has either sign; basis points are percentage points or %.
    """
    text = _plain(text)
    matched = list(_pattern(unknown).finditer(text))
    pairs = [
        (one, two)
        for one, two in pairwise(matched)
        if _BETWEEN.fullmatch(text, one.end(), two.start())
        and not text[max(0, one.start() - 9) : one.start()].rstrip().endswith(("从", "由", "自", "from"))  # a change
    ]
    ends = {match for pair in pairs for match in pair}
    return [quantity for match in matched if match not in ends for quantity in _readings(match, unknown)]


def _readings(match: re.Match[str], unknown: str) -> Iterator[Quantity]:
    text, after = match.string, match["unit"] or match["scale"] or match["only"]
    if match["year"]:
        yield Quantity(Decimal(match["year"]), Decimal(1), "year")
    if not match["number"] or (
        not (after or match["before"]) and _no_amount(match["number"], text[match.end() : match.end() + 1])
    ):
        return
    quantity = _quantity(match, unknown)
    signs = (1, -1) if _FALL.search(text[max(0, match.start() - 30) : match.start()]) else (1,)
    for unit in ("percentage point", "%") if quantity.unit == "basis point" else (quantity.unit,):
        for sign in signs:
            yield replace(quantity, value=sign * quantity.value, unit=unit)


def _no_amount(number: str, follows: str) -> bool:
    """Tell whether a number without a unit is part of a word: 3rd, 5G, the 一 of 砚桥稳进一号."""
    return bool(re.match("[a-z]", follows)) or (len(number) == 1 and not number.isascii())


def _quantity(match: re.Match[str], unknown: str) -> Quantity:
    number = match["number"]
    value = Decimal(re.sub("[, ]", "", number)) if number.isascii() else _chinese(number)
    factor = _scale(match["scale"] or match["only"] or match["later"] or "")
    places = Decimal(1).scaleb(int(value.as_tuple().exponent))
    form = match["unit"] or ""
    form = form if form in {*_UNITS, *_FACTORS, unknown} else form.removesuffix("s")
    if match["before"]:
        unit = _BEFORE[match["before"].strip()]
    elif form:
        unit = _UNITS.get(form, "%" if form in _FACTORS else form)
        factor *= _FACTORS.get(form, Decimal("0.01") if unit == "basis point" else Decimal(1))
    elif match["only"]:
        unit = ANY
    else:
        unit = "year" if re.fullmatch("(?:19|20)[0-9]{2}", number) else ""
    value = value * factor + Decimal(match["hundreds"] or 0) * 10**8
    return Quantity(-value if match["sign"] or match["inner"] else value, places * factor, unit)


def _scale(written: str) -> Decimal:
    power = (_WORDS | _LETTERS).get(written)
    return Decimal(10) ** (sum(_MARKS[mark] for mark in written) if power is None else power)


def _chinese(number: str) -> Decimal:
    whole, _, fraction = number.partition("点")
    return Decimal(f"{_whole(whole)}.{fraction.translate(_DIGITS)}" if fraction else _whole(whole))


def _whole(number: str) -> int:
    """Read an integer in Chinese numerals: what stands left of its largest mark times that, plus what stands right."""
    for mark, power in _MARKS.items():
        if mark in number:
            left, _, right = number.rpartition(mark)
            return (_whole(left) if left else 1) * 10**power + (_whole(right) if right else 0)
    return int(number.translate(_DIGITS))


def _plain(text: str) -> str:
    """Return text in one width and case, with one minus, and without the marks of LaTeX and Markdown."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-").replace("**", "").replace("{,}", ",")
    if "\\" in text:
        text = text.replace("\\approx", "≈").replace("$", "")
        text = re.sub(r"\\(?:text|mathrm|mathbf|boxed)|[{}]|\\[,;! ()\[\]]", " ", text).replace("\\", "")
    text = re.sub(" +", " ", text)
    percent = re.compile(f"(百|千)分之({_ARABIC}|{_CHINESE})")
    return percent.sub(lambda match: match[2] + {"百": "%", "千": "‰"}[match[1]], text)


def _suffix(unknown: str) -> str:
    """Return the pattern of what may follow a number: a unit, a scale and a unit, or a scale alone."""
    forms = sorted({*_UNITS, *_FACTORS, unknown} - {""}, key=len, reverse=True)
    units = "|".join(map(_unit, forms))
    words = f"(?:{'|'.join(_WORDS)})(?![a-z])"
    scale = rf"[十百千]?万亿|[十百千]?[万亿]|[百千]|{words}|(?<=[0-9])[{''.join(_LETTERS)}](?![a-z])"
    kinds = "(?:(?:business|working|trading|calendar|retail|fund) )?"  # of days, stores, units
    return rf"[ -]?(?:(?P<scale>{scale})?? ?{kinds}(?P<unit>{units})(?: ?(?P<later>{words}))?|(?P<only>{scale}))"


def _unit(form: str) -> str:
    if form == "成":
        return "成(?![立本员为长交功])"  # 2020成立 is a year
    plural = "s?(?![a-z])" if re.match("[a-z]", form[-1]) else ""
    next_number = "(?! ?-?[0-9])" if form in _BEFORE and not re.search("[\u4e00-\u9fff]", form) else ""
    return re.escape(form) + plural + next_number  # in ¥5-¥10 the second ¥ belongs to the 10


@lru_cache(64)
def _pattern(unknown: str) -> re.Pattern[str]:
    before = "|".join(re.escape(form) for form in sorted(_BEFORE, key=len, reverse=True))
    return re.compile(
        rf"{_DATE}|(?P<sign>(?<![0-9a-z%‰)天日年月元亿万])-|负|minus )?"
        rf"(?:(?<![a-z])(?P<before>(?:{before}) ?)|(?<![0-9a-z])(?<![0-9][.,]))(?P<inner>[-负])?"
        rf"(?:(?P<hundreds>[0-9]+) ?亿 ?(?=[0-9,]+ ?万))?"
        rf"(?P<number>{_ARABIC}|(?<![第{_HAN}十百千万亿]){_CHINESE})(?:{_suffix(unknown)})?"
    )
