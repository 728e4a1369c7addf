"""Files cut into chunks that are read at the same time, every row of them once and with its line number.

A chunk of a table starts at the first row that begins in it. Where that is cannot be known without reading all before
it, since a quoted field may hold line ends: it is guessed, and who reads the chunk before says whether it was right.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from temper.data.reasons import Rejected
from temper.data.shapes import Shape

SIZE, LARGEST = 1 << 21, 1 << 23  # bytes of a chunk
LONGEST = 16 << 20  # bytes after which a quote that is still open is taken for one that is never closed
HEAD = 4 << 20  # bytes in which the columns of a file are looked for
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

    def behind(self) -> bytes:
        """Return the first 64 kB behind what was read."""
        with open(self.table.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), 1 << 16, self.ended)

    def values(self) -> Iterator[tuple[int, list[str] | Rejected]]:
        """Yield each row of a table as (line within the chunk, its fields or why they cannot be read)."""
        separator, width = ("\t" if self.table.form == "tsv" else ","), len(self.table.header)
        lines, bare = self.data.split(b"\n"), set[int]()
        if not lines[-1]:
            lines.pop()
        returns = b"\r" in self.data
        if returns and LONE.search(self.data):
            lines, bare = _at_returns(lines)
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
            reader = csv.reader(pull(), delimiter=separator, strict=True)
            while at < own:
                line, first = lines[at], at
                if b'"' not in line:
                    at += 1
                    if returns:
                        line = line.removesuffix(b"\r")
                    if not line:
                        continue
                    values = text_of(line).split(separator)
                else:
                    taken = 0
                    try:
                        values = next(reader)
                    except csv.Error as error:
                        if "unexpected end of data" in str(error):
                            at, reader = first + 1, csv.reader(pull(), delimiter=separator, strict=True)
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
    """Return where the first row of a chunk seems to begin: behind the first line feed that no quotes hold.

    Whether the chunk begins within quotes is judged by which makes its quotes stand longer where they may.
    """
    before = chunk.start - 1
    window = os.pread(file, 1 << 16, before)
    if chunk.table.form == "jsonl" or b'"' not in window[1:]:
        return before + len(_line_at(file, before))
    u, edges = np.frombuffer(window + b"\n", np.uint8), b'"\r\n,' if chunk.table.form == "csv" else b'"\r\n\t'
    quotes = np.flatnonzero(u[1:] == ord('"')) + 1
    edge = np.logical_or.reduce([u == one for one in edges])
    opens, closes = edge[quotes - 1], edge[quotes + 1]
    odd = np.arange(len(quotes)) % 2 == 1
    lasts = [int(np.argmin(np.append(np.where(odd == inside, opens, closes), False))) for inside in (False, True)]
    inside = lasts[True] > lasts[False]
    ends = np.flatnonzero(u[:-1] == ord("\n"))
    free = ends[(np.searchsorted(quotes, ends) + inside) % 2 == 0]
    return before + int(free[0]) + 1 if len(free) else before + len(_line_at(file, before))
