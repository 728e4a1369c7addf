"""The rows of a whole chunk found at once, where its table is written as CSV writers write it.

Most rows of most tables are to be copied and no more. Which ones is told here from the bytes of a chunk with numpy;
the others are read one by one, and so is all of a chunk with a stray quote, a lone carriage return or broken UTF-8.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from temper.data import chunks
from temper.data.chunks import Reader, text_of
from temper.data.gather import is_utf8
from temper.data.reasons import Rejected

QUOTE, LINE_FEED, RETURN, TAB, BLANK = b'"\n\r\t '
STRIPPED = 2  # blanks that are taken off either end of a text here; where there are more, the row is read
MARKS = b"\\<&`\x7f"  # of ASCII, what a row with it is looked at for, besides controls and quotes
# Text that is in NFC and holds nothing to be cleaned but blanks at its ends: ASCII, Latin, Cyrillic, punctuation,
# symbols, kana, Chinese, Hangul, full-width forms and emoji. All else is looked at character by character.
PLAIN = (
    "\t\n\r\x20-\x7e\u00a1-\u02ff\u0400-\u0482\u048a-\u052f\u1e00-\u1eff\u200d\u2010-\u2027\u2030-\u205e\u20a0-\u20bf"
    "\u2100-\u2125\u2127-\u2129\u212c-\u2328\u232b-\u2adb\u3001-\u3029\u3041-\u3096\u30a1-\u30ff\u3400-\u9fff\uac00-\ud7a3"
    "\ufe0f\uff01-\uff5e\U0001f300-\U0001faff"
)
Numbers = np.ndarray
Odd = Callable[[str], object]


def _table() -> Numbers:
    """Return which of the first 65536 characters are PLAIN."""
    table = np.zeros(1 << 16, bool)
    for low, high in re.findall("(.)(?:-(.))?", PLAIN, re.DOTALL):
        if ord(low) < 1 << 16:
            table[ord(low) : ord(high or low) + 1] = True
    return table


_PLAIN = _table()
_LINE = re.compile(rb"[^\r\n]*\r?")


@dataclass
class Rows:
    """The rows of a chunk: where the two texts of those to be copied lie in it, and the other rows themselves."""

    data: bytes
    asked: tuple[Numbers, Numbers]  # where the texts begin and end
    answered: tuple[Numbers, Numbers]
    lines: Numbers  # of each row to be copied, within the chunk
    escapes: Numbers  # where line ends, tabs and doubled quotes stand
    escaped: Numbers  # which of the rows hold some
    changes: dict[str, int]  # how many of the rows had blanks around a text, or other line ends in it
    others: list[tuple[int, bytes]]  # line, row with its line end


def find(reader: Reader, asked: int, answered: int, longest: int, odd_text: Odd | None = None) -> Rows | None:
    """Return the rows of a chunk, those to be copied having PLAIN texts at two places; None when they must be read.

    Rows whose texts have more than `longest` bytes, or one of which `odd_text` says so, are not copied either.
    """
    separator, width = ord("\t" if reader.table.form == "tsv" else ","), len(reader.table.header)
    data = reader.data
    u, at, kind, is_quote = _structure(data, separator)
    if np.count_nonzero(is_quote) % 2:
        data += _rest(reader.behind())
        u, at, kind, is_quote = _structure(data, separator)
    if not data or len(data) > chunks.LONGEST or not is_utf8(data):
        return None
    is_feed = kind == LINE_FEED
    outside = np.cumsum(is_quote, dtype=np.uint8) & 1 == 0
    lone = (kind == RETURN) & (np.take(u, at + 1, mode="clip") != LINE_FEED)  # a line end too
    opens, closes = at[is_quote][::2], at[is_quote][1::2]
    before, after = np.take(u, opens - 1, mode="clip"), np.take(u, closes + 1, mode="clip")
    before[opens == 0] = after[closes == len(u) - 1] = LINE_FEED
    fits = _any(before, separator, LINE_FEED, QUOTE).all() and _any(after, separator, LINE_FEED, QUOTE, RETURN).all()
    if len(opens) != len(closes) or not fits or (lone & outside).any():
        return None
    row_end, between = is_feed & outside, (kind == separator) & outside
    lines, separators = np.cumsum(is_feed | lone), at[between]
    ends, line = at[row_end], lines[row_end]
    if not data.endswith(b"\n"):
        ends, line = np.append(ends, len(data)), np.append(line, 0)
    starts, line = np.append(0, ends[:-1] + 1), np.append(0, line[:-1])
    stops = ends - (np.take(u, ends - 1, mode="clip") == RETURN) if b"\r" in data else ends
    row_end[:-1] |= (kind[:-1] == RETURN) & row_end[1:]
    text = ~(row_end | between)
    folded = text & (kind == RETURN) & ~lone
    escapes = text & (is_feed | (kind == TAB)) | folded
    odd = [
        at[text & (kind < BLANK) & ~escapes],
        _odd(u),
        *(np.flatnonzero(u == mark) for mark in MARKS if mark in data),
    ]
    places = np.sort(np.concatenate([at[escapes], opens[before == QUOTE]]))
    escaped, copied = np.zeros(len(ends), bool), starts < stops
    escaped[np.searchsorted(ends, places)] = True
    others, fields = copied.copy(), np.searchsorted(separators, starts)
    copied &= np.diff(np.append(fields, len(separators))) == width - 1
    copied[np.searchsorted(ends, np.concatenate(odd))] = False
    row = np.flatnonzero(copied)
    returns, texts = at[folded], []
    good, (blanks, line_ends) = np.ones(len(row), bool), np.zeros((2, len(row)), bool)
    for place in (asked, answered):
        begin = separators[fields[row] + place - 1] + 1 if place else starts[row]
        end = separators[fields[row] + place] if place < width - 1 else stops[row]
        quoted = np.take(u, begin, mode="clip") == QUOTE
        begin, end = begin + quoted, end - quoted
        line_ends |= np.searchsorted(returns, begin) < np.searchsorted(returns, end) if len(returns) else False
        for _ in range(STRIPPED):
            first, last = ((begin < end) & (np.take(u, edge, mode="clip") <= BLANK) for edge in (begin, end - 1))
            begin, end, blanks = begin + first, end - last, blanks | first | last
        good &= (begin < end) & (np.take(u, begin, mode="clip") > BLANK) & (u[end - 1] > BLANK)
        texts.append((begin, end))
    good &= sum(end - begin for begin, end in texts) <= longest
    if odd_text:
        good &= ~escaped[row]
        for begin, end in texts:
            cut = zip(np.flatnonzero(good).tolist(), begin[good].tolist(), end[good].tolist(), strict=True)
            good[[place for place, x, y in cut if odd_text(data[x:y].decode())]] = False
    copied[row[~good]] = False
    row = row[good]
    others = np.flatnonzero(others & ~copied)
    cut = zip(line[others].tolist(), starts[others].tolist(), ends[others].tolist(), strict=True)
    reader.ended, reader.lines = reader.began + len(data), int(lines[-1:].sum()) + (not data.endswith(b"\n"))
    (a, b), (c, d) = (tuple(edge[good] for edge in edges) for edges in texts)
    rest = [(number, data[begin : end + 1]) for number, begin, end in cut]
    changes = {"blanks": int(blanks[good].sum()), "line_ends": int(line_ends[good].sum())}
    return Rows(data, (a, b), (c, d), line[row], places, np.flatnonzero(escaped[row]), changes, rest)


def _structure(data: bytes, separator: int) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return bytes as numbers, where controls, quotes and separators are, what is there, and which are quotes."""
    u = np.frombuffer(data, np.uint8)
    at = np.flatnonzero((u < BLANK) | (u == QUOTE) | (u == separator))
    kind = u[at]
    return u, at, kind, kind == QUOTE


