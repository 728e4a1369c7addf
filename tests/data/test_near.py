"""Nearly the same questions: what they are compared by, how alike they are, and that no alike pair is overlooked."""

from __future__ import annotations

import hashlib
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.data.near import BANDS, THRESHOLD, bands, fold, likeness

ROOT = Path(__file__).resolve().parents[2]
HAN = "客户可以在门店退换货吗请问保修期多久发票怎么开会员积分如何兑换配送到家需要费用安装服务预约电话地址营业时间"
LONG = (
    "我上周在你们网上商城买的扫地机器人一直连不上家里的无线网络，已经按说明书重置过很多次了，请问还应该检查哪些地方？"
)
ENGLISH = (
    "Could you tell me how I can return an air fryer that I bought in your online store if the box is already open?"
)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("退货？", "退货"),
        (" 退货 ?\n", "退货"),
        ("Ｗｈａｔ’s the Price?!", "whatstheprice"),
        ("Straße ﬁle Ⅱ", "strassefileii"),
        ("3,000 元，共3，000，000", "3000元共3000000"),
        ("1.5 倍", "1.5倍"),
        ("第1、2条", "第1、2条"),
        ("10 ： 30", "10:30"),
        ("12 34; 5, 678", "12 34;5 678"),
        ("C++ 和 C#", "c++和c#"),
        ("涨 5 ％，跌 -5%", "涨5%跌−5%"),
        ("K-17 e-mail snake_case", "k17emailsnakecase"),
        ("…？！", ""),
    ],
)
def test_folding_keeps_what_a_question_asks_for(text: str, folded: str) -> None:
    """Width, case, blanks and punctuation go; signs stay, and digits that were apart never become one number."""
    assert fold(text) == folded
    assert fold(folded) == folded


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("退货？", "退货 ?"),
        ("砚桥电器2021年的营业收入是多少？", "砚桥电器２０２１年的营业收入，是多少"),
        ("申购 3,000 元要付多少手续费？", "申购3000元要付多少手续费"),
        ("Does the K17 kettle switch off by itself?", "does the k-17 kettle switch off by itself"),
        ("What's the largest holding?", "Whats the largest holding"),
        (LONG, f"{LONG[:-1]}呢"),
        ("请问一下，积分可以换哪些商品和服务，怎么换？", "请问，一下积分可以换哪些商品和服务，怎么换"),
        (LONG, LONG.replace("网络", "网路")),
        (LONG, LONG.replace("应该", "应当")),
        (ENGLISH, ENGLISH.replace("fryer", "frier")),
        (ENGLISH, f"Hello! {ENGLISH}"),
    ],
)
def test_near(one: str, other: str) -> None:
    """Punctuation, width, case, a particle or greeting, and one word or character in a long text make no difference."""
    assert likeness(one, other) >= THRESHOLD
    assert (bands([one]) == bands([other])).any()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("砚桥电器2021年的营业收入是多少？", "砚桥电器2022年的营业收入是多少？"),
        (f"{LONG}我等了3天", f"{LONG}我等了30天"),
        (f"{LONG}第一次是三月", f"{LONG}第一次是四月"),
        (f"{LONG}第一台", f"{LONG}第三台"),
        (f"{LONG}折扣是1.5", f"{LONG}折扣是15"),
        (f"{LONG}-5度", f"{LONG}5度"),
        (f"{LONG}型号K17", f"{LONG}型号K18"),
        (f"{LONG}型号K17", f"{LONG}型号V17"),
        (f"{LONG}甲方", f"{LONG}乙方"),
        (f"{ENGLISH} It was my first order.", f"{ENGLISH} It was my third order."),
        (f"{ENGLISH} I have plan B.", f"{ENGLISH} I have plan C."),
        (f"{ENGLISH} I read C++.", f"{ENGLISH} I read C#."),
        (f"{ENGLISH} It is 3*5.", f"{ENGLISH} It is 3/5."),
        ("怎么申请退货", "怎么申请换货"),
        ("砚桥稳进一号的管理费率是多少？", "砚桥稳进一号的托管费率是多少？"),
        ("砚桥电器2025年的毛利是多少？", "砚桥电器2025年的毛利率是多少？"),
        ("What were the total assets at the end of 2022?", "What were the total liabilities at the end of 2022?"),
        ("What is the warranty on your ovens?", "What is the warranty on your fans?"),
        ("平安银行在2021年第三季度报告中披露的净利润是多少？", "宁波银行在2021年第三季度报告中披露的净利润是多少？"),
        (
            "How large was the operating revenue reported by BYD?",
            "How large was the operating revenue reported by SMIC?",
        ),
        ("？", "！"),
    ],
)
def test_not_near(one: str, other: str) -> None:
    """Another number, code or sign makes another question however long it is; a word or name does in a short one."""
    assert likeness(one, other) < THRESHOLD


