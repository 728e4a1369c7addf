"""What is done to one row: its text checked and normalised, whatever file or engine it comes from."""

from __future__ import annotations

import ast
import html
import math
import re
import unicodedata
import warnings
from collections import Counter
from typing import Any

from temper.data.options import Options
from temper.data.reasons import Rejected

# Controls but tab and line ends, halves of characters, U+FFFE and U+FFFF.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
# What str.strip() takes off, and the marks that look like nothing.
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
BLANKS += "\u2028\u2029\u202f\u205f\u3000"
BLANKS += "\x1c\x1d\x1e\x1f\ufeff\u200b"
_TAGS = (  # that say how a text looks
    "a|b|br|center|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul"
)
TAG = re.compile(rf"</?(?:{_TAGS})(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>", re.IGNORECASE)
MARKUP = re.compile(rf"</(?:{_TAGS})\s*>|<(?:br|hr|img)[\s/>]", re.IGNORECASE)  # a lone <p> may be spoken about
BREAK = re.compile(r"<(?:br|hr)\s*/?>|</(?:p|div|li|tr|h[1-6])>", re.IGNORECASE)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
LONGEST_NUMBER = 10_000  # bits; Python writes no longer ones
FENCE = re.compile(r"^```[ \t]*(?:python|py|python3)[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def normalise(text: str, changes: Counter[str]) -> str:
    """Return text in NFC, with line feeds for line ends and plain blanks, without HTML remains and surrounding blanks.

    Text that holds a backtick is taken for code, whose tags and entities are meant. `changes` counts what was changed.
    """

    def note(what: str, after: str) -> str:
        if after != text:
            changes[what] += 1
        return after

    if "\r" in text:
        text = note("line_ends", text.replace("\r\n", "\n").replace("\r", "\n"))
    if ("<" in text or "&" in text) and "`" not in text:
        text = note("html", ENTITY.sub(_character, TAG.sub("", BREAK.sub("\n", text)) if MARKUP.search(text) else text))
    if "\u3000" in text:
        text = note("full_width_space", text.replace("\u3000", " "))
    if not unicodedata.is_normalized("NFC", text):
        text = note("unicode", unicodedata.normalize("NFC", text))
    return note("blanks", text.strip(BLANKS))


def _character(entity: re.Match[str]) -> str:
    character = html.unescape(entity[0]).replace("\xa0", " ")
    return entity[0] if CONTROL.search(character) or character in "\ufffd\r" else character


def check_text(text: str, options: Options) -> None:
    """Refuse damaged and absurdly long text."""
    if len(text) > options.max_chars:
        raise Rejected("too-long", f"{len(text)} characters, data.max_chars is {options.max_chars}")
    if "\ufffd" in text:
        raise Rejected("encoding", "holds U+FFFD, the mark of a character that was lost earlier")
    if found := CONTROL.search(text):
        if "\ud800" <= found[0] <= "\udfff":
            raise Rejected("encoding", "half of a character, or bytes that are not in the file's encoding")
        raise Rejected("control-character", f"holds U+{ord(found[0]):04X} at character {found.start() + 1}")


def check_code(text: str) -> None:
    """Refuse an answer whose fenced Python blocks do not parse."""
    for block in FENCE.finditer(text):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escapes in strings
                ast.parse(block[1])
        except SyntaxError as error:
            raise Rejected("code-syntax", f"line {error.lineno} of the Python code: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError):
            raise Rejected("code-syntax", "the Python code is too deeply nested to be read") from None


def text_of(value: Any, what: str) -> str:
    """Return a field as text: numbers as they are written, nothing for null; refuse lists, objects and truth values."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < LONGEST_NUMBER:
        return str(value)
    raise Rejected("wrong-type", f"the {what} is {_kind(value)}, not text")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
