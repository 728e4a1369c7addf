"""Near-duplicates among all kept rows: pairs that share a band are compared, and the later one of a pair is left out.

A row is known here by its place in the order of all rows. The order makes the outcome independent of files and workers.
"""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from temper.data import near
from temper.data.places import path
from temper.data.second import EVAL, KEPT, SIDE, answer, context, kept, plain, question
from temper.data.workers import Map, trim

SLICE = 1 << 19  # rows of a band that are looked at in one go
PASS = 1 << 15  # rows of those whose pairs are found in one go, if a group has not more
RANGE = 1 << 15  # rows: where the pairs begin whose first row is in each range is known, and no more of them
TOGETHER = 100_000  # pairs that are compared in one go, if a range has not more
ALL_PAIRS = 4000  # rows of a group up to which each held-out row is compared with each row to train on
NEIGHBOURS = 8  # rows of a group that each row is compared with, besides the first and the nearest of the other side


class Band(NamedTuple):
    """A part of one band's values: those whose upper bits are `part` of `parts`."""

    number: int
    part: int
    parts: int
    folder: str
    rows: tuple[int, ...]  # of each bucket


class Pairs(NamedTuple):
    """Pairs of rows to be compared: a part of each band's file."""

    parts: tuple[tuple[Path, int, int], ...]  # file, first pair, pairs
    folder: str
    rows: tuple[int, ...]


# A pair of rows whose questions are near-duplicates; `first` comes first in the order, and `first_held` says whether it
# is held out; `same_answer`: nearly; `across`: on different sides of the split.
NEAR = np.dtype(
    [("first", "i8"), ("second", "i8"), ("likeness", "f8"), ("same_answer", "?"), ("across", "?"), ("first_held", "?")]
)


GONE = np.dtype([("row", "i8"), ("stays", "i8"), ("likeness", "f8"), ("across", "?")])


def _distinct(pairs: np.ndarray) -> np.ndarray:
    """Return the pairs in order, each once, and put those given in order; unique() takes ten times as long."""
    pairs.sort()
    return pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])[: len(pairs)]]


def _file(band: Band) -> Path:
    return path(band.folder, f"pairs-{band.number}", band.part)


def candidates(band: Band) -> np.ndarray:
    """Write the pairs of rows that share a value of a band, as first << 32 | second, in order.

    Return where those of each RANGE begin, and how many there are: there may be many more pairs than rows.
    """
    found = _of_band(*_values(band))
    found.tofile(_file(band))
    begins = np.searchsorted(found, np.arange(0, sum(band.rows) + RANGE, RANGE) << 32)
    trim()
    return begins


def _values(band: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a band's values, the rows they belong to and the sides of these, ordered by value."""
    values, ids, sides, base = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], [np.empty(0, np.uint8)], 0
    for bucket, count in enumerate(band.rows):
        if count:
            # Not as .npy: reading its header leaves 700 bytes behind where the garbage collector is off.
            file, size = path(band.folder, "bands", bucket), 8 * count
            found = np.fromfile(file, np.uint64, count, offset=size * band.number)
            here = np.flatnonzero((found >> np.uint64(40)) % np.uint64(band.parts) == np.uint64(band.part))
            values.append(found[here])
            ids.append((here + base).astype(np.uint32))
            sides.append(kept(band.folder, bucket)[:, SIDE - 1][here].astype(np.uint8))
            base += count
    value = np.concatenate(values)
    order = np.argsort(value, kind="stable")
    return value[order], np.concatenate(ids)[order], np.concatenate(sides)[order]