def test_other_numbers_never_meet() -> None:
    """Of a hundred questions that differ in a year alone no two share a band, so they cost no comparison."""
    found = bands([f"砚桥电器{year}年的营业收入是多少？" for year in range(1926, 2026)])
    assert all(len(set(column)) == 100 for column in found.T.tolist())


@given(st.text(), st.text())
def test_likeness_is_a_similarity(one: str, other: str) -> None:
    """It lies between 0 and 1, whichever text comes first, and is 1 for a text with letters and itself."""
    assert 0 <= likeness(one, other) == likeness(other, one) <= 1
    assert likeness(one, one) == bool(fold(one))
    assert fold(one) or not any(letter.isalnum() for letter in one)


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    """A folded text folds to itself, whatever is in it."""
    assert fold(fold(text)) == fold(text)


def test_bands_are_the_same_everywhere() -> None:
    """The hashes are those recorded: no machine, Python, number of threads or release of a package changes them."""
    found = bands(["砚桥电器2021年的营业收入是多少？", "How many stores are there?", ""])
    assert (found.shape, found.dtype) == ((3, BANDS), np.uint64)
    assert hashlib.sha256(found.astype("<u8").tobytes()).hexdigest()[:16] == "b3f3ee8723baaa0c"


def test_bands_do_not_depend_on_the_other_texts() -> None:
    """A text gets the same hashes alone and among any others, short, long or empty ones."""
    texts = [LONG, "", "退", "a" * 70_000, ENGLISH, *(f"{HAN[n:]}{n}" for n in range(40))] * 5
    together = bands(texts)
    for place in (*range(45), 127, 128, 129, 224):
        assert (together[place] == bands([texts[place]])[0]).all()
    assert bands([]).shape == (0, BANDS)


def edited(text: str, chance: random.Random) -> str:
    """Return text with one to three characters put in, taken out or exchanged."""
    for _ in range(chance.randint(1, 3)):
        at, kind = chance.randrange(len(text)), chance.randrange(3)
        text = text[:at] + chance.choice(["", HAN[at % 40], HAN[at % 40] + text[at]][kind:]) + text[at + 1 :]
    return text


def invented(chance: random.Random) -> str:
    """Return a question of random words, Chinese or English."""
    if chance.random() < 0.6:
        return "".join(chance.choices(HAN, k=chance.randint(10, 70)))
    return " ".join("".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(12))


def test_every_near_pair_shares_a_band() -> None:
    """Of 3000 pairs at or above the threshold, many of them just above it, none is overlooked."""
    chance = random.Random(7)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 3000:
        text = invented(chance)
        other = edited(text, chance)
        if THRESHOLD <= likeness(text, other) < 1:
            pairs.append((text, other))
    shared = (bands([one for one, _ in pairs]) == bands([other for _, other in pairs])).any(axis=1)
    assert shared.all()


def test_few_others_do() -> None:
    """Among 2000 unrelated questions, two million pairs, fewer than ten share a band."""
    chance = random.Random(8)
    found = bands([invented(chance) for _ in range(2000)])
    counts = [np.unique(column, return_counts=True)[1] for column in found.T]
    assert sum(int((many * (many - 1) // 2).sum()) for many in counts) < 10


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by /proc")
def test_it_starts_no_threads_and_loads_nothing_before_it_is_used() -> None:
    """A process may fork after bands() of many or huge texts: threads of a library would leave the child hanging."""
    code = (
        "import os, sys; from temper.data import near; assert not {'numpy', 'rensa'} & set(sys.modules); import numpy;"
        "tasks = lambda: len(os.listdir('/proc/self/task')); before = tasks();"
        "near.bands(['question ' * 9] * 3000 + ['字' * 9000] * 30 + ['问' * 200_000]); assert tasks() == before"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "RAYON_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
