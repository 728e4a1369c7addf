"""The second pass: the rows of one bucket brought into their order, equal ones merged, the rest written out.

Rows are ordered by the hash of their question, then by their bytes: the same rows give the same files, whatever file,
line or worker they came from.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from temper.data import places
from temper.data.first import MARK, Segment, dumps
from temper.data.options import Options
from temper.data.places import path

if TYPE_CHECKING:
    import numpy as np

TRAIN, EVAL = 0, 1
SIDES = ("train", "eval")
ROWS_SHOWN = 6  # kept rows that a report lists
SHOWN = 20  # examples of each kind that a report lists


class Bucket(NamedTuple):
    """A bucket, and all that a worker needs for it."""

    number: int
    segments: list[tuple[Segment, int, int]]  # with the number of the file and the line before the chunk
    options: Options
    names: tuple[str, ...]  # of the files
    held_out: tuple[bool, ...]  # whether a file holds the rows to evaluate on
    folder: str  # to write to
    turns: bool  # whether any row of the run has more than one turn
    last: bool  # whether nothing comes between this pass and the files


@dataclass
class Merged:
    """What became of a bucket."""

    number: int
    rows: int = 0  # kept so far
    counts: Counter[str] = field(default_factory=Counter)  # exact, near, across_split; train, eval
    conflicts: int = 0
    conflict_examples: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)  # of question and answer: bits of their length
    tokens: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))  # by side
    longest: list[tuple[int, str, str]] = field(default_factory=list)  # tokens, question, side
    examples: list[dict[str, str]] = field(default_factory=list)


class Sorted(NamedTuple):
    """The kept rows of a bucket in their order."""

    rows: list[bytes]
    sides: list[int]
    files: list[int]
    lines: list[int]


def _read(bucket: Bucket) -> tuple[np.ndarray, list[bytes], np.ndarray, np.ndarray]:
    """Return keys, rows, numbers of files and lines of a bucket, ordered by key, then file and line."""
    import numpy as np

    keys, lines, files, sizes, parts = [], [], [], [], []
    handles: dict[str, int] = {}
    for segment, number, base in bucket.segments:
        if segment.file not in handles:
            handles[segment.file] = os.open(segment.file, os.O_RDONLY)
        count = segment.rows
        data = os.pread(handles[segment.file], 16 * count + segment.bytes, segment.at)
        keys.append(np.frombuffer(data, np.uint64, count))
        lines.append(np.frombuffer(data, np.uint32, count, 8 * count).astype(np.uint64) + np.uint64(base))
        sizes.append(np.frombuffer(data, np.uint32, count, 12 * count))
        parts.append(memoryview(data)[16 * count :])
        files.append(np.full(count, number, np.uint32))
    for handle in handles.values():
        os.close(handle)
    if not keys:
        empty = np.empty(0, np.uint64)
        return empty, [], empty, empty
    key, line, file, size = map(np.concatenate, (keys, lines, files, sizes))
    order = np.argsort(key, kind="stable")
    ends = np.cumsum(size, dtype=np.int64)
    rows = b"".join(parts)
    cut = zip((ends - size)[order].tolist(), ends[order].tolist(), strict=True)
    return key[order], [rows[begin:end] for begin, end in cut], file[order], line[order]


def _groups(keys: np.ndarray) -> list[tuple[int, int]]:
    """Return where keys that come more than once begin and end."""
    import numpy as np

    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    return [(a, b) for a, b in pairwise(edges.tolist()) if b - a > 1]


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
    import numpy as np

    keys, rows, files, lines = _read(bucket)
    names = [dumps(name) for name in bucket.names]
    given, does = any(bucket.held_out), bucket.options.does
    edge = int(bucket.options.eval_share * 2**64) if does("split") and not given else 0
    held = keys < np.uint64(min(edge, 2**64 - 1)) if not given else np.array(bucket.held_out)[files.astype(np.int64)]
    sides, at_file, at_line = held.astype(int).tolist(), files.tolist(), lines.tolist()
    gone: set[int] = set()
    duplicates, conflicts = [], []

    def leave_out(i: int, kept: int, kind: str) -> None:
        gone.add(i)
        result.counts[kind] += 1
        record = b'{"file":%s,"line":%d,"kind":"%s","kept_file":%s,"kept_line":%d}\n'
        place = (names[at_file[i]], at_line[i], kind.encode(), names[at_file[kept]], at_line[kept])
        duplicates.append(record % place)

    exact = does("exact")
    for begin, end in _groups(keys):
        if end - begin == 2 and exact and not given and rows[begin] == rows[begin + 1]:  # most are
            leave_out(begin + 1, begin, "exact")
            continue
        order = sorted(range(begin, end), key=lambda i: (plain(rows[i]), -sides[i], at_file[i], at_line[i]))
        part = (
            [rows[i] for i in order],
            [sides[i] for i in order],
            [at_file[i] for i in order],
            [at_line[i] for i in order],
        )
        rows[begin:end], sides[begin:end], at_file[begin:end], at_line[begin:end] = part
        kept = begin
        for i in range(begin + 1, end):
            if plain(rows[i]) != plain(rows[kept]) or not exact:
                kept = i
            else:
                rows[kept] = min(rows[kept], rows[i])  # of the further columns, whichever file came first
                leave_out(i, kept, "exact")
        left = [i for i in range(begin, end) if i not in gone]
        if len(left) > 1:
            _compare(left, rows, sides, result, leave_out if given and does("split") else None)
            conflicts += _conflicts([i for i in left if i not in gone], rows, bucket.names, at_file, at_line, result)
    return _without(Sorted(rows, sides, at_file, at_line), gone), duplicates, conflicts


def _without(rows: Sorted, gone: set[int]) -> Sorted:
    """Return all rows but those at the places given."""
    if not gone:
        return rows
    left = [i for i in range(len(rows.rows)) if i not in gone]
    return Sorted(*([values[i] for i in left] for values in rows))  # type: ignore[arg-type]


def _compare(left: list[int], rows: list[bytes], sides: list[int], result: Merged, leave_out: Any) -> None:
    """Leave out rows to train on whose question a given file holds out."""
    if leave_out is None or len({sides[i] for i in left}) == 1:
        return
    questions = {i: question(orjson.loads(plain(rows[i]))) for i in left}
    held = {questions[i]: i for i in left if sides[i] == EVAL}
    for i in left:
        if sides[i] == TRAIN and questions[i] in held:
            leave_out(i, held[questions[i]], "across_split")


def _conflicts(
    left: list[int], rows: list[bytes], names: tuple[str, ...], files: list[int], lines: list[int], result: Merged
) -> list[bytes]:
    """List questions with several answers."""
    by_question: dict[bytes, list[int]] = {}
    parsed = {i: orjson.loads(plain(rows[i])) for i in left}
    for i in left:
        by_question.setdefault(orjson.dumps(asked(parsed[i])), []).append(i)
    found = []
    for same in by_question.values():
        answers = dict.fromkeys(answer(parsed[i]) for i in same)
        if len(answers) > 1:
            result.conflicts += 1
            said = question(parsed[same[0]])
            if len(result.conflict_examples) < SHOWN:
                result.conflict_examples.append(
                    {"question": said[:200], "answers": [text[:200] for text in answers][:5]}
                )
            places = [{"output": answer(parsed[i]), "file": names[files[i]], "line": lines[i]} for i in same]
            found.append(dumps({"question": said, "answers": places}) + b"\n")
    return found


def run(bucket: Bucket) -> Merged:
    """Merge the equal rows of a bucket; write what is kept to the files, or beside them when more is to be done."""
    result = Merged(bucket.number)
    with places.turn(bucket.number) if bucket.last else nullcontext():
        kept, duplicates, conflicts = _merge(bucket, result)
        result.rows = len(kept.rows)
        if bucket.last:
            emit(bucket, kept, result, {"duplicates": b"".join(duplicates), "conflicts": b"".join(conflicts)})
        else:
            for kind, lines in (("duplicates", duplicates), ("conflicts", conflicts)):
                path(bucket.folder, kind, bucket.number).write_bytes(b"".join(lines))
            save(bucket, kept)
    return result


def save(bucket: Bucket, kept: Sorted) -> None:
    """Keep a bucket's rows for the next pass, with what near-duplicates are found by."""
    import numpy as np

    path(bucket.folder, "rows", bucket.number).write_bytes(b"".join(kept.rows))
    table = np.array([list(map(len, kept.rows)), kept.sides, kept.files, kept.lines], np.uint64).reshape(4, -1)
    np.save(path(bucket.folder, "index", bucket.number), table)
    if bucket.options.does("near"):
        from temper.data import near

        values = near.bands([question(orjson.loads(plain(row))) for row in kept.rows])
        np.save(path(bucket.folder, "bands", bucket.number), np.ascontiguousarray(values.T))


