"""The second pass: the rows of one bucket brought into their order, equal ones merged, the rest written out.

Rows are ordered by the hash of their question, then by their bytes: the same rows give the same files, whatever file,
line or worker they came from.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from temper.data import places
from temper.data.first import INDEX, MARK, SEGMENT, dumps
from temper.data.gather import gather
from temper.data.options import Options
from temper.data.places import path
from temper.data.workers import trim

TRAIN, EVAL = 0, 1
SIDES = ("train", "eval")
ROWS_SHOWN = 6  # kept rows that a report lists
SHOWN = 20  # examples of each kind that a report lists
LONGEST = 10  # rows that a report lists


class Bucket(NamedTuple):
    """A bucket, and all that a worker needs for it."""

    number: int
    segments: tuple[int, int]  # the first of this bucket in the file of all, and how many
    spools: tuple[str, ...]
    options: Options
    names: tuple[str, ...]  # of the files
    held_out: tuple[bool, ...]  # whether a file holds the rows to evaluate on
    folder: str  # to write to
    turns: bool  # whether any row of the run has more than one turn
    last: bool  # whether nothing comes between this pass and the files


@dataclass
class Merged:
    """What became of a bucket, or of all."""

    rows: int = 0  # kept so far
    counts: Counter[str] = field(default_factory=Counter)  # exact, near, across_split; train, eval
    conflicts: int = 0
    conflict_examples: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {"question": Counter(), "answer": Counter()}
    )  # bits
    tokens: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))  # by side
    longest: list[tuple[int, str, str]] = field(default_factory=list)  # tokens, question, side
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: Merged) -> None:
        """Take in what became of the next bucket, keeping as much as a report shows."""
        self.rows += other.rows
        self.counts += other.counts
        self.conflicts += other.conflicts
        for what, counts in other.lengths.items():
            self.lengths[what] += counts
        for side, counts in enumerate(other.tokens):
            self.tokens[side].update(counts)
        self.conflict_examples += other.conflict_examples[: SHOWN - len(self.conflict_examples)]
        self.examples += other.examples[: ROWS_SHOWN - len(self.examples)]
        self.longest = sorted(self.longest + other.longest, key=lambda item: (-item[0], item[1]))[:LONGEST]


RECORD = b'{"file":%s,"line":%d,"kind":"%s","kept_file":%s,"kept_line":%d}\n'
SEGMENTS = "segments"  # a file with where the rows of all buckets are, by bucket
BEGIN, END, SIDE, FILE, LINE = range(5)
KEPT = (END, SIDE, FILE, LINE)  # what is kept of each row for the next pass


class Sorted(NamedTuple):
    """Rows of a bucket in their order: the bytes they lie in, and for each where, its side, its file and its line."""

    data: bytes
    table: np.ndarray  # int64 [rows, 5]

    def rows(self) -> Iterator[bytes]:
        """Yield the rows, without their line feeds."""
        return (self.data[begin : end - 1] for begin, end in self.table[:, :SIDE].tolist())

    def text(self, side: int | None = None) -> memoryview:
        """Return all rows, or those of one side, each with its line feed."""
        table = self.table if side is None else self.table[self.table[:, SIDE] == side]
        return gather(self.data, table[:, BEGIN], table[:, END])


def _read(bucket: Bucket) -> tuple[np.ndarray, Sorted]:
    """Return the keys of a bucket's rows, and the rows, ordered by key."""
    at, count = bucket.segments
    segments = np.fromfile(Path(bucket.folder) / SEGMENTS, SEGMENT, count, offset=at * SEGMENT.itemsize)
    tables, parts = [], []
    handles: dict[int, int] = {}
    for spool, at, rows, size in segments[["spool", "at", "rows", "bytes"]].tolist():
        if spool not in handles:
            handles[spool] = os.open(bucket.spools[spool], os.O_RDONLY)
        data = memoryview(os.pread(handles[spool], rows * INDEX.itemsize + size, at))
        tables.append(data[: rows * INDEX.itemsize])
        parts.append(data[rows * INDEX.itemsize :])
    for handle in handles.values():
        os.close(handle)
    index = np.frombuffer(b"".join(tables), INDEX)
    table = np.empty((len(index), 5), np.int64)
    table[:, END] = np.cumsum(index["size"], dtype=np.int64)
    table[:, BEGIN] = table[:, END] - index["size"]
    table[:, FILE:] = np.repeat(np.stack([segments["file"], segments["line"]], 1), segments["rows"], axis=0)
    table[:, LINE] += index["line"]
    table[:, SIDE] = _held(bucket, index["key"], table[:, FILE])
    order = np.argsort(index["key"], kind="stable")
    return index["key"][order], Sorted(b"".join(parts), table[order])


