"""Personal data and secrets: what is found in a row's text, what only looks like them, and the text without them."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.cn import ric

from temper.data.personal import KINDS, find, mask

ROOT = Path(__file__).resolve().parents[2]
TAIL = "q7Rz2LmX9vKp4TbW8nYc5JdF1hGs6UeA3oBiQ0xHtZyM2wNrVkPf"  # typed at random; the tests' keys are cut from it


def resident(start: str) -> str:
    """Return an ID number that begins with these 17 digits."""
    return start + ric.calc_check_digit(start + "0")


def card(start: str) -> str:
    """Return a card number that begins with these digits."""
    return start + luhn.calc_check_digit(start)


def pem(name: str, lines: int = 3, end: bool = True, line_end: str = "\n") -> str:
    """Return a block that looks like a private key."""
    body = line_end.join([(TAIL + TAIL)[:64]] * lines)
    return f"-----BEGIN {name}-----{line_end}{body}" + f"{line_end}-----END {name}-----" * end


def jwt() -> str:
    """Return a token with a header, a payload and a signature."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "u-204", "iat": 1741415130})
    return ".".join([*(urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), TAIL[:43]])


IDS = [
    resident("11010119900307123"),
    resident("11010120080229001"),
    resident("62010219851203441"),
    resident("44030519850412341"),  # born before the county had its code
    resident("11010119900307123").translate(str.maketrans("0123456789", "０１２３４５６７８９")),
]
ENDS_WITH_X = next(number for tail in range(100, 200) if (number := resident(f"11010119900307{tail}"))[-1] == "X")
IDS += [ENDS_WITH_X, ENDS_WITH_X.lower(), ENDS_WITH_X.replace("X", "Ｘ"), f"{IDS[0][:6]} {IDS[0][6:14]} {IDS[0][14:]}"]
UNIONPAY = card("622202020001234567")  # 19 digits
CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "5555555555554444",
    card("222300004841001"),
    "378282246310005",
    "3782 822463 10005",
    "3056 930902 5904",
    "3530111333300000",
    "6011111111111117",
    card("622588012345678"),
    UNIONPAY,
    f"{UNIONPAY[:4]} {UNIONPAY[4:8]} {UNIONPAY[8:12]} {UNIONPAY[12:16]} {UNIONPAY[16:]}",
    f"{UNIONPAY[:6]} {UNIONPAY[6:]}",
    card("955880020000123456"),
    "４１１１１１１１１１１１１１１１",
]
MOBILES = [
    "13812345678",
    "138 1234 5678",
    "138-1234-5678",
    "+8613812345678",
    "+86 138 1234 5678",
    "+86-138-1234-5678",
    "008613812345678",
    "0086 19900001111",
    "86 13812345678",
    "8613812345678",
    "１３８１２３４５６７８",
    "１３８－１２３４－５６７８",
    "+44 7911 123456",
    "+1 (415) 555-2671",
    "+852 6123 4567",
    "+4917612345678",
]
EMAILS = ["li.wei@yanqiao.cn", "a+b_c%d@mail.yanqiao-shop.com.cn", "X@Y.CO", "me@my-example.com", "8.8.8.8@yanqiao.cn"]
IPS = ["8.8.4.4", "114.114.114.114", "2606:4700:4700::1111", "2400:3200:0:0:0:0:0:1", "240E:0:0:0:0:0:0:A1"]
KEYS = [
    f"sk-{TAIL[:48]}",
    f"sk-proj-{TAIL}_{TAIL[:20]}-{TAIL[:20]}",
    f"sk-ant-api03-{TAIL}-{TAIL[:30]}",
    "sk-4f9c02d7be6a4813a5d0c97e21b8f36d",
    f"AKIA{TAIL[:16].upper()}",
    f"ASIA{TAIL[:16].upper()}",
    f"ghp_{TAIL[:36]}",
    f"gho_{TAIL[:36]}",
    f"github_pat_{TAIL[:22]}_{(TAIL + TAIL)[:59]}",
    f"glpat-{TAIL[:20]}",
    f"glpat-{TAIL[:27]}.01.{TAIL[:9]}",
    f"xoxb-204817395026-{TAIL[:24]}",
    f"xapp-1-A04B2-204817395026-{TAIL[:24]}",
    f"https://hooks.slack.com/services/T04B2C8D1/B07Q2RZ9L/{TAIL[:24]}",
    f"sk_live_{TAIL[:24]}",
    f"rk_test_{TAIL[:24]}",
    f"AIza{TAIL[:35]}",
    f"hf_{TAIL[:34]}",
    f"LTAI{TAIL[:20]}",
    f"AKID{TAIL[:32]}",
    jwt(),
    pem("PRIVATE KEY"),
    pem("RSA PRIVATE KEY"),
    pem("OPENSSH PRIVATE KEY", line_end="\\n"),
    pem("PGP PRIVATE KEY BLOCK"),
    pem("EC PRIVATE KEY", end=False),
]
HITS = {"cn_id": IDS, "bank_card": CARDS, "mobile": MOBILES, "email": EMAILS, "ip": IPS, "api_key": KEYS}
EACH = [(kind, value) for kind in KINDS for value in HITS[kind]]

