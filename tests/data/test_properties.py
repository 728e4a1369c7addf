"""The data stage as a whole: no row lost, nothing that depends on how rows are stored or cut, no question on two sides.

Tables are generated, and what must become of them is known to the generator or to a plain reading of the whole text.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from temper.data import chunks, near, personal, process, rows, shapes
from temper.data.options import STEPS, Options
from temper.errors import DataError

HAN = "客户可以在门店退换货吗请问保修期多久发票怎么开会员积分如何兑换配送到家需要费用安装服务预约电话地址营业时间"
SPACES = "".join(sign for sign in map(chr, range(sys.maxunicode + 1)) if sign.isspace())


def thorough(examples: int) -> settings:
    """Return settings that try the same examples on every run, however slow the machine is."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


FEW = ("tokens", "near", "report", "checks")
FEWEST = (*FEW, "personal")  # with which rows that are only copied are found for a whole chunk at once


def asked(off: Sequence[str] = FEW, **given: Any) -> Options:
    """Return options that refuse nothing for its many bad rows, and count no tokens."""
    given = {"workers": 1, "max_rejected": 1.0, "eval_share": 0.3, "encoding": "utf-8", **given}
    return Options(steps=frozenset(STEPS) - set(off), **given)


class Made(NamedTuple):
    """What the stage wrote: files by name."""

    files: dict[str, bytes]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a file."""
        return [json.loads(line) for line in self.files[f"{name}.jsonl"].split(b"\n") if line]

    def pairs(self, *names: str) -> list[tuple[str, str]]:
        """Return question and answer of the rows of these files."""
        return [(row["instruction"], row["output"]) for name in names for row in self.rows(name)]

    def questions(self, name: str) -> set[str]:
        """Return the questions of a file."""
        return {question for question, _ in self.pairs(name)}

    @property
    def report(self) -> dict[str, Any]:
        """Return report.json."""
        return json.loads(self.files["report.json"])

    def comparable(self) -> dict[str, Any]:
        """Return all that no chunk and no bucket may have a part in.

        The report's examples are the first of each bucket and of each chunk, and notes of near-duplicates stand behind
        their bucket's others.
        """
        report = self.report
        del report["examples"]
        if report["personal_data"]:
            del report["personal_data"]["examples"]
        duplicates = sorted(self.files["duplicates.jsonl"].split(b"\n"))
        return {**self.files, "duplicates.jsonl": duplicates, "report.json": report}


def stage(
    inputs: Mapping[str, bytes],
    options: Options,
    *,
    size: int | None = None,
    bits: int | None = None,
    held_out: Mapping[str, bytes] | None = None,
) -> Made:
    """Run the stage over files of this content, in chunks of `size` bytes and 2 ** `bits` buckets."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if size:
            stack.enter_context(mock.patch.object(chunks, "SIZE", size))
        if bits is not None:
            stack.enter_context(mock.patch.object(process, "_bits", lambda total: bits))
        paths = [Path(folder, name) for name in inputs]
        held = [Path(folder, name) for name in held_out or {}]
        for path, data in zip([*paths, *held], [*inputs.values(), *(held_out or {}).values()], strict=True):
            path.write_bytes(data)
        out = Path(folder, "out")
        process.process(paths, out, options, held)
        assert not list(out.glob(".spool*"))
        return Made({path.name: path.read_bytes() for path in out.iterdir()})


