"""The data stage: every row read, checked, normalised, compared with the others, put on a side, counted and written.

Rows read = rows kept + rows merged as duplicates + rows rejected, always.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temper.data import chunks, places, shapes, sources
from temper.data.chunks import Table
from temper.data.options import Options
from temper.data.reasons import REASONS, Rejected
from temper.errors import DataError

OUTPUTS = (
    *(f"{name}.jsonl" for name in (*places.FILES, "rejected")),
    "dataset_info.json",
    "report.json",
    "report.html",
)
CHUNKS = 512  # at least, of input that makes for larger ones than chunks.SIZE: each leaves a note for each bucket
BUCKET = 5 << 20  # bytes of input per bucket, about
Say = Callable[[str], None]


@dataclass
class Account:
    """What became of the rows."""

    read: int = 0
    rejected: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # train, eval; exact, near, across_split
    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        """Rows merged into others."""
        return self.counts["exact"] + self.counts["near"] + self.counts["across_split"]

    def check(self) -> None:
        """Fail when a row is unaccounted for."""
        out = self.counts["train"] + self.counts["eval"] + self.duplicates + self.rejected
        if out != self.read:
            raise AssertionError(f"{self.read} rows in, {out} accounted for")


def process(
    paths: Sequence[Path], out: Path, options: Options, eval_paths: Sequence[Path] = (), say: Say | None = None
) -> str:
    """Turn the raw rows of files and folders into what LLaMA Factory reads, in the folder `out`; return the account.

    `eval_paths` are files of rows to evaluate on; without them a share of the questions is held out.
    Raises DataError for a file that cannot be read, lacks a column, or has too many unusable rows: then only
    rejected.jsonl is written. `say` gets a line now and then while there is much to do.
    """
    from temper.data import rows, workers

    if options.does("normalise"):
        options = replace(options, system=rows.normalise(options.system, Counter()))
    try:
        rows.check_text(options.system, options)
    except Rejected as why:
        raise DataError(f"data.system (--system): {why.detail}", "correct it") from None
    held = dict(sources.find(eval_paths)) if eval_paths else {}
    found = [(name, path, False) for name, path in sources.find(paths)] if paths else []
    own = {path.resolve() for path in held.values()}
    found = [item for item in found if item[1].resolve() not in own]
    clash = {name for name, _, _ in found} & held.keys()
    found += [(f"eval/{name}" if name in clash else name, path, True) for name, path in held.items()]
    found = [item for item in found if not item[1].resolve().is_relative_to(out.resolve())]
    out.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        (out / name).unlink(missing_ok=True)
    for left in out.glob(".spool-*"):  # by a run that was killed
        shutil.rmtree(left)
    progress = _Progress(say or (lambda text: None))
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=out) as spool:
        tables, files = _tables(sorted(found), Path(spool), options)
        total = sum(table.size for table in tables)
        size = max(chunks.SIZE, min(total // CHUNKS, chunks.LARGEST))
        cut = [chunks.cut(table, size) for table in tables]
        places.begin(str(out), spool, options.engine == "local")
        with workers.pool(options, sum(map(len, cut)) > 2) as over:
            run = _Run(options, tables, files, Path(spool), out, over, progress, bits=_bits(total))
            run.first(cut)
            places.create()
            run.second()
            run.write()
    return summary(out)


def _bits(total: int) -> int:
    """Return how many bits of a key name its bucket, for `total` bytes of input."""
    return max(0, (-(-total // BUCKET) - 1).bit_length())


def _tables(
    found: Iterable[tuple[str, Path, bool]], spool: Path, options: Options
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Prepare the inputs for reading, and describe each for the report."""
    tables, files = [], []
    for number, (name, path, held_out) in enumerate(found):
        folder = spool / f"plain-{number}"
        folder.mkdir()
        source = sources.prepare(name, path, folder, options.encoding)
        start, line, header, there = head(source)
        shape = shapes.recognise(there, options.columns, str(path)) if there else shapes.Shape("columns", {})
        size = os.stat(source.plain).st_size
        tables.append(Table(number, name, str(source.plain), source.form, start, line, size, header, shape, held_out))
        files.append(
            {
                "file": name,
                "kind": source.kind,
                "compression": source.compression,
                "encoding": source.encoding,
                "shape": shape.kind,
                "columns": shape.columns,
                "rows": 0,
                "rejected": 0,
                "eval": held_out,
            }
        )
    paired = {("rejected" in table.shape.columns) for table in tables if table.shape.columns}
    if len(paired) > 1:
        raise DataError(
            "some files hold preference pairs and some do not", "process them one after the other, into two folders"
        )
    return tables, files


