"""Files cut into chunks that are read at the same time, every row of them once and with its line number.

A chunk of a table starts at the first row that begins in it. Where that is cannot be known without reading all before
it, since a quoted field may hold line ends: it is guessed, and who reads the chunk before says whether it was right.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from temper.data.reasons import Rejected
from temper.data.shapes import Shape

SIZE = 1 << 20  # bytes of a chunk
LONGEST = 16 << 20  # bytes after which a quote that is still open is taken for one that is never closed
HEAD = 4 << 20  # bytes in which the columns of a file are looked for
# Text that is in NFC and holds nothing to be cleaned but blanks at its ends: ASCII, Latin, Cyrillic, punctuation,
# symbols, kana, Chinese, Hangul, full-width forms and emoji. All else is looked at character by character.
PLAIN = (
    "\t\n\r\x20-\x7e\u00a1-\u02ff\u0400-\u0482\u048a-\u052f\u1e00-\u1eff\u200d\u2010-\u2027\u2030-\u205e\u20a0-\u20bf"
    "\u2100-\u2125\u2127-\u2129\u212c-\u2328\u232b-\u2adb\u3001-\u3029\u3041-\u3096\u30a1-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
    "\ufe0f\uff01-\uff5e\U0001f300-\U0001faff"
)
_PLAIN = re.compile(f"[{PLAIN}]*+")
KEEP = "surrogateescape"
LONE = re.compile(rb"\r(?!\n)")  # the line end of old tables
csv.field_size_limit(2**31 - 1)  # the module's own limit of 128 kB stops at a pasted document


@dataclass(frozen=True)
class Table:
    """A file of rows in its plain form, and how its rows are read."""

    number: int  # its place among the inputs
    name: str
    path: str
    form: str  # csv, tsv or jsonl
    start: int  # byte at which the first row may begin
    first_line: int  # number of that line, from 1
    size: int  # bytes
    header: tuple[str, ...]  # empty for jsonl
    shape: Shape
    held_out: bool  # given as the rows to evaluate on


@dataclass(frozen=True)
class Chunk:
    """The rows of a table that begin at a byte from `start` up to `end`."""

    table: Table
    start: int
    end: int
    sure: bool  # whether a row begins at `start`


def cut(table: Table, size: int = 0) -> list[Chunk]:
    """Return the chunks of a table, of SIZE bytes or of `size`."""
    size = size or SIZE
    starts = range(table.start, max(table.size, table.start + 1), size)
    return [Chunk(table, at, min(at + size, table.size), at == table.start) for at in starts]


def again(chunk: Chunk, start: int) -> Chunk:
    """Return the same chunk, whose first row is now known to begin at `start`."""
    return replace(chunk, start=start, sure=True)


def text_of(data: bytes) -> str:
    """Decode UTF-8; what is none is left as halves of characters, which no row may hold."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(errors=KEEP)


def as_text(value: bytes | str) -> str:
    """Return a field that Reader.values gave, which is bytes where nothing in its row is odd."""
    return value.decode() if isinstance(value, bytes) else value