def _of_band(value: np.ndarray, row: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return the pairs of rows with equal values: some groups at a time, as one pass over all takes much memory."""
    starts = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]])[: len(value)])
    cuts = starts[np.searchsorted(starts, np.arange(0, len(value), PASS)).clip(max=len(starts) - 1)]
    edges = np.unique([*cuts, len(value)]).tolist()
    return _distinct(
        np.concatenate(
            [
                np.empty(0, np.int64),
                *(
                    _pairs(value[low:high], row[low:high].astype(np.int64), side[low:high])
                    for low, high in pairwise(edges)
                ),
            ]
        )
    )


def _pairs(value: np.ndarray, row: np.ndarray, side: np.ndarray) -> np.ndarray:
    at = np.arange(len(value))
    starts = np.maximum.accumulate(np.where(np.concatenate([[True], value[1:] != value[:-1]])[: len(at)], at, 0))
    # In its group: the rows just before it, the first, and the last one before it on the other side.
    others = [np.maximum.accumulate(np.where(side == one, at, -1)) for one in (0, 1)]
    before = [starts, np.where(side == 0, others[1], others[0])]
    pairs = []
    for other in chain(before, (at - step for step in range(1, NEIGHBOURS + 1))):
        good = (other >= starts) & (other < at)
        pairs.append(row[other[good]] << 32 | row[at[good]])
    edges = np.append(np.flatnonzero(starts == at), len(at))
    sizes = np.diff(edges)
    for group in np.flatnonzero((sizes > NEIGHBOURS) & (sizes <= ALL_PAIRS)):  # smaller ones are done
        here = row[edges[group] : edges[group + 1]]
        held = side[edges[group] : edges[group + 1]] == EVAL
        one, other = np.meshgrid(here[held], here[~held])
        low, high = np.minimum(one, other).ravel(), np.maximum(one, other).ravel()
        pairs.append(low << 32 | high)
    return _distinct(np.concatenate(pairs))


class _Bucket:
    """A bucket's rows, each read when asked for: mapped, they would count as memory that is used."""

    def __init__(self, folder: str, number: int) -> None:
        self.rows, self.index = (os.open(path(folder, kind, number), os.O_RDONLY) for kind in ("rows", "index"))

    def __del__(self) -> None:
        os.close(self.rows)
        os.close(self.index)

    def entry(self, at: int) -> tuple[int, int, int, int, int]:
        """Return where a row begins and ends, its side, the number of its file and its line."""
        size = len(KEPT) * 8
        known = os.pread(self.index, size * 2, size * (at - 1)) if at else bytes(size) + os.pread(self.index, size, 0)
        begin, _, _, _, *rest = struct.unpack("8q", known)
        return begin, *rest

    def row(self, at: int) -> dict[str, Any]:
        """Return a row."""
        begin, end, *_ = self.entry(at)
        found: dict[str, Any] = orjson.loads(plain(os.pread(self.rows, end - begin, begin)))
        return found


_bucket = lru_cache(maxsize=64)(_Bucket)


class Rows:
    """The kept rows by their place in the order."""

    def __init__(self, folder: str, counts: Sequence[int]) -> None:
        self.folder, self.starts = folder, [0]
        for count in counts:
            self.starts.append(self.starts[-1] + count)
        self.known: dict[int, tuple[str, str, int, Any]] = {}

    def place(self, row: int) -> tuple[int, int]:
        """Return a row's bucket and its place there."""
        number = bisect.bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]

    def origin(self, row: int) -> tuple[int, int]:
        """Return the number of the file a row came from, and its line."""
        number, at = self.place(row)
        return _bucket(self.folder, number).entry(at)[3:]

    def __call__(self, row: int) -> tuple[str, str, int, Any]:
        """Return question, answer, side and context of a row."""
        if row not in self.known:
            if len(self.known) > 5_000:
                self.known.clear()
            number, at = self.place(row)
            bucket = _bucket(self.folder, number)
            fields = bucket.row(at)
            self.known[row] = question(fields), answer(fields), bucket.entry(at)[2], context(fields)
        return self.known[row]


def compare(work: Pairs) -> np.ndarray:
    """Return as NEAR those of the pairs whose questions are near-duplicates."""
    rows, found = Rows(work.folder, work.rows), []
    parts = [np.fromfile(file, np.int64, count, offset=8 * at) for file, at, count in work.parts]
    pairs = _distinct(np.concatenate(parts))
    for first, second in zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True):
        one, other = rows(first), rows(second)
        if (likeness := near.likeness(one[0], other[0])) >= near.THRESHOLD:
            same = one[3] == other[3] and (one[1] == other[1] or near.likeness(one[1], other[1]) >= near.THRESHOLD)
            found.append((first, second, likeness, same, one[2] != other[2], one[2] == EVAL))
    del rows
    trim()
    return np.array(found, NEAR)


def find(over: Map, folder: str, counts: tuple[int, ...]) -> np.ndarray:
    """Return as NEAR all pairs of near-duplicate questions among rows whose bands lie in `folder`, in order."""
    total = sum(counts)
    parts = max(1, -(-total // SLICE))
    work = [Band(number, part, parts, folder, counts) for number in range(near.BANDS) for part in range(parts)]
    begins = np.stack(list(over(candidates, work)))  # [bands and their parts, ranges + 1]
    files, sizes = [_file(band) for band in work], np.diff(begins).sum(0)
    edges = np.searchsorted(np.cumsum(sizes), np.arange(0, sizes.sum() + TOGETHER, TOGETHER))
    pieces = []
    for low, high in pairwise(np.unique([0, *edges, len(sizes)]).tolist()):
        within = zip(files, begins[:, low].tolist(), (begins[:, high] - begins[:, low]).tolist(), strict=True)
        if there := tuple(part for part in within if part[2]):
            pieces.append(Pairs(there, folder, counts))
    return np.concatenate([np.empty(0, NEAR), *over(compare, pieces)])


def resolve(pairs: np.ndarray, given: bool) -> Iterator[tuple[int, int, float, bool]]:
    """Yield the rows to leave out in their order: row, row that stays, likeness, whether the two were across the split.

    A row goes when one before it in the order stays, asks and answers nearly the same, and is on its side. Then, where
    questions on both sides of the split are near, the held-out row goes; with a `given` file of rows to evaluate on,
    the row to train on.
    """
    gone: set[int] = set()
    alike, across = pairs[pairs["same_answer"] & ~pairs["across"]], pairs[pairs["across"]]
    found, count = np.empty(len(alike) + len(across), GONE), 0
    for first, second, likeness, *_ in _each(alike[np.lexsort((alike["first"], alike["second"]))]):
        if first not in gone and second not in gone:
            gone.add(second)
            found[count], count = (second, first, likeness, False), count + 1
    for first, second, likeness, _, _, first_held in _each(across):
        if first not in gone and second not in gone:
            leaves, stays = (first, second) if first_held != given else (second, first)
            gone.add(leaves)
            found[count], count = (leaves, stays, likeness, True), count + 1
    found = found[:count]
    return _each(found[np.argsort(found["row"])])


def _each(pairs: np.ndarray) -> Iterator[Any]:
    for at in range(0, len(pairs), 10_000):
        yield from pairs[at : at + 10_000].tolist()