NEAR = [
    *(number[:-1] + str((int(number[-1]) + 5) % 10) for number in ("4111111111111111", UNIONPAY)),  # the checksum
    IDS[0][:-1] + ("1" if IDS[0][-1] != "1" else "2"),
    resident("11010119900231123"),  # 31 February
    resident("99010119900307123"),  # no such province
    resident("11999919900307123"),  # no such county
    *(f"{number}0" for number in ("13812345678", IDS[0], "4111111111111111")),  # longer runs of digits
    *(f"0.{number}" for number in ("13812345678", "4111111111111111")),
    "13812345678.50",
    "¥13812345678",
    "13812345678元",
    "A13812345678",
    "13812345678B",
    "user_13812345678",
    "ORD-13812345678",
    "13812345678-a7f3",
    "550e8400-e29b-41d4-a716-138123456789",
    "12812345678",  # no such network
    "14012345678",
    "138 12345 678",
    "138****5678",
    "13812345678901",
    "202405061234567890",
    "20240506123456789012",
    "4006000618",
    "400-600-0618",
    "1741415130123",  # milliseconds
    "4006381333931",  # a bar code
    "8111111111111111",  # no issuer
    "4111 1111 1111 1111 1111",
    "1234567890123456",
    "2024-05-06 10:30:45",
    "i+1234567890",
    "+0044 7911 123456",
    "https://yanqiao.cn/order/13812345678/4111111111111111/8.8.4.4",
    "yanqiao.cn/order/13812345678",
    "care@yanqiao.example",
    "me@example.com",
    "me@mail.example.org",
    "Me@Example.NET",
    "me@site.invalid",
    "me@site.test",
    "root@localhost",
    "root@db.localhost",
    "icon@2x.png",
    "git@github.com:yanqiao/shop.git",
    "lodash@4.17.21",
    "@app.route",
    "z***@yanqiao.cn",
    *("192.0.2.7", "198.51.100.7", "203.0.113.7", "10.0.0.1", "172.16.3.4", "192.168.1.1", "127.0.0.1", "0.0.0.0"),
    *("100.64.0.1", "169.254.1.1", "224.0.0.251", "255.255.255.0", "120.0.0.0"),
    *("2001:db8::7", "::1", "fe80::1", "fd00::2606:4700", "ff02::fb", "std::vector", "10:30:45:12:01:02:03:04"),
    *("v1.2.3.4", "V1.2.3.4", "version 1.2.3.4", "Version: 1.2.3.4", "版本1.2.3.4", "版本号：1.2.3.4", "1.2.3.4 版本"),
    *("pip install shop==1.2.3.4", "Chrome/99.0.48.44", "shop-1.2.3.4.tar.gz", "第1.2.3.4节", "1.2.3.4.5", "1.2.3"),
    *("256.8.4.4", "08.08.04.04", "4.4.8.8.in-addr.arpa"),
    *("sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sk-your-api-key-goes-here-please", "sk-...", "YOUR_API_KEY"),
    *("sk-1234567890abcdef1234567890abcdef", "sk-loading-container-with-animation-2", f"task-{TAIL[:30]}"),
    *("AKIAIOSFODNN7EXAMPLE", f"AKIA{TAIL[:17].upper()}", "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "ghp_short"),
    *(
        "hf_hub_download_with_some_options_set",
        "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "AKID_OF_THE_CALLER",
        "eyJhbGciOiJIUzI1NiJ9",
    ),
    *("-----BEGIN PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\nMIIE...\n-----END RSA PRIVATE KEY-----"),
    pem("PUBLIC KEY"),
    pem("CERTIFICATE"),
]


@pytest.mark.parametrize(("kind", "value"), EACH)
@pytest.mark.parametrize(
    "around",
    [
        ("", ""),
        ("请联系", "，谢谢。"),
        ("李雷的资料：", "（已核对）"),
        ("Please note ", ", and thank you."),
        ('{"value": "', '"}'),
        ("a,", ",b\n"),
        ("一行\n", "\n又一行"),
    ],
)
def test_each_kind_is_found_in_chinese_and_english(kind: str, value: str, around: tuple[str, str]) -> None:
    """A value is found whole, and the mask leaves all around it byte for byte."""
    before, after = around
    text = f"{before}{value}{after}"
    found = find(text)
    assert found == [(kind, len(before), len(before) + len(value))]
    assert mask(text, found) == f"{before}[{kind.upper()}]{after}"


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("around", ["{}", "请看 {} 谢谢", "请看{}。", "See {}, please.", '"{}"', "({})\n"])
def test_what_only_looks_like_it_is_not_found(near: str, around: str) -> None:
    """A wrong checksum, a longer run, a price, a version, a reserved domain or address and a placeholder are none."""
    assert find(around.format(near)) == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("13812345678/13987654321", "[MOBILE]/[MOBILE]"),
        ("13812345678 13987654321", "[MOBILE] [MOBILE]"),
        ("4111 1111 1111 1111 13812345678", "[BANK_CARD] [MOBILE]"),
        ("4111 1111 1111 1111 5555 5555 5555 4444", "[BANK_CARD] [BANK_CARD]"),
        ("4111 1111 1111 1111 12/27 737", "[BANK_CARD] 12/27 737"),
        ("4111 1111 1111 1111 123", "[BANK_CARD] 123"),
        ("13812345678@yanqiao.cn", "[EMAIL]"),
        (f"{IDS[0]}@yanqiao.cn，{IDS[0]}", "[EMAIL]，[CN_ID]"),
        ("+1-415-555-2671 2024", "[MOBILE] 2024"),
        ("(+86)13812345678", "(+86)[MOBILE]"),
        ("8.8.4.4-8.8.4.9", "[IP]-[IP]"),
        ("http://8.8.4.4:8080/13812345678?phone=13812345678", "http://[IP]:8080/13812345678?phone=[MOBILE]"),
        ("::ffff:8.8.4.4", "::ffff:[IP]"),
        ("tel:13812345678;mailto:li.wei@yanqiao.cn", "tel:[MOBILE];mailto:[EMAIL]"),
        (f"OPENAI_API_KEY=sk-{TAIL[:48]}\n", "OPENAI_API_KEY=[API_KEY]\n"),
        (f"Authorization: Bearer {jwt()}", "Authorization: Bearer [API_KEY]"),
        (f"{pem('PRIVATE KEY')}\n{pem('PRIVATE KEY')}", "[API_KEY]\n[API_KEY]"),
        ("张三 25 13812345678 li.wei@yanqiao.cn 8.8.4.4", "张三 25 [MOBILE] [EMAIL] [IP]"),
        ("\ud83d13812345678\udc00\x00", "\ud83d[MOBILE]\udc00\x00"),  # halves of a character
    ],
)
def test_neighbours_are_told_apart(text: str, masked: str) -> None:
    """Values that touch or overlap become one mark each, and the masked text holds nothing."""
    assert mask(text, find(text)) == masked
    assert find(masked) == []