class Reader:
    """The rows of a chunk of a table or of JSONL.

    After it was read, `began` and `ended` are the bytes at which its first row and the next chunk's first row begin,
    and `lines` is how many lines lie between.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.table, self.lines = chunk.table, 0
        with open(chunk.table.path, "rb", buffering=0) as file:
            self.began = chunk.start if chunk.sure else _guess(file.fileno(), chunk)
            data = os.pread(file.fileno(), max(chunk.end - self.began, 0), self.began)
            if data and not data.endswith(b"\n"):
                data += _line_at(file.fileno(), self.began + len(data))
        self.data, self.ended = data, self.began + len(data)

    def values(self) -> Iterator[tuple[int, list[bytes] | list[str] | Rejected]]:
        """Yield each row of a table as (line within the chunk, its fields or why they cannot be read).

        The fields are bytes where all of a row is PLAIN text without quotes, else text.
        """
        separator, width = (b"\t" if self.table.form == "tsv" else b","), len(self.table.header)
        text, lines, bare = text_of(self.data), self.data.split(b"\n"), set[int]()
        if not lines[-1]:
            lines.pop()
        returns = b"\r" in self.data
        if returns and LONE.search(self.data):
            text, lines, bare = text.replace("\r\n", "\n").replace("\r", "\n"), *_at_returns(lines)
        odd = _odd_lines(text)
        del text
        own, at, taken = len(lines), 0, 0
        behind: list[int] = []  # where each line behind the chunk ends

        def pull() -> Iterator[str]:
            nonlocal at, taken
            while taken < LONGEST:
                if at == len(lines):
                    begin = behind[-1] if behind else self.ended
                    if not (line := _line_at(file.fileno(), begin)):
                        return
                    pieces, without = _at_returns([line.removesuffix(b"\n")])
                    bare.update(at + piece for piece in without)
                    lines.extend(pieces)
                    ends = accumulate(len(piece) + (number not in without) for number, piece in enumerate(pieces))
                    behind.extend(begin + min(end, len(line)) for end in ends)
                at, taken = at + 1, taken + len(lines[at])
                yield text_of(lines[at - 1]) + ("" if at - 1 in bare else "\n")

        with open(self.table.path, "rb", buffering=0) as file:
            reader = csv.reader(pull(), delimiter=separator.decode(), strict=True)
            while at < own:
                line, first = lines[at], at
                if b'"' not in line:
                    at += 1
                    if returns:
                        line = line.removesuffix(b"\r")
                    if not line:
                        continue
                    values: list[bytes] | list[str] = line.split(separator)
                    if first in odd:
                        values = text_of(line).split(separator.decode())
                else:
                    taken = 0
                    try:
                        values = next(reader)
                    except csv.Error as error:
                        if "unexpected end of data" in str(error):
                            at, reader = first + 1, csv.reader(pull(), delimiter=separator.decode(), strict=True)
                            yield first, Rejected("unclosed-quote", row=text_of(line))
                        else:
                            until = f" (up to line {{{at}}})" if at > first + 1 else ""
                            yield first, Rejected("not-csv", f"{error}{until}", text_of(line))
                        continue
                if len(values) == width:
                    yield first, values
                else:
                    said = f"{len(values)} fields where the header has {width}"
                    yield first, Rejected("field-count", said, text_of(line))
        self.lines = at
        if at > own:
            self.ended = behind[at - own - 1]

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line of JSONL that is not blank as (line within the chunk, its bytes)."""
        lines = self.data.split(b"\n")
        self.lines = len(lines) - self.data.endswith(b"\n") if self.data else 0
        for number, line in enumerate(lines):
            if line and not line.isspace():
                yield number, line


def _at_returns(lines: Sequence[bytes]) -> tuple[list[bytes], set[int]]:
    """Cut lines at the carriage returns in them too; return also which of the new lines have no line feed."""
    found, bare = list[bytes](), set[int]()
    for line in lines:
        *pieces, last = line.split(b"\r")
        for piece in pieces:
            bare.add(len(found))
            found.append(piece + b"\r")
        if last or not pieces:
            found.append(last)
        else:
            bare.discard(len(found) - 1)
    return found, bare


def _odd_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold more than PLAIN text."""
    found: set[int] = set()
    at = line = counted = 0
    while (at := _PLAIN.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        found.add(line)
        at = text.find("\n", at)  # the rest of the line does not matter
        if at < 0:
            break
    return found


def _line_at(file: int, at: int) -> bytes:
    """Return the bytes from `at` up to the next line feed, or to the end of the file."""
    found = b""
    while block := os.pread(file, 1 << 16, at + len(found)):
        end = block.find(b"\n") + 1
        found += block[: end or len(block)]
        if end:
            break
    return found


def _guess(file: int, chunk: Chunk) -> int:
    """Return where the first row of a chunk seems to begin: behind its first line end, or behind a quoted field's."""
    before = chunk.start - 1
    plain = before + len(_line_at(file, before))
    window = os.pread(file, 1 << 16, before)
    if chunk.table.form == "jsonl" or b'"' not in window:
        return plain
    text = text_of(window[1:])
    outside = _fit(text_of(window[plain - before :]), chunk.table)
    consumed, inside = _skip_quoted(text, chunk.table)
    return chunk.start + consumed if inside > outside else plain


def _fit(text: str, table: Table) -> float:
    """Return the share of rows in a text that have as many fields as the header."""
    good = rows = 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if table.form == "tsv" else ",", strict=True)
    while rows < 50:
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "end of data" in str(error):
                break
            values = []
        rows, good = rows + 1, good + (len(values) == len(table.header))
    return good / rows if rows else 0.0


def _skip_quoted(text: str, table: Table) -> tuple[int, float]:
    """Take a text as the rest of a quoted field: return the bytes up to the next row, and how well rows fit there."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(
        iter(['"' + lines[0], *lines[1:]] if lines else []), delimiter="," if table.form == "csv" else "\t"
    )
    try:
        next(reader)
    except (StopIteration, csv.Error):
        return 0, 0.0
    skipped = "".join(lines[: reader.line_num])
    return len(skipped.encode(errors=KEEP)), _fit(text[len(skipped) :], table)