def load(bucket: Bucket) -> Sorted:
    """Return the rows that `save` kept."""
    import numpy as np

    sizes, sides, files, lines = np.load(f"{path(bucket.folder, 'index', bucket.number)}.npy").tolist()
    data, at, rows = path(bucket.folder, "rows", bucket.number).read_bytes(), 0, []
    for size in sizes:
        rows.append(data[at : at + size])
        at += size
    return Sorted(rows, sides, files, lines)


def finish(work: tuple[Bucket, list[int]]) -> Merged:
    """Write the rows that `save` kept, but for those at the places given."""
    bucket, gone = work
    result = Merged(bucket.number)
    with places.turn(bucket.number):
        kept = _without(load(bucket), set(gone))
        parts = {kind: path(bucket.folder, kind, bucket.number).read_bytes() for kind in ("duplicates", "conflicts")}
        emit(bucket, kept, result, parts)
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


def emit(bucket: Bucket, kept: Sorted, result: Merged, more: dict[str, bytes]) -> None:
    """Write a bucket's part of each file, `more` being some, and count what a report shows."""
    options = bucket.options
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    if not (bucket.turns or options.does("checks") or options.does("report") or options.model):
        held = kept.sides.count(EVAL)
        if kept.sides[:held].count(EVAL) == held:  # as the order of a hash splits them
            parts = kept.rows[held:], kept.rows[:held]
        else:
            for row, side in zip(kept.rows, kept.sides, strict=True):
                parts[side].append(row)
        joined = [b"\n".join([*part, b""]) for part in parts]
    else:
        joined = _emit_slowly(bucket, kept, result, parts)
    for name, part in zip(SIDES, parts, strict=True):
        result.counts[name] += len(part)
    written = {**dict(zip(SIDES, joined, strict=False)), "checks": b"".join(joined[2:]), **more}
    places.write(bucket.number, written, bucket.folder)


