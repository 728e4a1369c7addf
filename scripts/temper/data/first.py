"""The first pass: each row of a chunk read, checked and normalised, and put into the bucket of its question."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import uuid
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash

from temper.data import gather, personal, regular, rows, shapes
from temper.data.chunks import Chunk, Reader
from temper.data.options import Options
from temper.data.reasons import Rejected
from temper.data.shapes import Talk

SHOWN = 10  # places of personal data kept for each chunk
NOTED = 3  # places kept for each reason and chunk
MARK = b"\x00"  # between a row and its further columns; JSON holds none
# Readers that take these for line ends would cut a row in two.
ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}
ESCAPES = ((b'""', b'\\"'), (b"\r\n", b"\\n"), (b"\n", b"\\n"), (b"\t", b"\\t"))  # of CSV, as JSON has them
# What makes a row take the long way: to be cleaned, written otherwise in JSON, or looked at more closely.
ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u3000\ufeff\u200b\ufffe\uffff\ud800-\udfff]").search


def _clean(text: str) -> bool:
    """Say whether nothing is to be done to a text but to take blanks off its ends."""
    if not (text.isprintable() or not ODD(text)) or not unicodedata.is_normalized("NFC", text):
        return False
    return not ("<" in text or "&" in text or "```" in text or "\ufffd" in text)


INDEX = np.dtype([("key", np.uint64), ("line", np.uint32), ("size", np.uint32)])


# Rows of one bucket in a spool file: INDEX of each, then the rows themselves, each with a line feed. The number of the
# spool file, that of the input and the line before the first are known only to who collects them.
SEGMENT = np.dtype([(name, np.int64) for name in ("bucket", "at", "rows", "bytes", "spool", "file", "line")])


@dataclass
class Passed:
    """What became of a chunk."""

    began: int
    ended: int = 0
    lines: int = 0
    read: int = 0
    spool: str = ""
    segments: np.ndarray = field(default_factory=lambda: np.empty(0, SEGMENT))
    rejected: tuple[str, int, int, int] = ("", 0, 0, 0)  # spool file, byte, bytes, rows
    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[int]] = field(default_factory=dict)  # of each reason, lines within the chunk
    changes: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    personal_rows: int = 0
    personal_places: list[tuple[str, int, str]] = field(default_factory=list)  # kind, line, masked text
    turns: bool = False  # whether a row has more than one


class Work(NamedTuple):
    """A chunk, and all that a worker needs for it."""

    chunk: Chunk
    options: Options
    spool: str
    shift: int  # a key's bits above it are its bucket


Bucket = tuple[list[int], list[int], list[bytes]]  # keys, lines, rows
_files: dict[str, Any] = {}


def _spool(folder: str) -> Any:
    """Return this process's spool file."""
    name = f"{folder}:{os.getpid()}"
    if name not in _files:
        close()
        _files[name] = open(Path(folder) / f"{os.getpid()}-{uuid.uuid4().hex}", "wb", buffering=0)  # noqa: SIM115
    return _files[name]


def close() -> None:
    """Close this process's spool file."""
    while _files:
        _files.popitem()[1].close()


def dumps(value: Any) -> bytes:
    """Return compact JSON on one line, also for readers that take U+2028, U+2029 and U+0085 for line ends."""
    data = orjson.dumps(value)
    if b"\xe2\x80" in data or b"\xc2\x85" in data:
        text = data.decode()
        for end, escaped in ENDS.items():
            text = text.replace(end, escaped)
        data = text.encode()
    return data


def key_of(question: str) -> int:
    """Return the 64 bits that a row is ordered and split by: XXH3 of its question as JSON."""
    return int(xxhash.xxh3_64_intdigest(dumps(question)))


