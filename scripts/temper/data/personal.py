"""Personal data and secrets in the text of a row, in Chinese or in English: where they are, and a text without them.

Most rows hold none: a few tests of the whole text settle that, before any pattern is tried or any library is loaded.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

KINDS: tuple[str, ...] = ("cn_id", "bank_card", "mobile", "email", "ip", "api_key")


class Found(NamedTuple):
    """Where a text holds personal data or a secret."""

    kind: str
    start: int
    end: int


# Tests of the whole text, on its bytes: a run of what may be a number or a key. U+FF10 to U+FF19, the digits of full
# width, are EF BC 90 to EF BC 99 in UTF-8, and the hyphen is EF BC 8D.
_NUMBERS = bytes(48 if 48 <= byte <= 57 or 0x90 <= byte <= 0x99 else byte for byte in range(256))
_WORDS = bytes(48 if byte < 128 and (chr(byte).isalnum() or byte in b"_-") else 32 for byte in range(256))
_GAPS, _NUMBER, _WORD = b" -\xef\xbc\x8d", b"0" * 11, b"0" * 16
_DOTS = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]").search
_COLONS = re.compile(r":(?::|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:)").search
_NARROW = str.maketrans("０１２３４５６７８９Ｘｘ＋－", "0123456789Xx+-")

# What stands before a number is looked at after its first character: so the engine can skip to that character.
_BEFORE = r"(?<![0-9A-Za-z_$¥￥€£].)(?<![0-9]\..)(?<![0-9A-Za-z_]-.)(?<![A-Za-z_]/.)"
_AFTER = r"(?![0-9A-Za-z_%元]|\.[0-9]|-[0-9A-Za-z])"
_ID = re.compile(
    rf"[1-8]{_BEFORE}[0-9]{{5}}[ -]?(?:18|19|20)[0-9]{{2}}[01][0-9][0-3][0-9][ -]?[0-9]{{3}}[0-9Xx]{_AFTER}"
)
_CARD = re.compile(
    rf"[2-69]{_BEFORE}(?:[0-9]{{3}}([ -]?)[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,4}}(?:\1[0-9]{{1,3}})?"
    rf"|[0-9]{{3}}([ -])[0-9]{{6}}\2[0-9]{{4,5}}|[0-9]{{5}}[ -][0-9]{{10,13}}){_AFTER}"
    r"(?![ -][0-9]{4}(?![0-9/]|[ -][0-9]))"
)
_ISSUERS = re.compile(  # Visa's 13 and 19 digits are left out: bar codes and order numbers have them, cards hardly do
    "4.{15}|5[1-5].{14}|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720).{12}|3[47].{13}|35(?:2[89]|[3-8].).{12}"
    "|3(?:0[0-5]|[68].).{11}|6(?:011|4[4-9].|5..).{12,15}|62.{14,17}|(?:9558.|95599|60138).{14}"
)
_MOBILE = re.compile(
    rf"(?:1{_BEFORE}|8{_BEFORE}6[ -]?1|\+{_BEFORE}86[ -]?1|0{_BEFORE}086[ -]?1)[3-9]"
    rf"(?:[0-9]{{9}}|[0-9]([ -])[0-9]{{4}}\1[0-9]{{4}}){_AFTER}"
)
_ABROAD = re.compile(rf"\+{_BEFORE}[1-9](?:[ ().-]{{0,2}}[0-9]){{6,16}}{_AFTER}")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+*-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
    r"(?![A-Za-z0-9_-])"
)
_NOBODY = re.compile(  # RFC 2606, RFC 6761, the login of git hosts, and icon@2x.png
    r"git@.*|.*[@.](?:example(?:\.(?:com|net|org))?|invalid|test|localhost|local|internal|png|jpe?g|gif|svg|webp)", re.I
)
_IP = re.compile(
    r"[0-9](?<![0-9A-Za-z_].)(?<![0-9]\..)(?<![A-Za-z]-.)(?<![A-Za-z_]/.)[0-9]{0,2}(?:\.[0-9]{1,3}){3}"
    r"(?![0-9A-Za-z_]|\.[0-9A-Za-z]|-[A-Za-z])"
    r"|2(?<![0-9A-Za-z_].)(?<![0-9A-Fa-f:]:.)[0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){1,6}:[0-9A-Fa-f]{1,4}(?![0-9A-Za-z_:])"
)
_NOT_NUMBERS = re.compile(  # the path of a URL after its host (group 1), a version, a section
    r"(://[^\s/?#]+|(?<![A-Za-z0-9_.-])(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})/[!$%&*+./0-9:=@A-Z\[\]^_a-z{|}~-]*"
    r"|(?:(?<![A-Za-z])v(?:er(?:sion)?)?|版本号?|固件|firmware|release|section|章节|第|[=<>~]=)[\s.:：=为是]{0,4}[0-9]+(?:\.[0-9]+)+"
    r"|(?<![0-9.])[0-9]+(?:\.[0-9]+)+\s?(?:版|节|章|version)",
    re.I,
)
_LETTERS = str.maketrans("0123456789", "x" * 10)
_KEY_FORMS = (
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic, DeepSeek, Alibaba's DashScope
    r"A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"AKID[A-Za-z0-9]{28,36}(?![A-Za-z0-9])",  # Tencent
    r"LTAI[A-Za-z0-9]{12,26}(?![A-Za-z0-9])",  # Alibaba
    r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",  # Google
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}",
    r"gl(?:pat|dt|rt|ft|soat|ptt|cbt|agent|oas)-[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)*",  # GitLab
    r"x(?:ox[abeoprs]|app)-[A-Za-z0-9-]{20,}",  # Slack
    r"https://hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{16,}",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",  # JWT
)
_PEM = "[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_KEYS = re.compile(
    rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_KEY_FORMS)})"
    rf"|-----BEGIN {_PEM}(?:(?:(?!-----)[\s\S])*-----END {_PEM}|(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{{16,}})+)"
)
_MADE_UP = re.compile(r"(.)\1{4}|x{4}|your|example|placeholder|123456789|abcdefgh", re.I).search


def _joined(text: str) -> str:
    return text.replace(" ", "").replace("-", "")


def _id(text: str) -> int:
    from stdnum import exceptions, numdb
    from stdnum.cn import ric

    number = _joined(text).upper()
    try:
        ric.get_birth_date(number)
    except exceptions.ValidationError:
        return 0
    # ric.is_valid() wants the county to have had its code at the birth; people got theirs when they were registered
    county = any("county" in each for _, each in numdb.get("cn/loc").info(number[:6]))
    return len(text) if county and number[-1] == ric.calc_check_digit(number) else 0


def _card(text: str) -> int:
    from stdnum import luhn

    while text:
        digits = _joined(text)
        if _ISSUERS.fullmatch(digits) and luhn.is_valid(digits):
            break
        text = text[: max(text.rfind(" "), text.rfind("-"), 0)]  # the last group may be something else
    return len(text)


def _mobile(text: str) -> int:
    import phonenumbers

    number = phonenumbers.parse(_joined(text)[-11:], "CN")
    return len(text) if phonenumbers.is_valid_number(number) else 0


def _abroad(text: str) -> int:
    import phonenumbers

    return next((match.end for match in phonenumbers.PhoneNumberMatcher(text, None) if match.start == 0), 0)


def _email(text: str) -> int:
    return 0 if _NOBODY.fullmatch(text) else len(text)


def _ip(text: str) -> int:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if address.is_global and not address.is_multicast and not text.endswith(".0.0") else 0


def _key(text: str) -> int:
    if text.startswith("-----"):
        return len(text) if re.search("[A-Za-z0-9+/=]{40}", text) else 0
    if text.startswith("sk-") and not (re.search("[A-Za-z0-9]{16}", text) and re.search("[0-9]", text)):
        return 0  # words with hyphens between
    return 0 if _MADE_UP(text) and not text.startswith("eyJ") else len(text)


# In this order: what an earlier one finds is hidden from a later one. A check says how much of a candidate is it.
_FINDERS: tuple[tuple[str, re.Pattern[str], Callable[[str], int]], ...] = (
    ("api_key", _KEYS, _key),
    ("email", _EMAIL, _email),
    ("cn_id", _ID, _id),
    ("bank_card", _CARD, _card),
    ("mobile", _MOBILE, _mobile),
    ("mobile", _ABROAD, _abroad),
    ("ip", _IP, _ip),
)


def _possible(text: str) -> set[str]:
    """Return the kinds that `text` may hold; this is all that is done to most texts."""
    kinds, data = set(), text.encode("utf-8", "surrogatepass")
    if _WORD in data.translate(_WORDS) or "-----BEGIN " in text:
        kinds.add("api_key")
    if "@" in text:
        kinds.add("email")
    if _NUMBER in data.translate(_NUMBERS, _GAPS):
        kinds.update(("cn_id", "bank_card", "mobile"))
    elif "+" in text and _ABROAD.search(text):
        kinds.add("mobile")
    if _DOTS(text) or _COLONS(text):
        kinds.add("ip")
    return kinds


def _worded(match: re.Match[str]) -> str:
    host = match[1] or ""
    return host + match[0][len(host) :].translate(_LETTERS)


def _with(text: str, marks: Sequence[tuple[Found, str]]) -> str:
    parts, at = [], 0
    for each, mark in marks:
        parts += [text[at : each.start], mark]
        at = each.end
    return "".join([*parts, text[at:]])


def find(text: str) -> list[Found]:
    """Return what personal data and secrets `text` holds, in order; no two overlap."""
    found: list[Found] = []
    before = -1
    while before != len(found) and (kinds := _possible(text)):  # again: what was found may have stood before another
        before, text = len(found), text.translate(_NARROW)
        for kind, pattern, check in _FINDERS:
            if kind not in kinds or not pattern.search(text):
                continue
            seen = text if kind in ("api_key", "email") else _NOT_NUMBERS.sub(_worded, text)
            ends = [(match.start(), match.start() + check(match[0])) for match in pattern.finditer(seen)]
            new = [Found(kind, start, end) for start, end in ends if end > start]
            text = _with(text, [(each, f"[{'*' * (each.end - each.start - 2)}]") for each in new])
            found += new
    return sorted(found, key=lambda each: each.start)


def mask(text: str, found: Sequence[Found]) -> str:
    """Return `text` with a mark such as [MOBILE] in the place of each of `found`."""
    return _with(text, [(each, f"[{each.kind.upper()}]") for each in found])