def _emit_slowly(bucket: Bucket, kept: Sorted, result: Merged, parts: tuple[list[bytes], list[bytes]]) -> list[bytes]:
    options, checks = bucket.options, []
    result.lengths = {"question": Counter(), "answer": Counter()}
    rows = []
    for row, side in zip(kept.rows, kept.sides, strict=True):
        data, _, more = row.partition(MARK)
        fields = orjson.loads(data)
        rows.append(fields)
        said, answered = question(fields), answer(fields)
        result.lengths["question"][len(said).bit_length()] += 1
        result.lengths["answer"][len(answered).bit_length()] += 1
        if bucket.turns:
            fields = _messages(fields)
            data = dumps(fields)
        parts[side].append(data)
        if options.does("checks"):
            asks = dumps({"instruction": said, "input": "", "output": answered, **fields}) if bucket.turns else data
            checks.append(asks[:-1] + b',"split":"%s","columns":%s}' % (SIDES[side].encode(), more))
        if len(result.examples) < ROWS_SHOWN:
            result.examples.append({"split": SIDES[side], "instruction": said[:400], "output": answered[:400]})
    if options.model and options.does("tokens"):
        counted = counter(options.model).count(rows)
        for side, tokens in zip(kept.sides, counted, strict=True):
            result.tokens[side][tokens] += 1
        ranked = sorted(range(len(rows)), key=lambda i: -counted[i])[:10]
        result.longest = [(counted[i], question(rows[i])[:200], SIDES[kept.sides[i]]) for i in ranked]
    return [b"\n".join([*part, b""]) for part in (*parts, checks)]


_counters: dict[Path, Any] = {}


def counter(folder: Path) -> Any:
    """Return this process's token counter for a base model."""
    if folder not in _counters:
        from temper.data import tokens

        _counters[folder] = tokens.Counter(folder)
    return _counters[folder]