def as_json(value: Any) -> str:
    """Return compact JSON that no reader takes for two lines."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def key(question: str) -> int:
    """Return the number below 2 ** 64 by which a question is ordered and put on a side."""
    return xxhash.xxh3_64_intdigest(as_json(question).encode())


# The stage needs a row to train on; this one is held out at no share below 0.98.
ANCHOR = next(text for text in map("row {}".format, itertools.count()) if key(text) > 0.98 * 2**64)


# Every row is accounted for


class Written(NamedTuple):
    """A table, and what must become of its rows."""

    name: str
    data: bytes
    kept: set[tuple[str, str]]
    rejected: list[tuple[int, str]]  # line, reason
    duplicates: list[tuple[int, int]]  # line, line of the row it equals


INSIDE = [
    "",
    ",",
    "\t",
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    " ",
    "é",
    "e\u0301",
    "\u3000",
    "\u2028",
    "\x85",
    "𠮷",
    "<",
]
AROUND = ["", " ", "\t", "\n", "\xa0", "\u3000", "\ufeff", "\u200b", " \r\n "]
DAMAGED = {
    "control-character": ["\x07", "\x7f", "\x0b", "\x1c", "\x9f", "\ufffe"],
    "encoding": ["\ufffd", "\udcff", "\udce4\udcbd"],
}
KINDS = ["good", "good", "good", "duplicate", "question", "answer", "few", "many", *DAMAGED, "long", "quote", "blank"]
MOST = 300  # characters


@st.composite
def tables(draw: st.DrawFn) -> Written:
    """Write a table of good, repeated, empty, ragged and damaged rows."""
    separator = draw(st.sampled_from([",", "\t"]))
    ends = draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r"]]))
    always = draw(st.booleans())
    text = draw(st.sampled_from(["", "", "\n", "\r\n \r\n"])) + separator.join(["question", "answer", "id"])
    text += draw(st.sampled_from(ends))
    kept: dict[tuple[str, str], int] = {}
    rejected, duplicates = [], []

    def line() -> int:
        return len(re.findall("\r\n|\r|\n", text)) + 1

    def write(*fields: str) -> None:
        nonlocal text
        quoted = [
            '"' + field.replace('"', '""') + '"' if always or re.search(r'["\r\n,\t]', field) else field
            for field in fields
        ]
        text += separator.join(quoted) + draw(st.sampled_from(ends))

    def around(field: str) -> str:
        return draw(st.sampled_from(AROUND)) + field + draw(st.sampled_from(AROUND))

    for number, kind in enumerate(["good", *draw(st.lists(st.sampled_from(KINDS), max_size=15))]):
        question = f"问{draw(st.sampled_from(INSIDE))}{number}" if number else ANCHOR
        answer = f"答{draw(st.sampled_from(INSIDE))}{draw(st.sampled_from('ab'))}"
        if kind == "good":
            kept[tidied(question), tidied(answer)] = line()
            write(around(question), around(answer), str(number))
        elif kind == "duplicate":
            pair = draw(st.sampled_from(list(kept)))
            duplicates.append((line(), kept[pair]))
            write(*map(around, pair), str(number))
        elif kind == "blank":
            text += draw(st.sampled_from(ends))
        elif kind == "quote":
            rejected.append((line(), "not-csv"))
            text += f'"{number}" {separator}b{separator}c' + draw(st.sampled_from(ends))
        else:
            reason = {"question": "empty-question", "answer": "empty-answer", "long": "too-long"}.get(kind, kind)
            rejected.append((line(), "field-count" if kind in ("few", "many") else reason))
            bad = draw(st.sampled_from(DAMAGED.get(kind, ["x" * MOST])))
            damaged = draw(st.permutations([question, answer + bad]))
            whole = damaged if kind in (*DAMAGED, "long") else [question, answer]
            whole = [around("") if kind == "question" else whole[0], around("") if kind == "answer" else whole[1]]
            write(*whole, *{"few": [], "many": ["3", "4"]}.get(kind, ["5"]))
    if draw(st.booleans()):  # a quote that stays open makes only its own row unreadable
        rejected.append((line(), "unclosed-quote"))
        text += f'open{separator}"{separator}never closed' + draw(st.sampled_from(ends))
        if not always:
            kept["behind it", "b"] = line()
            text += f"behind it{separator}b{separator}c" + draw(st.sampled_from(["", *ends]))
    name = "r.csv" if separator == "," else "r.tsv"
    data = (draw(st.sampled_from(["", "\ufeff"])) + text).encode(errors="surrogateescape")
    return Written(name, data, set(kept), rejected, duplicates)


def tidied(text: str) -> str:
    """Return a text without HTML as it must be written."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u3000", " ")
    return unicodedata.normalize("NFC", text).strip(SPACES + "\ufeff\u200b")


@thorough(300)
@given(tables(), st.booleans(), st.sampled_from([None, None, 64, 17]))
def test_every_row_is_accounted_for(table: Written, checks: bool, size: int | None) -> None:
    """Rows in are rows kept, merged and rejected, kind by kind, each at the line where it starts and listed once."""
    off = ("tokens", "near", "report") if checks else ("tokens", "near", "report", "checks")
    made = stage({table.name: table.data}, asked(off, max_chars=MOST), size=size)
    assert Counter(made.pairs("train", "eval")) == Counter(table.kept)
    assert [(row["line"], row["reason"]) for row in made.rows("rejected")] == table.rejected
    places = [(row["line"], row["kept_line"], row["kind"], row["file"]) for row in made.rows("duplicates")]
    assert sorted(places) == sorted((line, kept, "exact", table.name) for line, kept in table.duplicates)
    report = made.report
    read = len(table.kept) + len(table.rejected) + len(table.duplicates)
    assert report["read"] == read == report["files"][0]["rows"]
    assert report["train"] + report["eval"] == len(table.kept)
    assert (report["duplicates"], report["rejected"]) == (len(table.duplicates), len(table.rejected))
    reasons = Counter(reason for _, reason in table.rejected)
    assert {item["reason"]: item["count"] for item in report["reasons"]} == reasons
    for item in report["reasons"]:
        first = [line for line, reason in table.rejected if reason == item["reason"]][:3]
        assert item["first"] == [{"file": table.name, "line": line} for line in first]