def _held(bucket: Bucket, keys: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Return which rows are held out."""
    if any(bucket.held_out):
        return np.array(bucket.held_out)[files]
    edge = int(bucket.options.eval_share * 2**64) if bucket.options.does("split") else 0
    return keys < np.uint64(min(edge, 2**64 - 1))


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where keys that come more than once begin and end."""
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    several = np.flatnonzero(np.diff(edges) > 1)
    return edges[several], edges[several + 1]


def plain(row: bytes) -> bytes:
    """Return a row without its further columns."""
    return row.partition(MARK)[0]


def asked(row: dict[str, Any]) -> Any:
    """Return all of a row but its answers: rows that share it answer the same question."""
    if "messages" in row:
        return row["messages"][:-1]
    return [row["instruction"], row["input"], row["system"]]


def context(row: dict[str, Any]) -> Any:
    """Return what else tells two rows apart: system prompt, earlier answers and the worse answer of a pair."""
    if "messages" in row:
        said = [message["content"] for message in row["messages"][:-1] if message["role"] != "user"]
        return [len(row["messages"]), said, row.get("rejected")]
    return [row["system"], row.get("rejected")]


def answer(row: dict[str, Any]) -> str:
    """Return the answer that a row teaches."""
    return str(row["messages"][-1]["content"] if "messages" in row else row["output"])


def question(row: dict[str, Any]) -> str:
    """Return what a row asks: its question with the material, or all that the user says."""
    if "messages" in row:
        return "\n".join(said["content"] for said in row["messages"] if said["role"] == "user")
    return "\n".join(filter(None, (row["instruction"], row["input"])))


def _merge(bucket: Bucket, result: Merged) -> tuple[Sorted, list[bytes], list[bytes]]:
    """Merge equal rows; return those kept, and lines for duplicates.jsonl and conflicts.jsonl."""
    keys, (data, table) = _read(bucket)
    names = [dumps(name) for name in bucket.names]
    does, given, exact = bucket.options.does, any(bucket.held_out), bucket.options.does("exact")
    gone: dict[int, bytes] = {}  # place of a row that is left out, and its line for duplicates.jsonl
    conflicts = []

    def leave_out(place: int, row: list[int], kept: list[int], kind: str) -> None:
        result.counts[kind] += 1
        gone[place] = RECORD % (names[row[FILE]], row[LINE], kind.encode(), names[kept[FILE]], kept[LINE])

    def text(row: list[int]) -> bytes:
        return data[row[BEGIN] : row[END]]

    begins, ends = _groups(keys)
    if exact and not given:
        gone.update(_pairs(begins[ends - begins == 2], data, table, names))  # most are
        result.counts["exact"] += len(gone)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if begin in gone or begin + 1 in gone:
            continue
        rows = table[begin:end].tolist()
        rows.sort(key=lambda row: (plain(text(row)), -row[SIDE], row[FILE:]))
        kept, left = rows[0], [(begin, rows[0])]
        for place, row in enumerate(rows[1:], begin + 1):
            if plain(text(row)) == plain(text(kept)) and exact:
                if text(row) < text(kept):  # of the further columns, whichever file came first
                    kept[:SIDE] = row[:SIDE]
                leave_out(place, row, kept, "exact")
            else:
                kept = row
                left.append((place, row))
        table[begin:end] = rows
        if len(left) > 1:
            parsed = [orjson.loads(plain(text(row))) for _, row in left]
            if given and does("split"):
                for place, row, other in _leaking(left, parsed):
                    leave_out(place, row, other, "across_split")
            found = [(row, fields) for (place, row), fields in zip(left, parsed, strict=True) if place not in gone]
            conflicts += _conflicts(found, bucket.names, result)
    left_out = sorted(gone)
    return Sorted(data, np.delete(table, left_out, axis=0)), [gone[place] for place in left_out], conflicts


def _pairs(begins: np.ndarray, data: bytes, table: np.ndarray, names: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield of each two rows that begin somewhere and are equal the place of the later, and its line for the file."""
    ones, others = table[begins], table[begins + 1]
    edges = (*ones[:, :SIDE].T.tolist(), *others[:, :SIDE].T.tolist())
    equal = np.array([data[a:b] == data[c:d] for a, b, c, d in zip(*edges, strict=True)], bool)
    begins, ones, others = begins[equal], ones[equal], others[equal]
    ones, others = ones[:, FILE:], others[:, FILE:]
    late = (ones[:, 0] == others[:, 0]) & (ones[:, 1] > others[:, 1])  # only rows of one chunk are out of order
    gone, kept = np.where(late[:, None], (ones, others), (others, ones))
    noted = zip((begins + ~late).tolist(), *gone.T.tolist(), *kept.T.tolist(), strict=True)
    for place, file, line, kept_file, kept_line in noted:
        yield place, RECORD % (names[file], line, b"exact", names[kept_file], kept_line)


def _leaking(
    left: list[tuple[int, list[int]]], parsed: list[dict[str, Any]]
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yield rows to train on whose question a given file holds out, each with its place and the row held out."""
    questions = list(map(question, parsed))
    held = {asks: row for (_, row), asks in zip(left, questions, strict=True) if row[SIDE] == EVAL}
    for (place, row), asks in zip(left, questions, strict=True):
        if row[SIDE] == TRAIN and asks in held:
            yield place, row, held[asks]


def _conflicts(rows: list[tuple[list[int], dict[str, Any]]], names: tuple[str, ...], result: Merged) -> list[bytes]:
    """List questions with several answers."""
    by_question: dict[bytes, list[tuple[list[int], dict[str, Any]]]] = {}
    for row, fields in rows:
        by_question.setdefault(orjson.dumps(asked(fields)), []).append((row, fields))
    found = []
    for same in by_question.values():
        answers = dict.fromkeys(answer(fields) for _, fields in same)
        if len(answers) > 1:
            result.conflicts += 1
            said = question(same[0][1])
            if len(result.conflict_examples) < SHOWN:
                result.conflict_examples.append(
                    {"question": said[:200], "answers": [text[:200] for text in answers][:5]}
                )
            said_by = [{"output": answer(fields), "file": names[row[FILE]], "line": row[LINE]} for row, fields in same]
            found.append(dumps({"question": said, "answers": said_by}) + b"\n")
    return found


def run(bucket: Bucket) -> Merged:
    """Merge the equal rows of a bucket; write what is kept to the files, or beside them when more is to be done."""
    result = Merged()
    with places.turn(bucket.number) if bucket.last else nullcontext():
        kept, duplicates, conflicts = _merge(bucket, result)
        result.rows = len(kept.table)
        if bucket.last:
            emit(bucket, kept, result, {"duplicates": b"".join(duplicates), "conflicts": b"".join(conflicts)})
        else:
            for kind, lines in (("duplicates", duplicates), ("conflicts", conflicts)):
                path(bucket.folder, kind, bucket.number).write_bytes(b"".join(lines))
            save(bucket, kept)
    return result


def save(bucket: Bucket, rows: Sorted) -> None:
    """Keep a bucket's rows for the next pass, with what near-duplicates are found by."""
    path(bucket.folder, "rows", bucket.number).write_bytes(rows.text())
    ends = np.cumsum(rows.table[:, END] - rows.table[:, BEGIN])
    path(bucket.folder, "index", bucket.number).write_bytes(np.stack([ends, *rows.table[:, SIDE:].T], 1).tobytes())
    if bucket.options.does("near"):
        from temper.data import near

        values = near.bands([question(orjson.loads(plain(row))) for row in rows.rows()])
        np.ascontiguousarray(values.T).tofile(path(bucket.folder, "bands", bucket.number))


def kept(folder: str, number: int) -> np.ndarray:
    """Return KEPT of each row that `save` kept, int64 [rows, 4]."""
    return np.fromfile(path(folder, "index", number), np.int64).reshape(-1, len(KEPT))


def load(bucket: Bucket) -> Sorted:
    """Return the rows that `save` kept."""
    table = kept(bucket.folder, bucket.number)
    begins = np.concatenate([[0], table[:-1, 0]])[: len(table)]
    return Sorted(path(bucket.folder, "rows", bucket.number).read_bytes(), np.column_stack([begins, table]))


def finish(work: tuple[Bucket, list[int]]) -> Merged:
    """Write the rows that `save` kept, but for those at the places given."""
    bucket, gone = work
    result = Merged()
    with places.turn(bucket.number):
        data, table = load(bucket)
        left = Sorted(data, np.delete(table, gone, axis=0))
        parts = {kind: path(bucket.folder, kind, bucket.number).read_bytes() for kind in ("duplicates", "conflicts")}
        emit(bucket, left, result, parts)
    trim()
    return result


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of one turn in the form of rows with several."""
    if "messages" in row:
        said = row["messages"]
    else:
        said = [{"role": "user", "content": question(row)}, {"role": "assistant", "content": row["output"]}]
        if row["system"]:
            said.insert(0, {"role": "system", "content": row["system"]})
    if "rejected" not in row:
        return {"messages": said}
    return {
        "messages": said,
        "prompt": said[:-1],
        "chosen": said[-1],
        "rejected": {"role": "assistant", "content": row["rejected"]},
    }


def emit(bucket: Bucket, kept: Sorted, result: Merged, more: Mapping[str, bytes]) -> None:
    """Write a bucket's part of each file, `more` being some, and count what a report shows."""
    options = bucket.options
    if bucket.turns or options.does("checks") or options.does("report") or options.model:
        written: Mapping[str, bytes | memoryview] = _emit_slowly(bucket, kept, result)
    else:
        written = {name: kept.text(side) for side, name in enumerate(SIDES)}
    for side, name in enumerate(SIDES):
        result.counts[name] += int((kept.table[:, SIDE] == side).sum())
    places.write(bucket.number, {**written, **more}, bucket.folder)


def _emit_slowly(bucket: Bucket, kept: Sorted, result: Merged) -> dict[str, bytes]:
    options, sides = bucket.options, kept.table[:, SIDE].tolist()
    rows = []
    written: dict[str, list[bytes]] = {name: [] for name in (*SIDES, "checks")}
    for row, side in zip(kept.rows(), sides, strict=True):
        data, _, more = row.partition(MARK)
        fields = orjson.loads(data)
        rows.append(fields)
        said, answered = question(fields), answer(fields)
        result.lengths["question"][len(said).bit_length()] += 1
        result.lengths["answer"][len(answered).bit_length()] += 1
        if bucket.turns:
            fields = _messages(fields)
            data = dumps(fields)
        written[SIDES[side]].append(data)
        if options.does("checks"):
            asks = dumps({"instruction": said, "input": "", "output": answered, **fields}) if bucket.turns else data
            written["checks"].append(asks[:-1] + b',"split":"%s","columns":%s}' % (SIDES[side].encode(), more))
        if len(result.examples) < ROWS_SHOWN:
            result.examples.append({"split": SIDES[side], "instruction": said[:400], "output": answered[:400]})
    if options.model and options.does("tokens"):
        counted = counter(options.model).count(rows)
        for side, tokens in zip(sides, counted, strict=True):
            result.tokens[side][tokens] += 1
        ranked = sorted(range(len(rows)), key=lambda i: -counted[i])[:LONGEST]
        result.longest = [(counted[i], question(rows[i])[:200], SIDES[sides[i]]) for i in ranked]
    return {name: b"\n".join([*part, b""]) for name, part in written.items()}


_counters: dict[Path, Any] = {}


def counter(folder: Path) -> Any:
    """Return this process's token counter for a base model."""
    if folder not in _counters:
        from temper.data import tokens

        _counters[folder] = tokens.Counter(folder)
    return _counters[folder]