class _Pass:
    def __init__(self, work: Work) -> None:
        self.work, self.options = work, work.options
        self.reader = Reader(work.chunk)
        self.result = Passed(self.reader.began)
        self.buckets: list[Bucket] = [([], [], []) for _ in range(1 << (64 - work.shift))]
        self.copied: dict[int, tuple[bytes, bytes]] = {}  # INDEX and rows that were only copied, by bucket
        self.rejects: list[bytes] = []
        system = dumps(self.options.system)
        self.around = b'{"instruction":', b',"input":"","output":', b',"system":%s}\n' % system  # and between two texts
        self.seen = personal.find if self.options.does("personal") else None

    def put(self, line: int, key: int, row: bytes) -> None:
        keys, lines, kept = self.buckets[key >> self.work.shift]
        keys.append(key)
        lines.append(line)
        kept.append(row)

    def reject(self, line: int, why: Rejected, row: str) -> None:
        result = self.result
        result.reasons[why.reason] += 1
        places = result.places.setdefault(why.reason, [])
        if len(places) < NOTED:
            places.append(line)
        excerpt = self.hidden(row[:1000])[:200].encode(errors="replace").decode()
        self.rejects.append(b"%d %s\n" % (line, dumps([why.reason, why.detail, excerpt])))

    def talk(self, line: int, fields: dict[str, Any], raw: bytes = b"") -> None:
        """Take a row the long way; `raw` is how it stands in the file, if that is one line."""
        try:
            self.keep(line, shapes.read(fields, self.work.chunk.table.shape), fields)
        except Rejected as why:
            self.reject(line, why, _shown(fields, raw))

    def keep(self, line: int, talk: Talk, fields: dict[str, Any]) -> None:
        """Check and normalise a conversation and put it where it belongs; Rejected when it cannot be used."""
        options, changes = self.options, Counter[str]()
        texts = [talk.question, talk.answer, talk.material, talk.system or options.system, talk.rejected or ""]
        texts += [text for turn in talk.history for text in turn]
        for text in filter(None, texts):
            rows.check_text(text, options)
        if options.does("normalise"):
            texts = [text and rows.normalise(text, changes) for text in texts]
        if options.does("personal"):
            own, texts[3] = texts[3], texts[3] if talk.system else ""  # the common system prompt is no row's
            texts = self.personal(line, texts)
            texts[3] = texts[3] if talk.system else own
        question, answer, material, system, rejected, *turns = texts
        if not question or not all(turns[::2]):
            raise Rejected("empty-question")
        if not answer or not all(turns[1::2]) or (talk.rejected is not None and not rejected):
            raise Rejected("empty-answer")
        if rejected == answer and talk.rejected is not None:
            raise Rejected("no-preference")
        if "```" in answer:
            rows.check_code(answer)
        self.result.changes.update(changes.keys())
        row = self.row(question, answer, material, system, turns, None if talk.rejected is None else rejected)
        self.put(line, key_of(turns[0] if turns else question), b"%b%b\n" % (row, self.more(fields)))

    def row(
        self, question: str, answer: str, material: str, system: str, turns: list[str], rejected: str | None
    ) -> bytes:
        """Return a row as it is written."""
        worse = {} if rejected is None else {"rejected": rejected}
        if not turns:
            return dumps({"instruction": question, "input": material, "output": answer, **worse, "system": system})
        self.result.turns = True
        asked = "\n".join(filter(None, (question, material)))
        texts = [*turns, asked, answer]
        said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return dumps({"messages": [*([{"role": "system", "content": system}] if system else []), *said], **worse})

    def more(self, fields: dict[str, Any]) -> bytes:
        """Return the columns that are not learnt, as they are appended to a row."""
        if not self.options.does("checks"):
            return b""
        used = self.work.chunk.table.shape.used()
        rest = {
            name: self.hidden(value) if isinstance(value, str) else value
            for name, value in fields.items()
            if name not in used
        }
        try:
            return MARK + dumps(rest)
        except TypeError:
            return MARK + dumps({_plain(name): _plain(value) for name, value in rest.items()})

    def hidden(self, text: str) -> str:
        """Return text beside the rows with personal data masked, where rows may not hold any."""
        if not self.options.does("personal") or self.options.personal == "report":
            return text
        return personal.mask(text, personal.find(text))

    def personal(self, line: int, texts: list[str]) -> list[str]:
        """Find personal data, and note, mask or refuse it as asked."""
        found = [personal.find(text) for text in texts]
        if not any(found):
            return texts
        masked = [personal.mask(text, hits) for text, hits in zip(texts, found, strict=True)]
        result = self.result
        result.personal_rows += 1
        for text, hits in zip(masked, found, strict=True):
            result.personal.update(hit.kind for hit in hits)
            if hits and len(result.personal_places) < SHOWN:
                result.personal_places.append((hits[0].kind, line, text[:120]))
        if self.options.personal == "drop":
            kinds = dict.fromkeys(hit.kind for hits in found for hit in hits)
            raise Rejected("personal-data", f"holds {', '.join(kinds)}")
        return masked if self.options.personal == "mask" else texts

    def table(self) -> None:
        """Take the rows of a table; where nothing is to be done but to copy them, they go a shorter way."""
        table, options = self.work.chunk.table, self.options
        names, columns = table.header, table.shape.columns
        at = {key: names.index(name) for key, name in columns.items() if name in names}
        short = at.keys() == {"instruction", "output"} and options.does("normalise") and not options.does("checks")
        asked, answered = at.get("instruction", 0), at.get("output", 0)
        found = regular.find(self.reader, asked, answered, options.max_chars, self.seen) if short else None
        if found:
            self.copy(found)
        for line, values in self.reader.values() if found is None else regular.fields(found, self.reader):
            self.result.read += 1
            if isinstance(values, Rejected):
                self.reject(line, values, values.row)
            elif not (short and self.plain(line, values[asked], values[answered])):
                self.talk(line, dict(zip(names, values, strict=True)))

    def plain(self, line: int, raw_question: str, raw_answer: str) -> bool:
        """Take a row to which nothing is to be done but to take blanks off its texts' ends; say whether it was one."""
        if not (_clean(raw_question) and _clean(raw_answer)):
            return False
        question, answer = raw_question.strip(), raw_answer.strip()
        if not (question and answer) or len(raw_question) + len(raw_answer) > self.options.max_chars:
            return False
        if self.seen and (self.seen(question) or self.seen(answer)):
            return False
        if len(question) < len(raw_question) or len(answer) < len(raw_answer):
            self.result.changes["blanks"] += 1
        head, middle, end = self.around
        quoted = orjson.dumps(question)
        self.put(line, xxhash.xxh3_64_intdigest(quoted), head + quoted + middle + orjson.dumps(answer) + end)
        return True

    def copy(self, found: regular.Rows) -> None:
        """Take the rows of a table that are only to be copied."""
        self.result.read = len(found.lines)
        self.result.changes.update(found.changes)
        marked = np.empty(len(found.data) + 2, np.uint8)
        marked[1:-1] = np.frombuffer(found.data, np.uint8)
        for begins, ends in (found.asked, found.answered):
            marked[begins] = marked[ends + 1] = ord('"')  # around each text, over what parted it from the next
        data = marked.tobytes()
        places = [(begins.copy(), ends + 2) for begins, ends in (found.asked, found.answered)]
        for begins, ends in places:
            first, last = (np.searchsorted(found.escapes, edge[found.escaped]) for edge in (begins, ends - 2))
            rows = found.escaped[first < last]
            texts = [
                data[begin + 1 : end - 1] for begin, end in zip(begins[rows].tolist(), ends[rows].tolist(), strict=True)
            ]
            for raw, escape in ESCAPES:
                texts = [text.replace(raw, escape) for text in texts]
            ends[rows] = len(data) + np.cumsum([len(text) + 2 for text in texts], dtype=np.int64)
            begins[rows] = ends[rows] - [len(text) + 2 for text in texts]
            data += b"".join(b'"%b"' % text for text in texts)
        digest = xxhash.xxh3_64_intdigest
        index = np.empty(len(found.lines), INDEX)
        index["key"] = [digest(data[x:y]) for x, y in zip(*(edge.tolist() for edge in places[0]), strict=True)]
        index["line"] = found.lines
        buckets = index["key"] >> np.uint64(self.work.shift)
        order = np.argsort(buckets, kind="stable")
        asked, answered = (gather.pieces(data, x[order], y[order]) for x, y in places)
        head, middle, end = self.around
        rows, ends = gather.join(head, asked, middle, answered, end)
        index = index[order]
        index["size"] = np.diff(ends, prepend=0)
        borders = np.searchsorted(buckets[order], np.arange(len(self.buckets) + 1)).tolist()
        edges = [0, *ends.tolist()]
        for bucket, (begin, stop) in enumerate(pairwise(borders)):
            if begin < stop:
                self.copied[bucket] = index[begin:stop].tobytes(), bytes(rows[edges[begin] : edges[stop]])

    def json(self) -> None:
        """Take the rows of JSONL."""
        for line, data in self.reader.records():
            self.result.read += 1
            try:
                fields = fields_of(data)
            except Rejected as why:
                self.reject(line, why, data[:4000].decode(errors="replace"))
                continue
            self.talk(line, fields, data)

    def spool(self) -> Passed:
        """Write what was kept and rejected, and return the account."""
        result, file = self.result, _spool(self.work.spool)
        at = os.fstat(file.fileno()).st_size
        parts, segments = [], []
        for bucket, (keys, lines, kept) in enumerate(self.buckets):
            table, data = self.copied.get(bucket, (b"", b""))
            if kept:
                index = np.empty(len(kept), INDEX)
                index["key"], index["line"], index["size"] = keys, lines, list(map(len, kept))
                table, data = table + index.tobytes(), data + b"".join(kept)
            if table:
                segments.append((bucket, at, len(table) // INDEX.itemsize, len(data), 0, 0, 0))
                parts += [table, data]
                at += len(table) + len(data)
        rejected = b"".join(self.rejects)
        result.spool, result.segments = file.name, np.array(segments, SEGMENT)
        result.rejected = (file.name, at, len(rejected), len(self.rejects))
        _write_all(file, [*parts, rejected])
        result.ended, result.lines = self.reader.ended, self.reader.lines
        return result


def _write_all(file: Any, parts: list[bytes]) -> None:
    data = memoryview(b"".join(parts))
    while data:
        data = data[file.write(data) :]


def _shown(fields: dict[str, Any], raw: bytes) -> str:
    try:
        return json.dumps(fields, ensure_ascii=False)
    except (ValueError, RecursionError):
        return raw[:4000].decode(errors="replace")


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: halves of characters, huge numbers, deep nesting as text that shows them."""
    try:
        orjson.dumps(value)
    except TypeError:
        try:
            value = json.dumps(value)
        except (ValueError, RecursionError):
            value = "too deep or too large to be kept"
    return value


def fields_of(data: bytes) -> dict[str, Any]:
    """Return a line of JSON as fields; Rejected when it is no object."""
    try:
        item = orjson.loads(data)
    except ValueError as error:
        item = _unusual(data, error)
    if not isinstance(item, dict):
        raise Rejected("not-an-object")
    for value in item.values():
        if value.__class__ is float and not -(2**63) < value < 2**64:  # orjson has rounded a whole number
            return dict(_unusual(data, ValueError()))
    return item


def _unusual(data: bytes, error: ValueError) -> Any:
    """Read what orjson refuses: halves of characters, and numbers that only Python takes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Rejected("encoding", "bytes that are not in the file's encoding") from None
    try:
        return json.loads(text, parse_constant=lambda name: None)  # NaN and Infinity say nothing
    except (ValueError, RecursionError):
        raise Rejected("not-json", str(error)) from None


def run(work: Work) -> Passed:
    """Read, check and normalise the rows of one chunk."""
    passing = _Pass(work)
    if work.chunk.table.form == "jsonl":
        passing.json()
    else:
        passing.table()
    return passing.spool()