# A plain reading of the whole text


def reading(text: str, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each row behind the header as (line, its fields or the reason why they cannot be read).

    A line without a quote is a row. A row that breaks the rules of quotes is left out with the lines it goes over; one
    whose quote stays open, with its first line alone.
    """
    lines = list(io.StringIO(text, newline=""))
    at, width = 0, None
    while at < len(lines):
        first = at
        if '"' in lines[at]:
            reader = csv.reader(lines[at:], delimiter=separator, strict=True)
            try:
                fields: Any = next(reader)
            except csv.Error as error:
                fields = "unclosed-quote" if "unexpected end" in str(error) else "not-csv"
            at += 1 if fields == "unclosed-quote" else reader.line_num
        else:
            at += 1
            fields = lines[first].rstrip("\r\n").split(separator)
            if fields == [""]:
                continue
        if width is None:
            width = len(fields)
        else:
            yield first + 1, fields if fields.__class__ is str or len(fields) == width else "field-count"


def damaged(text: str) -> str:
    """Return the reason why a text cannot be used, "" when it can."""
    if "\ufffd" in text:
        return "encoding"
    found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]", text)
    return "" if not found else "encoding" if "\ud800" <= found[0] <= "\udfff" else "control-character"


class Expected(NamedTuple):
    """The files that a plain reading gives."""

    sides: tuple[bytes, bytes]  # to train on, held out
    rejected: list[tuple[int, str]]
    duplicates: list[tuple[int, int]]


def expected(text: str, separator: str, share: float) -> Expected:
    """Read a table of questions and answers in the plainest way."""
    kept: dict[tuple[str, str], int] = {}
    rejected, duplicates = [], []
    for line, fields in reading(text, separator):
        if isinstance(fields, str):
            rejected.append((line, fields))
        elif damage := next(filter(None, map(damaged, fields)), ""):
            rejected.append((line, damage))
        else:
            question, answer = map(tidied, fields)
            if not (question and answer):
                rejected.append((line, "empty-answer" if question else "empty-question"))
            elif (question, answer) in kept:
                duplicates.append((line, kept[question, answer]))
            else:
                kept[question, answer] = line
    sides: list[list[tuple[int, bytes]]] = [[], []]
    for question, answer in kept:
        row = as_json({"instruction": question, "input": "", "output": answer, "system": ""}).encode()
        sides[key(question) < share * 2**64].append((key(question), row + b"\n"))
    train, held = (b"".join(row for _, row in sorted(side)) for side in sides)
    return Expected((train, held), rejected, sorted(duplicates))


BITS = [",", ",", ",", '"', '"', '""', '","', "\n", "\n", "\r\n", "\r", "\n\n", "a", "b", "a,b\n", '"a\nb",c\n', " "]
BITS += ["\t", "é", "e\u0301", "\u3000", "\ufeff", "\u2028", "\x85", "\x07", "\x1c", "\ufffd", "\udcff", "𠮷", "问"]
SOUP = st.lists(st.sampled_from(BITS), max_size=60).map("".join)
SIZES = st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34, 100, 10_000])


OFF = st.sampled_from([FEWEST, FEWEST, FEW, FEW[:3]])


@thorough(700)
@given(SOUP, st.sampled_from([",", "\t"]), SIZES, st.integers(0, 4), OFF, st.booleans())
@example('y,"a\nb"\rd,e\nf,g\n', ",", 5, 0, FEW, False)  # a lone \r behind the chunk that a row ends in
@example('"a\r\nb",c\n"a\nb\rc",d\ne,f,g\n', ",", 8, 2, FEWEST, False)
def test_a_plain_reading_gives_the_same_files(
    soup: str, separator: str, size: int, bits: int, off: Sequence[str], mark: bool
) -> None:
    """Any quotes, separators and line ends give the bytes they should, however the file is cut and put in buckets."""
    text = f"question{separator}answer\n{ANCHOR}{separator}b\n" + soup.replace(",", separator)
    name = "r.csv" if separator == "," else "r.tsv"
    data = (b"\xef\xbb\xbf" if mark else b"") + text.encode(errors="surrogateescape")
    made = stage({name: data}, asked(off), size=size, bits=bits)
    wanted = expected(text, separator, 0.3)
    assert [(row["line"], row["reason"]) for row in made.rows("rejected")] == wanted.rejected
    assert (made.files["train.jsonl"], made.files["eval.jsonl"]) == wanted.sides
    assert sorted((row["line"], row["kept_line"]) for row in made.rows("duplicates")) == wanted.duplicates


def nasty(rows: int, seed: int) -> bytes:
    """Return a table with all that makes it hard to cut: quoted line ends, lines in quotes that look like rows."""
    chance = random.Random(seed)
    text = "id,question,answer\n"
    for number in range(rows):
        question = "".join(chance.choices(HAN, k=chance.randint(3, 12)))
        answer = chance.choice(
            ["a", '"a,b\nc,d,e\nf"', '"x ""y"", z"', '"\r\n"', '"1,2,3\n4,5,6\n7"', "", 'b"', '"b"c']
        )
        text += f'{number},"{question}"{chance.choice(["", "", "", " "])},{answer}\n'
    return (text + f"0,{ANCHOR},b\n").encode()


def test_where_a_chunk_begins_is_guessed_right() -> None:
    """In a table as CSV writers write it, a chunk begins with a row, though it was cut in the middle of quotes."""
    chance, text, begins = random.Random(5), io.StringIO(), set()
    writer = csv.writer(text, lineterminator="\n")
    for number in range(300):
        begins.add(len(text.getvalue()))
        lines = [",".join(chance.choices(["a", "bc", "12", 'd"e'], k=3)) for _ in range(chance.randint(1, 4))]
        writer.writerow((number, "question?", "\n".join(lines)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.csv")
        path.write_text(text.getvalue())
        size, shape = path.stat().st_size, shapes.Shape("columns", {"instruction": "q", "output": "a"})
        table = chunks.Table(0, path.name, str(path), "csv", 0, 1, size, ("n", "q", "a"), shape, False)
        guessed = [chunks.Reader(chunks.Chunk(table, at, at + 500, False)).began for at in range(1, size - 500)]
    assert set(guessed) <= begins


ENOUGH = ("tokens", "report")


@pytest.mark.parametrize("off", [ENOUGH, FEWEST])
def test_every_size_of_chunk_gives_the_same_bytes(off: Sequence[str]) -> None:
    """All files, the report among them, are the same for a table cut anywhere and into any number of buckets."""
    data = nasty(12, 3)
    whole = stage({"r.csv": data}, asked(off)).comparable()
    assert whole["report.json"]["rejected"] > 1
    for size in (1, *range(2, 60, 3), *range(60, len(data) + 2, 19)):
        bits = size % 5
        assert stage({"r.csv": data}, asked(off), size=size, bits=bits).comparable() == whole, size


@pytest.mark.parametrize("seed", [1, 2])
def test_every_number_of_workers_gives_the_same_bytes(seed: int) -> None:
    """One process or two, the files are the same, and so is the report."""
    inputs = {"a.csv": nasty(150, seed), "b.csv": nasty(90, seed + 9), "c.jsonl": records(clusters(seed, 9, 6))}
    one = stage(inputs, asked(ENOUGH, workers=1), size=1000, bits=2).comparable()
    assert one["report.json"]["duplicates_by"]["near"] and one["report.json"]["duplicates_by"]["exact"]
    assert stage(inputs, asked(ENOUGH, workers=2), size=1000, bits=2).comparable() == one
    assert stage(inputs, asked(ENOUGH, workers=2), size=700, bits=1).comparable() == one


@thorough(60)
@given(st.lists(st.sampled_from(['a,"b\n', "c,d\n", "e\n", '"f\n', ",\n"]), max_size=14).map("".join), SIZES, OFF)
def test_a_quote_that_stays_open_is_given_up_at_the_same_place(soup: str, size: int, off: Sequence[str]) -> None:
    """How far a closing quote is looked for does not depend on where the file is cut."""
    data = f"question,answer\n{ANCHOR},b\n{soup}".encode()
    with mock.patch.object(chunks, "LONGEST", 12):
        whole = stage({"r.csv": data}, asked(off)).comparable()
        assert stage({"r.csv": data}, asked(off), size=size).comparable() == whole


# The order and the form of the rows


def records(pairs: Sequence[tuple[str, str]], extra: str = "") -> bytes:
    """Return pairs as JSONL."""
    rows = [{"question": q, "answer": a, **({extra: str(n)} if extra else {})} for n, (q, a) in enumerate(pairs)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(separator: str) -> Callable[[Sequence[Mapping[str, str]]], bytes]:
    """Return what writes rows as a table."""

    def write(rows: Sequence[Mapping[str, str]]) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def as_parquet(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Write rows as Parquet."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


FORMS: dict[str, Callable[[Sequence[Mapping[str, str]]], bytes]] = {
    "csv": table(","),
    "tsv": table("\t"),
    "jsonl": lambda rows: "".join(json.dumps(row) + "\r\n" for row in rows).encode(),
    "json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode(),
    "parquet": as_parquet,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: bytes(pyarrow.Codec("zstd").compress(data, asbytes=True)),
}


def cluster(chance: random.Random, size: int) -> list[tuple[str, str]]:
    """Return pairs whose questions are mostly near-duplicates of one, with equal, near and other answers."""
    question = "".join(chance.choices(HAN, k=chance.randint(14, 60)))
    answers = ["".join(chance.choices(HAN, k=30)) for _ in range(2)]
    pairs = []
    for _ in range(size):
        at = chance.randrange(len(question))
        edited = chance.choice(
            [question, f"{question}？", f"{question[:3]} {question[3:]}", f"请{question}"]
            + [question[:at] + chance.choice(HAN) + question[at + 1 :]] * 3
        )
        answer = chance.choice(answers)
        pairs.append((edited, chance.choice([answer, answer, f"{answer}。", f"{answer}{chance.choice(HAN)}"])))
    return pairs


def clusters(seed: int, groups: int, most: int) -> list[tuple[str, str]]:
    """Return the pairs of several clusters, each once, in any order."""
    chance = random.Random(seed)
    pairs = list(dict.fromkeys(pair for _ in range(groups) for pair in cluster(chance, chance.randint(1, most))))
    chance.shuffle(pairs)
    return pairs


@thorough(40)
@given(st.integers(0, 10**6), st.lists(st.sampled_from([*FORMS]), min_size=1, max_size=4), st.data())
def test_files_their_forms_and_their_order_make_no_difference(seed: int, forms: list[str], data: st.DataObject) -> None:
    """The same rows in any order, in any number of files of any names, forms and packing give the same bytes."""
    chance = random.Random(seed)
    pairs = clusters(seed, 4, 5)
    pairs += [(f"{chance.choice(INSIDE[:-1])}问{n % 5}", f"答{chance.choice(INSIDE[:-1])}{n % 2}") for n in range(12)]
    every = [{"id": str(chance.randrange(50)), "question": q, "answer": a} for q, a in [*pairs, (ANCHOR, "b")]]
    every += chance.sample(every, 4)
    base = stage({"r.csv": table(",")(every)}, asked(ENOUGH))
    mixed = data.draw(st.permutations(every))
    inputs = {}
    for number, form in enumerate(forms):
        packing = data.draw(st.sampled_from([*PACKED]))
        part = mixed[number :: len(forms)]
        inputs[f"{chance.randrange(100)}-{number}.{form}{packing}"] = PACKED[packing](FORMS[form](part))
    other = stage(inputs, asked(ENOUGH, encoding="auto"), bits=chance.randrange(4))
    for name in ("train.jsonl", "eval.jsonl", "checks.jsonl"):
        assert other.files[name] == base.files[name], name
    same = ("read", "train", "eval", "duplicates", "rejected", "duplicates_by", "normalised")
    assert {name: other.report[name] for name in same} == {name: base.report[name] for name in same}


# The split


@thorough(25)
@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_adding_rows_never_moves_an_old_one(seed: int, share: float) -> None:
    """A question stays on its side whatever rows come or go, near-duplicates of it among them."""
    pairs = [*clusters(seed, 12, 4), (ANCHOR, "b")]
    few, all_of_them = (
        stage({"r.jsonl": records(part)}, asked(ENOUGH, eval_share=share)) for part in (pairs[len(pairs) // 2 :], pairs)
    )
    assert not few.questions("train") & all_of_them.questions("eval")
    assert not few.questions("eval") & all_of_them.questions("train")


@thorough(15)
@given(st.lists(st.floats(0, 0.95), min_size=2, max_size=4).map(sorted), st.integers(0, 10**6))
def test_a_larger_share_only_adds(shares: list[float], seed: int) -> None:
    """Raising the share never trains on a question that was held out, and the share is what was asked for."""
    pairs = [(f"问{seed}之{number}", str(number)) for number in range(400)] + [(ANCHOR, "b")]
    before: set[str] = set()
    for share in shares:
        made = stage({"r.jsonl": records(pairs)}, asked(eval_share=share))
        held = made.questions("eval")
        assert before <= held
        assert abs(len(held) / 400 - share) < 0.12
        before = held


@thorough(30)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=1, max_size=60), st.booleans())
def test_one_question_is_never_on_both_sides(values: list[tuple[int, ...]], near_too: bool) -> None:
    """A question with several answers, materials or system prompts, or as the first of several turns, has one side."""
    rows = [
        {
            "instruction": f"问{q}{' ' * a}",
            "input": ["", f"m{m}"][m % 2],
            "output": f"答{a}",
            "system": ["", "s"][s % 2],
            "history": [[f"问{s}", "答"]] if s > 4 else [],
        }
        for q, m, a, s in values
    ]
    rows.append({"instruction": ANCHOR, "output": "b"})
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made = stage({"r.jsonl": data}, asked(ENOUGH if near_too else (*ENOUGH, "near"), eval_share=0.5))

    def first(name: str) -> set[str]:
        return {
            row["instruction"]
            if "instruction" in row
            else next(said["content"] for said in row["messages"] if said["role"] == "user").partition("\n")[0]
            for row in made.rows(name)
        }

    assert first("train") and not first("train") & first("eval")


def alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Say whether two rows ask nearly the same."""
    return near.likeness(one[0], other[0]) >= near.THRESHOLD


def check_near(made: Made, inputs: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Check by all pairs that near-duplicates are where they must be; `inputs` are the pairs of each file, by line."""
    train, held = made.pairs("train"), made.pairs("eval")
    for row in held:
        assert not [other for other in train if alike(row, other)], row
    for side in (train, held):
        for one, other in itertools.combinations(side, 2):
            assert not (alike(one, other) and alike(one[::-1], other[::-1])), (one, other)
    notes = {(note["file"], note["line"]): note for note in made.rows("duplicates")}
    assert len(notes) == len(made.rows("duplicates"))
    for note in notes.values():
        gone, stays = inputs[note["file"]][note["line"] - 1], inputs[note["kept_file"]][note["kept_line"] - 1]
        assert note["kind"] in ("near", "across_split")
        if "likeness" in note:
            assert note["likeness"] == round(near.likeness(gone[0], stays[0]), 3) >= near.THRESHOLD
        else:
            assert gone[0] == stays[0] and note["kind"] == "across_split"
        if note["kind"] == "near":
            assert gone[1] == stays[1] or alike(gone[::-1], stays[::-1])
        last = note  # what stays then may have gone in its turn
        while (last["kept_file"], last["kept_line"]) in notes:
            before, last = last, notes[last["kept_file"], last["kept_line"]]
            assert before["kind"] != last["kind"]
        assert inputs[last["kept_file"]][last["kept_line"] - 1] in [*train, *held]


@thorough(60)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 3))
def test_near_duplicates_never_face_each_other(seed: int, share: float, bits: int) -> None:
    """No two rows kept ask nearly the same on two sides, or say it on one; what is left out is near one that stays."""
    pairs = [*clusters(seed, 7, 7), (ANCHOR, "b")]
    made = stage({"r.jsonl": records(pairs)}, asked(ENOUGH, eval_share=share), bits=bits)
    assert len(made.pairs("train", "eval")) + made.report["duplicates"] == len(pairs)
    check_near(made, {"r.jsonl": pairs})


@thorough(25)
@given(st.integers(0, 10**6))
def test_rows_near_to_those_given_to_evaluate_on_are_not_trained_on(seed: int) -> None:
    """Rows given to evaluate on stay, but for their own duplicates; of the others none asks nearly the same."""
    pairs = clusters(seed, 7, 7)
    held, rest = pairs[: len(pairs) // 3], [*pairs[len(pairs) // 3 :], (ANCHOR, "b")]
    made = stage({"r.jsonl": records(rest)}, asked(ENOUGH), held_out={"h.jsonl": records(held)})
    check_near(made, {"r.jsonl": rest, "h.jsonl": held})
    gone = [note for note in made.rows("duplicates") if note["file"] == "h.jsonl"]
    assert {note["kind"] for note in gone} <= {"near"} and {note["kept_file"] for note in gone} <= {"h.jsonl"}
    assert len(made.pairs("eval")) + len(gone) == len(held)


@pytest.mark.parametrize("given_file", [False, True])
def test_a_question_asked_in_a_hundred_ways_is_on_one_side(given_file: bool) -> None:
    """However many rows ask the same but for blanks and punctuation, with an answer each, they are on one side."""
    chance = random.Random(4)
    pairs = [
        ("".join(sign + chance.choice(["", " ", "，"]) for sign in "请问在门店可以退换货吗"), f"{number} 天")
        for number in range(120)
    ]
    pairs = list(dict(pairs).items())
    inputs, held = {"r.jsonl": records([*pairs[20:], (ANCHOR, "b")])}, {"h.jsonl": records(pairs[:20])}
    if not given_file:
        inputs, held = {"r.jsonl": records([*pairs, (ANCHOR, "b")])}, {}
    made = stage(inputs, asked(ENOUGH, eval_share=0.3), held_out=held)
    sides = [[pair for pair in made.pairs(name) if pair[0] != ANCHOR] for name in ("train", "eval")]
    assert [len(side) > 0 for side in sides] == [not given_file, given_file]


# The short way of plain rows and the long way of all others


PIECES = ["问", "a", "b", " ", "\n", "\t", "\r\n", "\r", "\xa0", "\u3000", "\ufeff", "\u200b", "\u2028", "\x85", "\x0b"]
PIECES += [
    "é",
    "e\u0301",
    "\u2000",
    "\x1c",
    "\x07",
    "\ufffd",
    "\udcff",
    "𠮷",
    "\u0301",
    "，",
    "1",
    "x" * 30,
    " " * 30,
    "",
]
PIECES += [
    "<b>",
    "</p>",
    "<br/>",
    "<",
    "&lt;",
    "&amp;",
    "&nbsp;",
    "&#12;",
    "&#13;",
    "&#0;",
    "&",
    "`",
    "```python\n1 +\n```",
]
PIECES += ["13812345678", "li@qq.com", "8.8.8.8", "![](x)", "\\", "/", '"']
FIELD = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


def both_ways(
    pairs: Sequence[tuple[str, str]],
    size: int | None = None,
    quoting: int = csv.QUOTE_ALL,
    end: str = "\n",
    **settings: Any,
) -> tuple[Made, Made]:
    """Process pairs in a table with a column that is not learnt, and with an empty one that is."""

    def written(third: str) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator=end, quoting=quoting).writerows([("question", "answer", third)])
        csv.writer(text, lineterminator=end, quoting=quoting).writerows([(*pair, "") for pair in pairs])
        return text.getvalue().encode(errors="surrogateescape")

    short, long = (stage({"r.csv": written(third)}, asked(**settings), size=size) for third in ("other", "input"))
    for name in ("train.jsonl", "eval.jsonl", "duplicates.jsonl", "conflicts.jsonl"):
        assert short.files[name] == long.files[name]
    refused = [[(row["line"], row["reason"], row["detail"]) for row in made.rows("rejected")] for made in (short, long)]
    assert refused[0] == refused[1]
    for name in ("read", "train", "eval", "reasons", "duplicates_by", "conflicts", "normalised", "personal_data"):
        assert short.report[name] == long.report[name], name
    return short, long


@thorough(300)
@given(
    st.lists(st.tuples(FIELD, FIELD), max_size=6),
    st.sampled_from(["", "", "Help.", " Help.\n", "a\u3000b", "<b>Help</b>", "e\u0301", "13812345678", "x" * 70]),
    st.sampled_from(["report", "mask", "drop", ""]),
    st.sampled_from([60, 100_000]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\n", "\r\n"]),
)
@example([("a\x1c", "b")], "", "report", 100_000, csv.QUOTE_MINIMAL, "\n")
@example([("\x0ba", "b"), ("a", "\rb\u3000"), (" a", " b")], "", "report", 100_000, csv.QUOTE_ALL, "\n")
@example([(" " * 70 + "a", "b")], "", "report", 60, csv.QUOTE_MINIMAL, "\n")
@example([("a", "b"), ("c&amp;", "d")], "Help.\n", "report", 100_000, csv.QUOTE_MINIMAL, "\r\n")
@example([("a\r\n", "\tb\n\nc"), ("\n\n\nd", 'e"\t"')], "", "", 100_000, csv.QUOTE_MINIMAL, "\n")
@example([("a ", "b"), ("c", "d\n"), (" e", "f")], "", "", 100_000, csv.QUOTE_MINIMAL, "\n")
@example([("x" * 70, "b"), ("a", "x" * 59), ("b", "x" * 60)], "", "", 60, csv.QUOTE_MINIMAL, "\n")
@example([("a\ufeff", "b"), ("a", "b"), ("c", "d"), ("c\ufeff", "d")], "", "", 100_000, csv.QUOTE_MINIMAL, "\n")
def test_the_short_way_is_the_long_way(
    pairs: list[tuple[str, str]], system: str, personal: str, max_chars: int, quoting: int, end: str
) -> None:
    """Rows that are only copied come out as if they were cleaned, and are rejected and counted as if they were."""
    given: dict[str, Any] = {"system": system, "max_chars": max_chars, "personal": personal or "report"}
    if not personal:
        given["off"] = FEWEST
    assume(max_chars > len(system) and not (system.isdigit() and personal == "drop"))  # else no row is left
    both_ways([*pairs, (ANCHOR, "b")], quoting=quoting, end=end, **given)


@pytest.mark.parametrize("off", [FEW, FEWEST])
@pytest.mark.parametrize("places", [("{0}a", "a{0}b"), ("a{0}", "é{0}问")])
def test_every_character_goes_the_short_way_as_the_long_one(places: tuple[str, str], off: Sequence[str]) -> None:
    """Each character of the basic plane, and some of the others, at either end of a text and inside it."""
    signs = [chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x1F300, 0x1FB00))]
    pairs = [(places[0].format(sign), places[1].format(sign)) for sign in signs]
    both_ways([*pairs, (ANCHOR, "b")], quoting=csv.QUOTE_MINIMAL, off=off)


@pytest.mark.parametrize("system", ["a\x07", "a\ufffd", "x" * 70])
def test_a_damaged_system_prompt_is_refused_either_way(system: str) -> None:
    """A system prompt that no row may hold is not written to plain rows either."""
    for third in ("other", "input"):
        data = f"question,answer,{third}\n{ANCHOR},b,\nc<b>,d,\n".encode()
        with pytest.raises(DataError):
            stage({"r.csv": data}, asked(system=system, max_chars=60))


@pytest.mark.parametrize("off", [FEW, FEWEST])
@pytest.mark.parametrize("mark", ["<b>x</b>", "a&amp;b", "```python\n1 +\n```", "\ufffd"])
def test_what_lies_behind_a_chunk_is_cleaned_like_the_rest(mark: str, off: Sequence[str]) -> None:
    """HTML, code and damage in the part of a row behind its chunk are found, though the chunk itself holds none."""
    pairs = [(ANCHOR, "b"), ("c", f"first line\n{mark}\nd"), ("e", "f")]
    whole, _ = both_ways(pairs, off=off)
    for size in (20, 30, 40, 50, 55, 60):
        short, _ = both_ways(pairs, size=size, off=off)
        assert short.comparable() == whole.comparable(), size


# What a row looks like


def test_blanks_are_those_of_python_and_two_marks() -> None:
    """What is taken off around a text is what str.strip() takes off, and the two marks that look like nothing."""
    assert set(rows.BLANKS) == {*SPACES, "\ufeff", "\u200b"}


TEXT = st.text(
    st.one_of(st.sampled_from("\r\n \u3000\xa0\u200b\ufeff\x85é\u0301`"), st.characters(exclude_characters="<&"))
)


@thorough(1000)
@given(TEXT)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    """A normalised text is in NFC, has line feeds and plain blanks, none of them around it, and stays as it is."""
    counts: Counter[str] = Counter()
    found = rows.normalise(text, counts)
    assert bool(counts) == (found != text)
    assert found == found.strip() == found.strip(rows.BLANKS) and unicodedata.is_normalized("NFC", found)
    assert "\r" not in found and "\u3000" not in found
    again: Counter[str] = Counter()
    assert rows.normalise(found, again) == found and not again
    assert found == tidied(text)


@thorough(80)
@given(st.lists(st.tuples(FIELD, st.one_of(FIELD, st.integers(0, 0x11FFFF).map("x&#{};y".format))), max_size=6))
@example([("a&#12;b", "c"), ("c", "d&#13;e"), ("f&#0;g", "h")])
def test_no_row_kept_holds_a_control_character(pairs: list[tuple[str, str]]) -> None:
    """Neither characters of the file nor those that HTML names bring damage or another line end into a row."""
    made, _ = both_ways([*pairs, (ANCHOR, "b")], personal="mask")
    for text in itertools.chain(*made.pairs("train", "eval")):
        assert not rows.CONTROL.search(text) and not {"\ufffd", "\r", "\u3000"} & set(text)
        assert text and text == text.strip(rows.BLANKS) and unicodedata.is_normalized("NFC", text)


SECRETS = [
    "13812345678",
    "+86 138-1234-5678",
    "１３８１２３４５６７８",
    "li.hua@qq.com",
    "8.8.8.8",
    "2001:4860:4860::8888",
]
SECRETS += [
    "11010519491231002X",
    "4111 1111 1111 1111",
    "6222021234567890128",
    "AKIAQ7F3XK2MVB5WD9TZ",
    "+1 415-555-2671",
]
SECRETS += ["sk-a1B2c3D4e5F6g7H8i9J0k1L2"]
ROLES = ("system", "user", "assistant", "user", "assistant")
MASKED = st.lists(
    st.one_of(st.sampled_from(SECRETS), st.sampled_from([*"abc问，。 \n-.:/@1", "&nbsp;", "<br>", "电话", "v", "x"])),
    min_size=1,
    max_size=8,
).map("".join)


@thorough(70)
@given(st.lists(st.tuples(MASKED, MASKED, MASKED, MASKED), min_size=1, max_size=5), st.sampled_from(["mask", "drop"]))
def test_no_row_kept_holds_personal_data(values: list[tuple[str, ...]], action: str) -> None:
    """With personal data masked or refused none is found in any text of a row kept, at whatever place it stood."""
    one = [{"question": q, "answer": a, "input": i, "system": s} for q, a, i, s in values]
    two = [
        {"messages": [{"role": r, "content": c} for r, c in zip(ROLES, (s, q, a, i, q), strict=True)]}
        for q, a, i, s in values
    ]
    for data in (
        one,
        [{**row, "history": [[a, i], [s, q]]} for row, (q, a, i, s) in zip(one, values, strict=True)],
        two,
    ):
        shape = {"messages": [{"role": "user", "content": ANCHOR}, {"role": "assistant", "content": "b"}]}
        data = [*data, shape if "messages" in data[0] else {"question": ANCHOR, "answer": "b"}]
        made = stage({"r.jsonl": "".join(json.dumps(row) + "\n" for row in data).encode()}, asked(personal=action))
        for row in [*made.rows("train"), *made.rows("eval")]:
            texts = [said["content"] for said in row["messages"]] if "messages" in row else row.values()
            assert not any(personal.find(text) for text in texts)