def _rest(behind: bytes) -> bytes:
    """Return the lines up to the one in which a quoted field ends; nothing when it does not."""
    at = 0
    while end := behind.find(b"\n", at) + 1:
        if behind.count(b'"', at, end) % 2:
            return behind[:end]
        at = end
    return b""


def _any(values: Numbers, *wanted: int) -> Numbers:
    return np.logical_or.reduce([values == one for one in wanted])


def _odd(u: Numbers) -> Numbers:
    """Return where characters begin that are neither ASCII nor PLAIN, in UTF-8."""
    lead = np.flatnonzero((u >= 0xC2) & (u - np.uint8(0xE4) > 5))  # all of U+4000 to U+9FFF is PLAIN
    first = u[lead].astype(np.uint16)
    second, third = (np.take(u, lead + step, mode="clip").astype(np.uint16) & 0x3F for step in (1, 2))
    code = np.where(first < 0xE0, (first & 0x1F) << 6 | second, (first & 0xF) << 12 | second << 6 | third)
    emoji = (first == 0xF0) & (second == 0x1F) & (third >= 0x0C) & (third <= 0x2B)  # U+1F300 to U+1FAFF
    return lead[~np.where(first < 0xF0, _PLAIN[code], emoji)]


def fields(rows: Rows, reader: Reader) -> Iterator[tuple[int, list[str] | Rejected]]:
    """Yield the rows not to be copied, as Reader.values does."""
    separator, width = ("\t" if reader.table.form == "tsv" else ","), len(reader.table.header)
    for line, row in rows.others:
        text = text_of(row)
        if '"' in text:
            values = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
        else:
            values = text.removesuffix("\n").removesuffix("\r").split(separator)
        if len(values) == width:
            yield line, values
        else:
            shown = text_of(_LINE.findall(row)[0]) if '"' in text else text.removesuffix("\n").removesuffix("\r")
            yield line, Rejected("field-count", f"{len(values)} fields where the header has {width}", shown)