def head(source: sources.Source) -> tuple[int, int, tuple[str, ...], list[str]]:
    """Return where the rows begin (byte and line), a table's header, and the names of the columns there are."""
    with open(source.plain, "rb") as file:
        file.seek(source.start)
        data = file.read(chunks.HEAD)
        if source.form == "jsonl" and b"\n" not in data and len(data) == chunks.HEAD:
            data += file.readline()
    if source.form == "jsonl":
        return source.start, 1, (), _names(data)
    text = chunks.text_of(data[: data.rfind(b"\n") + 1] if len(data) == chunks.HEAD and b"\n" in data else data)
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(iter(lines), delimiter="\t" if source.form == "tsv" else ",", strict=True)
    try:
        header = next(values for values in reader if any(value.strip() for value in values))
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{source.path}: no header line ({error})", "give the column names in the first line") from None
    names = [_whole(name).strip().strip("\ufeff") for name in header]
    sources.refuse_twice(source.path, names)
    before = "".join(lines[: reader.line_num]).encode(errors="surrogateescape")
    header = [name or f"column {number}" for number, name in enumerate(names, 1)]
    return source.start + len(before), reader.line_num + 1, tuple(header), [name for name in names if name]


def _whole(text: str) -> str:
    """Return text with what is no character shown as such."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _names(data: bytes) -> list[str]:
    """Return the names of all fields of the records in `data`, but for damaged ones."""
    from temper.data import first

    there: dict[str, None] = {}
    for line in data.split(b"\n"):
        try:
            there |= dict.fromkeys(first.fields_of(line)) if line.strip() else {}
        except Rejected:
            continue
    return [name for name in there if name and name.isprintable() | name.isascii()]


class _Run:
    """The passes over all inputs."""

    def __init__(
        self,
        options: Options,
        tables: list[Table],
        files: list[dict[str, Any]],
        spool: Path,
        out: Path,
        over: Any,
        progress: _Progress,
        bits: int,
    ) -> None:
        self.options, self.tables, self.files, self.spool, self.out = options, tables, files, spool, out
        self.over, self.progress, self.bits = over, progress, bits
        self.account, self.changes, self.personal = Account(), Counter[str](), Counter[str]()
        self.personal_rows = 0
        self.personal_examples: list[dict[str, Any]] = []
        self.turns = False
        self.rejected: list[tuple[str, int, int, int, int]] = []  # file of the spool, byte, bytes; table, line before
        self.spools: dict[str, int] = {}
        self.segments: list[Any] = []
        self.total: Any = None  # what became of all buckets
        self.near_examples: list[dict[str, Any]] = []

    # The first pass

    def first(self, cut: list[list[chunks.Chunk]]) -> None:
        """Read, check and normalise all chunks; DataError when too many rows are rejected or none is left."""
        from temper.data import first

        work = [first.Work(chunk, self.options, str(self.spool), 64 - self.bits) for table in cut for chunk in table]
        passed, shares = [], sum(item.chunk.end - item.chunk.start for item in work) or 1
        done = 0
        for item, result in zip(work, self.over(first.run, work), strict=True):
            passed.append(result)
            done += item.chunk.end - item.chunk.start
            self.progress(f"reading: {done / shares:.0%}")
        at = 0
        for table, pieces in zip(self.tables, cut, strict=True):
            begins, line = table.start, table.first_line - 1
            for piece in pieces:
                result = passed[at]
                if result.began != begins:  # guessed wrongly where the chunk's first row begins
                    result = first.run(work[at]._replace(chunk=chunks.again(piece, begins)))
                self._add(table, result, line)
                begins, line, at = result.ended, line + result.lines, at + 1
        first.close()
        self._refuse()

    def _add(self, table: Table, result: Any, line: int) -> None:
        """Add what became of a chunk; `line` is the number of lines before it."""
        from temper.data import first

        account = self.account
        bad = sum(result.reasons.values())
        account.read += result.read
        account.rejected += bad
        self.files[table.number]["rows"] += result.read
        self.files[table.number]["rejected"] += bad
        account.reasons += result.reasons
        for reason, found in result.places.items():
            known = account.places.setdefault(reason, [])
            known += [(table.name, line + place + 1) for place in found][: 3 - len(known)]
        self.changes += result.changes
        self.personal += result.personal
        self.personal_rows += result.personal_rows
        for kind, place, text in result.personal_places:
            if len(self.personal_examples) < first.SHOWN:
                self.personal_examples.append(
                    {"kind": kind, "file": table.name, "line": line + place + 1, "text": text}
                )
        self.turns = self.turns or result.turns
        file, at, size, count = result.rejected
        if count:
            self.rejected.append((file, at, size, table.number, line))
        found = result.segments
        found["spool"] = self.spools.setdefault(result.spool, len(self.spools))
        found["file"], found["line"] = table.number, line + 1
        self.segments.append(found)

    def _refuse(self) -> None:
        account, options = self.account, self.options
        self._write_rejected()
        if account.rejected > options.max_rejected * account.read:
            common = account.reasons.most_common(3)
            listed = ", ".join(
                f"{count} x {REASONS[code].text} (first in {self._first(code)})" for code, count in common
            )
            raise DataError(
                f"{self._where()}: {account.rejected} of {account.read} rows cannot be used"
                f" ({account.rejected / account.read:.1%}): {listed}; each is in {self.out / 'rejected.jsonl'}",
                f"correct them, or allow more than {options.max_rejected:.1%} with data.max_rejected (--max_rejected)",
            )

    def _where(self) -> str:
        """Return what a message about all rows begins with."""
        return self.tables[0].name if len(self.tables) == 1 else f"{len(self.tables)} files"

    def _first(self, code: str) -> str:
        file, line = self.account.places[code][0]
        return f"line {line}" if len(self.tables) == 1 else f"{file} line {line}"

    def _write_rejected(self) -> None:
        """Write rejected.jsonl: each row left out as unusable, in the order of files and lines."""
        from temper.data import first

        with open(self.out / "rejected.jsonl", "wb") as target:
            for file, at, size, number, line in self.rejected:
                with open(file, "rb") as source:
                    source.seek(at)
                    for record in source.read(size).splitlines():
                        place, _, rest = record.partition(b" ")
                        reason, detail, excerpt = json.loads(rest)
                        if reason == "not-csv":
                            before, _, at = detail.partition("{")  # a line within the chunk
                            detail = f"{before}{line + int(at[:-2])})" if at else detail
                        row = {
                            "file": self.tables[number].name,
                            "line": line + int(place) + 1,
                            "reason": reason,
                            "detail": detail,
                            "remedy": REASONS[reason].remedy,
                            "row": excerpt,
                        }
                        target.write(first.dumps(row) + b"\n")

    # The second pass, and the third

    def second(self) -> None:
        """Merge duplicates, split, count, and write each bucket's part of the files."""
        import numpy as np

        from temper.data import first, second, workers

        segments = np.concatenate([np.empty(0, first.SEGMENT), *self.segments])
        segments = segments[np.argsort(segments["bucket"], kind="stable")]
        segments.tofile(self.spool / second.SEGMENTS)  # buckets times chunks: much memory for millions of rows
        edges = np.searchsorted(segments["bucket"], range((1 << self.bits) + 1)).tolist()
        self.segments.clear()
        del segments
        workers.trim()
        does = self.options.does
        last = not does("near") and not (does("tokens") and self.options.model)
        work = [
            second.Bucket(
                number,
                (begin, end - begin),
                tuple(self.spools),
                self.options,
                tuple(table.name for table in self.tables),
                tuple(table.held_out for table in self.tables),
                str(self.spool),
                self.turns,
                last,
            )
            for number, (begin, end) in enumerate(itertools.pairwise(edges))
        ]
        self.total, rows = second.Merged(), []
        for number, result in enumerate(self.over(second.run, work), 1):
            rows.append(result.rows)
            self.total.add(result)
            self.progress(f"merging duplicates: {number / len(work):.0%}")
        if last:
            return
        gone = self._near(tuple(rows)) if does("near") else [[] for _ in work]
        for number, result in enumerate(self.over(second.finish, list(zip(work, gone, strict=True))), 1):
            self.total.add(result)
            self.progress(f"counting tokens: {number / len(work):.0%}")

    def _near(self, counts: tuple[int, ...]) -> list[list[int]]:
        """Find near-duplicates; return the places to leave out of each bucket, and note each in its duplicates."""
        from temper.data import first, second, third

        self.progress("comparing near-duplicates")
        pairs = third.find(self.over, str(self.spool), counts)
        gone = third.resolve(pairs, any(table.held_out for table in self.tables))
        rows = third.Rows(str(self.spool), counts)
        leaving: list[list[int]] = [[] for _ in counts]
        names = [table.name for table in self.tables]

        def note(row: int, stays: int, likeness: float, across: bool) -> bytes:
            kind = "across_split" if across else "near"
            self.total.counts[kind] += 1
            (file, line), (kept_file, kept_line) = rows.origin(row), rows.origin(stays)
            record = {"file": names[file], "line": line, "kind": kind, "kept_file": names[kept_file]}
            record |= {"kept_line": kept_line, "likeness": round(likeness, 3)}
            if len(self.near_examples) < second.SHOWN:
                example = {"kept": rows(stays)[0][:200], "left_out": rows(row)[0][:200], "likeness": round(likeness, 2)}
                self.near_examples.append(example)
            return first.dumps(record) + b"\n"

        for bucket, group in itertools.groupby(gone, lambda each: rows.place(each[0])[0]):
            left_out = list(group)
            leaving[bucket] = [rows.place(row)[1] for row, *_ in left_out]
            with open(places.path(str(self.spool), "duplicates", bucket), "ab") as target:
                target.writelines(note(*each) for each in left_out)
        return leaving

    # The files

    def write(self) -> None:
        """Put the buckets' parts together, and write dataset_info.json, report.json and report.html."""
        from temper.data import report

        self.account.counts += self.total.counts
        if self.account.counts["train"] == 0:
            raise DataError(
                f"{self._where()}: no row is left to train on ({self.account.read} read)",
                "give more rows, or lower data.eval_share (--eval_share)",
            )
        self.account.check()
        places.together(1 << self.bits)
        if not self.options.does("checks"):
            (self.out / "checks.jsonl").unlink()
        preference = any("rejected" in table.shape.columns for table in self.tables)
        _write_json(self.out / "dataset_info.json", dataset_info(self.turns, preference))
        made = report.build(self)
        _write_json(self.out / "report.json", made)
        if self.options.does("report"):
            from temper.data import page

            (self.out / "report.html").write_text(page.page(made), encoding="utf-8")