def test_a_number_of_both_forms_is_found_once() -> None:
    """An ID that also passes as a card is an ID."""
    both = next(number for tail in range(1000) if luhn.is_valid(number := resident(f"62010219851203{tail:03}")))
    assert [found.kind for found in find(both)] == ["cn_id"]


def test_marks_are_constant() -> None:
    """Each kind has its own mark, whatever the value."""
    marks = {mask(value, find(value)) for _, value in EACH}
    assert marks == {"[CN_ID]", "[BANK_CARD]", "[MOBILE]", "[EMAIL]", "[IP]", "[API_KEY]"}


def test_nothing_found_leaves_the_text() -> None:
    """A text without any of it stays the same."""
    assert mask("几天内可以退货？", []) == "几天内可以退货？"


def test_texts_without_candidates_load_no_library() -> None:
    """Neither the import nor a text without anything loads a third-party library."""
    code = (
        "import sys; from temper.data.personal import find; find('订单 2024-05-06，1.5 元'); "
        "print([name for name in ('stdnum', 'phonenumbers') if name in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "scripts")})
    assert done.stdout == "[]\n"


PIECES = st.one_of(
    st.sampled_from([*(value for _, value in EACH), *NEAR]),
    st.sampled_from([*" -+./:@,_?#\n", "，", "号", "::", "://", "x", "1", "86", "版本", "[IP]", "sk-", "-----"]),
    st.text(st.characters(), max_size=5),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(st.characters(), max_size=80), st.lists(PIECES, max_size=8).map("".join)))
@example("")
@example("﷐::@+" * 9)
def test_any_text_is_searched_and_masked(text: str) -> None:
    """Spans are ordered, inside the text and apart; the rest is kept, and the masked text holds nothing."""
    found = find(text)
    assert all(each.kind in KINDS for each in found)
    edges = [edge for each in found for edge in (each.start, each.end)]
    assert edges == sorted(edges) and all(each.start < each.end for each in found)
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(text))
    masked = mask(text, found)
    assert find(masked) == []
    kept = text
    for each in reversed(found):
        kept = f"{kept[: each.start]}[{each.kind.upper()}]{kept[each.end :]}"
    assert masked == kept
