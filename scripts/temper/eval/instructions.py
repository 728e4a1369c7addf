"""Whether an answer does what was asked of its form: its length, lines, words, letters, language or JSON.

Covered is what a program can decide without judgement; whether the answer is true or well written is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from temper.errors import DataError
from temper.eval.text import fold

HAN, LATIN = r"[\u3400-\u9fff]", r"[A-Za-z\u00c0-\u024f]"
# A word of English; "don't" and "well-known" are one word each.
WORD = rf"(?:{LATIN}|[0-9])+(?:['’-](?:{LATIN}|[0-9])+)*"
FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)


def broken(answer: str, must: dict[str, Any]) -> list[str]:
    """Return in words what of `must` the answer does not obey; [] when it obeys all.

    `must` maps names in KINDS to what is wanted: lengths in characters or English words, lists of texts, and so on.
    DataError for a name that is not there, or a value that it cannot have. An empty answer obeys nothing.
    """
    return [f"{name}: {wanted}" for name, wanted in must.items() if not _obeyed(answer, name, wanted)]


def _obeyed(answer: str, name: str, wanted: Any) -> bool:
    if name not in KINDS:
        raise DataError(f"must.{name}: there is no such constraint", f"use one of {', '.join(KINDS)}")
    try:
        obeyed = KINDS[name](answer, wanted)
    except (AttributeError, KeyError, TypeError):
        raise DataError(f"must.{name}: {wanted!r} is no value for it", "correct the row") from None
    return bool(answer.strip()) and obeyed


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def _parsed(answer: str) -> Any:
    """Return the JSON that the whole answer is, or its one fenced block holds; None when it is none."""
    blocks = FENCE.findall(answer)
    try:
        return json.loads(blocks[0] if len(blocks) == 1 else answer)
    except ValueError:
        return None


def _in_language(answer: str, language: str) -> bool:
    """Say whether at least nine tenths of the letters are Han ("zh") or Latin ("en")."""
    letters, own = sum(map(str.isalpha, answer)), len(re.findall({"zh": HAN, "en": LATIN}[language], answer))
    return bool(letters) and 10 * own >= 9 * letters


def _times(answer: str, word: str) -> int:
    """Count a word; within a longer Latin word it is not one."""
    return len(re.findall(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", answer.lower()))


KINDS: dict[str, Callable[[str, Any], bool]] = {
    "contains": lambda answer, wanted: all(fold(part) in fold(answer) for part in wanted),
    "excludes": lambda answer, wanted: not any(fold(part) in fold(answer) for part in wanted),
    "starts_with": lambda answer, wanted: fold(answer).startswith(fold(wanted)),
    "ends_with": lambda answer, wanted: fold(answer).endswith(fold(wanted)),
    "lines": lambda answer, wanted: len(_lines(answer)) == wanted,
    "bullets": lambda answer, wanted: sum(bool(re.match(r"[-*\d]", line)) for line in _lines(answer)) == wanted,
    "max_words": lambda answer, wanted: len(re.findall(WORD, answer)) <= wanted,
    "max_chars": lambda answer, wanted: len(answer.strip()) <= wanted,
    "min_chars": lambda answer, wanted: len(answer.strip()) >= wanted,
    "lower": lambda answer, wanted: (answer == answer.lower()) == wanted,
    "upper": lambda answer, wanted: (answer == answer.upper()) == wanted,
    "json": lambda answer, wanted: (_parsed(answer) is not None) == wanted,
    "keys": lambda answer, wanted: isinstance(found := _parsed(answer), dict) and set(wanted) <= set(found),
    "language": _in_language,
    "count": lambda answer, wanted: all(_times(answer, word) == times for word, times in wanted.items()),
}