def dataset_info(turns: bool, preference: bool) -> dict[str, Any]:
    """Return what LLaMA Factory is told about train.jsonl and eval.jsonl.

    With preference pairs the better answers are the dataset, and train_preference and eval_preference the pairs.
    """
    if turns:
        shape: dict[str, Any] = {
            "formatting": "sharegpt",
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        columns = {"messages": "messages"}
        pairs = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    else:
        shape = {}
        columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        pairs = {**columns, "chosen": "output", "rejected": "rejected"}
        del pairs["response"]
    info = {name: {"file_name": f"{name}.jsonl", **shape, "columns": columns} for name in ("train", "eval")}
    if preference:
        for name in ("train", "eval"):
            info[f"{name}_preference"] = {
                "file_name": f"{name}.jsonl", "ranking": True, **shape, "columns": pairs
            }  # fmt: skip
    return info


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(out: Path) -> str:
    """Say in one line what became of the rows, from report.json."""
    n = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return (
        f"{n['read']} rows = {n['train']} to train on + {n['eval']} held out + {n['duplicates']} duplicates"
        f" + {n['rejected']} rejected"
    )


class _Progress:
    """Say how far the work is: at most every ten seconds, and not at all when it is done sooner."""

    def __init__(self, say: Say) -> None:
        self.say, self.last = say, time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.last >= 10:
            self.last = time.monotonic()
            self.say(f"data    {text}")
