"""Files that are damaged, hostile or huge: an account that adds up, or one line with a remedy and nothing left."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from temper.data import process, rows
from temper.data.options import STEPS, Options
from temper.errors import DataError

SCRIPTS = Path(process.__file__).resolve().parents[2]
OFF = frozenset({"tokens", "near", "report"})
ROWS = [{"id": str(n), "question": f"问题{n}？", "answer": f"答{n}\n第二行"} for n in range(8)]
PAIR = {"question": "kept", "answer": "b"}


class Fate(NamedTuple):
    """What the stage made of a file: an account with the rows kept and rejected, or the line it was refused with."""

    said: str
    refused: bool
    kept: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def no_constant(name: str) -> None:
    """Refuse NaN and the like, which only Python takes for JSON."""
    raise AssertionError(f"{name} is no JSON")


def written(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, each of which is strict JSON in UTF-8 without halves of characters."""
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def fate(folder: Path, name: str, content: bytes, **given: Any) -> Fate:
    """Run the stage over a file of this content and check all that holds whatever the content is."""
    shutil.rmtree(folder)
    folder.mkdir()
    path, out = folder / name, folder / "out"
    path.write_bytes(content)
    given = {"workers": 1, "max_rejected": 1.0, "eval_share": 0.0, "steps": frozenset(STEPS) - OFF, **given}
    try:
        said = process.process([path], out, Options(**given))
    except DataError as error:
        text = str(error)
        assert "\n" not in text and "\r" not in text
        where = next(where for where in (f"{path}: ", f"{name}: ") if text.startswith(where))
        what, _, remedy = text.removeprefix(where).rpartition("; ")
        assert what and remedy
        there = {file.name for file in out.glob("*") if file.stat().st_size}
        assert there <= {"rejected.jsonl", *(["eval.jsonl", "checks.jsonl"] if "no row is left" in what else [])}
        assert path.read_bytes() == content
        return Fate(text.removeprefix(where), True, [], [])
    assert path.read_bytes() == content
    assert {file.name for file in folder.iterdir()} == {name, "out"}
    assert {file.name for file in out.iterdir()} <= FILES
    report = json.loads((out / "report.json").read_bytes(), parse_constant=no_constant)
    made = {file.stem: written(file) for file in out.glob("*.jsonl")}
    for kind in ("train", "eval", "duplicates", "rejected"):
        assert report[kind] == len(made[kind])
    assert report["read"] == sum(report[kind] for kind in ("train", "eval", "duplicates", "rejected"))
    for row in (*made["train"], *made["eval"]):
        for text in [said["content"] for said in row["messages"]] if "messages" in row else row.values():
            assert isinstance(text, str | dict | list) and not rows.CONTROL.search(str(text))
    return Fate(said, False, made["train"] + made["eval"], made["rejected"])


FILES = {f"{name}.jsonl" for name in ("train", "eval", "checks", "duplicates", "conflicts", "rejected")}
FILES |= {"dataset_info.json", "report.json"}


# Valid files to be damaged


def table(separator: str = ",") -> bytes:
    """Return ROWS as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def zstd(data: bytes) -> bytes:
    """Compress data as one zstd frame."""
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


def parquet() -> bytes:
    """Return ROWS as a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


def parts() -> dict[str, bytes]:
    """Return ROWS as the parts of a workbook."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    sheet = "".join(
        f'<row r="{n}">'
        + "".join(
            f'<c r="{"ABC"[at]}{n}" t="inlineStr"><is><t>{escape(text)}</t></is></c>' for at, text in enumerate(row)
        )
        + "</row>"
        for n, row in enumerate(cells, 1)
    )
    texts = {
        "_rels/.rels": f'<Relationships {package}><Relationship Id="r" Type="{links}/officeDocument"'
        ' Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{links}"><sheets>'
        '<sheet name="s" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships {package}><Relationship Id="r1" Type="{links}/worksheet"'
        ' Target="sheet.xml"/></Relationships>',
        "xl/sheet.xml": f"<worksheet {main}><sheetData>{sheet}</sheetData></worksheet>",
    }
    return {name: text.encode() for name, text in texts.items()}


def workbook(files: dict[str, bytes]) -> bytes:
    """Return the parts of a workbook as one."""
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return book.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
VALID = {
    "r.csv": table(),
    "r.tsv": table("\t"),
    "r.jsonl": LINES,
    "r.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "r.csv.gz": gzip.compress(table()),
    "r.jsonl.zst": zstd(LINES),
    "r.xlsx": workbook(parts()),
    "r.parquet": parquet(),
}


def pairs(fate: Fate) -> set[tuple[str, str]]:
    """Return question and answer of the rows kept."""
    return {(row["instruction"], row["output"]) for row in fate.kept}


WHOLE = {(row["question"], row["answer"]) for row in ROWS}


# Damage


@pytest.mark.parametrize("name", VALID)
def test_a_file_cut_off_anywhere(name: str, tmp_path: Path) -> None:
    """A file cut off at any byte is refused in one line; text loses what is gone and at most its last row."""
    content = VALID[name]
    assert pairs(fate(tmp_path, name, content)) == WHOLE
    for length in range(len(content)):
        found = fate(tmp_path, name, content[:length])
        if name.endswith(("csv", "tsv", "jsonl")):
            assert found.refused or len(pairs(found) - WHOLE) <= name.endswith("sv")
        else:
            assert found.refused, length


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return content with one to six places flipped, replaced, taken out, put in or repeated."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        kind, at, other = chance.randrange(5), chance.randrange(len(data)), chance.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2 and len(data) > 20:
            del data[at : at + chance.randint(1, 8)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        else:
            data[at:at] = data[other : other + chance.randint(1, 60)]
    return bytes(data)


@pytest.mark.parametrize("name", VALID)
def test_a_file_with_damaged_bytes(name: str, tmp_path: Path) -> None:
    """Of 100 damaged copies of each kind of file every one is read with an account that adds up, or refused."""
    chance = random.Random(f"{name} 3")
    for _ in range(100):
        fate(tmp_path, name, mutated(VALID[name], chance))


def test_a_workbook_with_damage_inside(tmp_path: Path) -> None:
    """So is a workbook whose parts are damaged behind a sound archive, and text behind a sound compression."""
    chance = random.Random(4)
    for _ in range(100):
        files = parts()
        name = chance.choice(list(files))
        fate(tmp_path, "r.xlsx", workbook({**files, name: mutated(files[name], chance)}))
        fate(tmp_path, "r.csv.gz", gzip.compress(mutated(VALID["r.csv"], chance), 1))


def noises(seed: int) -> list[bytes]:
    """Return random bytes of several lengths: any, none that is zero, and those of text and tables."""
    chance = random.Random(seed)
    any_bytes = [chance.randbytes(size) for size in (1, 2, 7, 64, 999, 40_000)]
    signs = "abc问题，。,\t\"'\n\r{}[]:0\\ue\u2028\x85".encode()
    return [*any_bytes, *(data.replace(b"\0", b"") for data in any_bytes), bytes(chance.choices(signs, k=3000))]


KINDS = ("csv", "tsv", "xlsx", "json", "jsonl", "ndjson", "parquet")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_under_any_name(kind: str, packing: str, tmp_path: Path) -> None:
    """Random bytes, also well compressed ones, are refused in one line, or read as rows that cannot be used."""
    packed: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packing]
    headers = {"csv": b"question,answer\n", "tsv": b"question\tanswer\n", "jsonl": LINES[:68], "json": b'[{"question":'}
    for noise in noises(5):
        fate(tmp_path, f"r.{kind}{packing}", packed(noise) or b"\n")
        if packing:
            assert fate(tmp_path, f"r.{kind}{packing}", noise).refused
        elif kind in headers:
            fate(tmp_path, f"r.{kind}", headers[kind] + noise, encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "gb18030", "hz", "latin-1", "auto"])
def test_any_bytes_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    """Whatever encoding is asked for, bytes that are none of it are damage in a row or one line, nothing else."""
    for noise in noises(6):
        for header in ("", "question,answer\na,b\n"):
            mark = header.encode(encoding if encoding != "auto" else "utf-16-le")
            fate(tmp_path, "r.csv", mark + noise, encoding=encoding)
            fate(tmp_path, "r.json", mark + noise, encoding=encoding)


# Odd but possible


def good(*lines: str, kind: str = "csv") -> bytes:
    """Return a table, or JSONL, of a good row and these lines."""
    first = ["question,answer,id", "kept,b,1"] if kind == "csv" else [json.dumps(PAIR)]
    return "\n".join([*first, *lines, ""]).encode(errors="surrogatepass")


DEEP = {depth: "[" * depth + "]" * depth for depth in (200, 300, 900, 990, 1010, 5000, 100_000)}
ROW = '{"question": %s, "answer": "b"}'
MORE = '{"question": "q", "answer": "b", "more": %s}'
LONG = "9" * 5000
CJK = "保修多久几天内可以退货" * 3
ODD: dict[str, tuple[str, bytes, str]] = {
    "quote in the last row": ("r.csv", good('"a,b,c'), "1 rejected"),
    "quote in the first row": ("r.csv", good('"a,b,c', "d,e,f", "g,h,i"), "3 to train on .* 1 rejected"),
    "quotes everywhere": ("r.csv", good('"a"b,c,d', 'a"b,"c"",d,e', '""",x,y', 'k,"l",m'), "rejected"),
    "quote in the header": ("r.csv", b'question,"answer\na,b\n', "no header line"),
    "a quote alone": ("r.csv", b'"', "no header line"),
    "NUL in the header": ("r.csv", b"question,ans\0wer\na,b\n", "NUL"),
    "NUL in a row": ("r.jsonl", good('{"question": "a\0", "answer": "b"}', kind="jsonl"), "NUL"),
    "NUL in JSON": ("r.jsonl", good(ROW % r'"a\u0000"', kind="jsonl"), "1 to train on .* 1 rejected"),
    "NUL behind the first megabyte": ("r.csv", good("a,b,c" * 300_000, "a\0,b,c"), "2 rejected"),
    "NUL in another column": ("r.csv", good("a,b,c" * 300_000, "d,e,\0\0"), "2 to train on"),
    "only NULs": ("r.csv", bytes(5000), "NUL"),
    "one line": ("r.csv", b"question,answer", "no row is left to train on"),
    "only line ends": ("r.csv", b"\r\n\r\r\n\n", "empty"),
    "only a mark": ("r.csv", b"\xef\xbb\xbf", "empty"),
    "half a mark": ("r.csv", b"\xef\xbb", ""),
    "a mark of UTF-16": ("r.csv", b"\xff\xfe", "empty|no header"),
    "one column": ("r.csv", b"question\na\n", "there is no"),
    "a hundred empty columns": ("r.csv", b"," * 100 + b"\n" + b"," * 100 + b"\n", "no header|there is no"),
    "names with line ends": ("r.csv", b'"a\nb","c\r\nd",e\n1,2,3\n', "the columns are: "),
    "names with line ends, two": ("r.csv", b'"a\nb","c\r\nd"\n1,2\n', "1 to train on"),
    "a damaged name": ("r.csv", f"q\udcff,a\n{CJK},b\n".encode(errors="surrogateescape"), ""),
    "a damaged other name": (
        "r.csv",
        f"question,answer,i\udcffd\n{CJK},b,1\n".encode(errors="surrogateescape"),
        "",
    ),
    "a damaged other column": (
        "r.csv",
        f"question,answer,id\n{CJK},b,\udcff\n".encode(errors="surrogateescape"),
        "1 to train on|encoding|damaged",
    ),
    "mixed line ends": ("r.csv", b"question,answer\ra,b\nc,d\r\ne,f\r\r\n\n\rg,h", "4 to train on"),
    "a line of a megabyte": ("r.csv", good(",".join(["x"] * 500_000)), "1 to train on .* 1 rejected"),
    "no object": ("r.jsonl", good("1", '"a"', "null", "true", "[]", "{}", kind="jsonl"), "1 to train on .* 6 rejected"),
    "an empty object": ("r.jsonl", b"{}\n", "no row is left|there is no|no readable"),
    "an empty object first": ("r.jsonl", b'{}\n{"question": "a", "answer": "b"}\n', "1 to train on .* 1 rejected"),
    "an empty list": ("r.json", b"[]", "no row is left|empty|there is no"),
    "empty objects": ("r.json", b"[{}, {}]", "no row is left|there is no|no readable"),
    "NaN in another field": ("r.jsonl", good(MORE % "NaN", kind="jsonl"), "2 to train on|1 rejected"),
    "Infinity in a list": ("r.jsonl", good(MORE % "[1, -Infinity, {}]", kind="jsonl"), "2 to train on|1 rejected"),
    "NaN for a question": ("r.jsonl", good(ROW % "NaN", kind="jsonl"), ""),
    "a number beyond all": ("r.jsonl", good(ROW % "1e999", MORE % "1e999", kind="jsonl"), ""),
    "a huge whole number": ("r.jsonl", good(ROW % LONG, MORE % LONG, kind="jsonl"), ""),
    "a large whole number": ("r.jsonl", good(ROW % 2**70, MORE % f"[{2**70}, NaN]", kind="jsonl"), ""),
    "numbers in JSON": ("r.json", f"[{json.dumps(PAIR)}, {MORE % LONG}, {MORE % 'NaN'}, {MORE % 2**70}]".encode(), ""),
    "keys twice": ("r.jsonl", good('{"question": "a", "question": "c", "answer": "b"}', kind="jsonl"), "2 to train on"),
    "half a character": ("r.jsonl", good(ROW % r'"\ud83d"', kind="jsonl"), "1 to train on .* 1 rejected"),
    "half a character elsewhere": ("r.jsonl", good(MORE % r'"\ud83d"', kind="jsonl"), "2 to train on|1 rejected"),
    "half a character in a name": ("r.jsonl", good(r'{"question": "q", "answer": "b", "\ud83d": 1}', kind="jsonl"), ""),
    "half a character in UTF-8": ("r.jsonl", good(ROW % '"\ud83d"', kind="jsonl"), "neither"),
    "half a character in JSON": ("r.json", f"[{json.dumps(PAIR)}, {MORE % json.dumps(chr(0xD83D))}]".encode(), ""),
    "a role that is a list": (
        "r.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        b'{"messages": [{"role": [], "content": "a"}, {"role": {"a": 1}, "content": "b"}]}\n',
        "1 to train on .* 1 rejected",
    ),
    "a first row of 5 MB": (
        "r.jsonl",
        (ROW % json.dumps("x" * (5 << 20)) + "\n").encode() + good(kind="jsonl"),
        "1 rej",
    ),
    "first rows that are no JSON": ("r.jsonl", (b"{'a': 1}" + b" " * 999 + b"\n") * 5000 + good(kind="jsonl"), ""),
    "a line of blanks": ("r.jsonl", good(" " * 10**6, "\t\r", kind="jsonl"), "1 rows"),
    **{f"{n} deep in a question": ("r.jsonl", good(ROW % deep, kind="jsonl"), "1 rej") for n, deep in DEEP.items()},
    **{f"{n} deep elsewhere": ("r.jsonl", good(MORE % deep, kind="jsonl"), "") for n, deep in DEEP.items()},
    **{f"{n} deep in JSON": ("r.json", f"[{json.dumps(PAIR)},{MORE % deep}]".encode(), "") for n, deep in DEEP.items()},
    **{f"{n} deep and alone": ("r.json", deep.encode(), "") for n, deep in DEEP.items()},
    "deep and open": ("r.jsonl", good("[" * 10**6, '{"a":' * 10**5, kind="jsonl"), "1 to train on .* 2 rejected"),
    "deep objects": ("r.json", b'[{"question":' + b'{"a":' * 20_000, "JSON"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files(case: str, tmp_path: Path) -> None:
    """Open quotes, NULs, nesting, numbers and characters that JSON takes but few readers do: rows or one line."""
    name, content, expected = ODD[case]
    assert re.search(expected, fate(tmp_path, name, content).said)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_hundred_thousand_empty_lines(end: str, tmp_path: Path) -> None:
    """Empty lines are no rows, and each counts where a row's line is told."""
    content = f"question,answer{end}a,b{end}{end * 100_000}bad{end}c,d{end}".encode()
    found = fate(tmp_path, "r.csv", content)
    assert found.said.startswith("3 rows = 2 to train on")
    assert [row["line"] for row in found.rejected] == [100_003]
    if end != "\r":
        found = fate(tmp_path, "r.jsonl", f"{json.dumps(PAIR)}{end}{end * 100_000}bad{end}".encode())
        assert [row["line"] for row in found.rejected] == [100_002]


NAMES = ["question", "answer", "instruction", "output", "input", "system", "history", "messages", "conversations"]
NAMES += ["chosen", "rejected", "prompt", "role", "from", "content", "value", "id"]
TEXTS = [
    "",
    "a",
    "user",
    "assistant",
    "system",
    "human",
    "[]",
    '[["a", "b"]]',
    '[{"role": "user", "content": "x"}]',
    "{",
]
TEXTS += ["\ud800", "\u2028", "```python\n1 +\n```", "```python\nx = 1\n```", "<b>", "&#0;", "\x00", "\x85", "kept"]
LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([*TEXTS, 2**64, -(2**63) - 1, 10**400])
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", ["user"]]), "content": LEAF}
)
VALUE = st.recursive(
    st.one_of(LEAF, st.lists(TURN, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)),
    max_leaves=8,
)
TURNS = [{"role": "user", "content": "kept"}, {"role": "assistant", "content": "b"}]
SHAPES: list[dict[str, Any]] = [
    PAIR,
    {"instruction": "kept", "output": "b"},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "kept"}, {"from": "gpt", "value": "b"}]},
    {"prompt": "kept", "chosen": "b", "rejected": "c"},
    {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "c"}]},
    {"messages": TURNS[:1], "chosen": TURNS[1], "rejected": "c"},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "c"}]},
]


EXTRA = ("history", "system", "input", "id")


@st.composite
def records(draw: st.DrawFn) -> list[Any]:
    """Return a good row of some shape and others with the same fields, or any, and any values."""
    shape = draw(st.sampled_from(SHAPES))
    extra = {name: VALUE for name in EXTRA if name not in shape}
    alike = st.fixed_dictionaries({name: VALUE for name in shape}, optional=extra)
    odd = st.one_of(VALUE, st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=6))
    return [shape, *draw(st.lists(st.one_of(alike, alike, odd), max_size=5))]


@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(records(), st.sampled_from(["jsonl", "json"]))
@example([{"messages": TURNS}, {"messages": [{"role": [], "content": "x"}]}], "jsonl")
@example([PAIR, {**PAIR, "id": "\ud800"}, {**PAIR, "id": 2**64}, {**PAIR, "id": float("nan")}], "jsonl")
def test_records_of_any_structure(tmp_path_factory: pytest.TempPathFactory, values: list[Any], kind: str) -> None:
    """Any JSON in the place of a text, a list or a message makes its row unusable, and nothing else."""
    text = json.dumps(values) if kind == "json" else "".join(json.dumps(value) + "\n" for value in values)
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    found = fate(folder, f"r.{kind}", text.encode())
    if all(isinstance(value, dict) and value.keys() <= {*values[0], *EXTRA} for value in values):
        assert not found.refused


# Huge


MEASURED = """
import sys
from pathlib import Path
from temper.data import process
from temper.data.options import STEPS, Options
from temper.errors import DataError
steps = frozenset(STEPS) - {"tokens"}
options = Options(workers=1, max_rejected=1.0, eval_share=0.0, max_chars=int(sys.argv[3]), steps=steps)
try:
    print(process.process([Path(sys.argv[1])], Path(sys.argv[2]), options))
except DataError as error:
    print(error)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # ru_maxrss knows the parent's too
"""
CELL = "保修多久 x" * (10 * 2**20 // 14)
MANY = ["question", "answer", *(f"column {n}" for n in range(10_000))]
HUGE: dict[str, tuple[str, Callable[[], str], int, str]] = {
    "a cell kept": ("r.csv", lambda: f'question,answer\na,b\n"{CELL}",b\n', 10**8, "2 to train on"),
    "a cell of lines": (
        "r.csv",
        lambda: 'question,answer\na,b\n"' + (CELL[:77] + "\n") * (len(CELL) // 77) + '",b\n',
        10**8,
        "2 to train on",
    ),
    "a cell refused": ("r.csv", lambda: f"question,answer,c\na,b,c\nd,{CELL},{CELL}\n", 10**5, "1 rejected"),
    "a cell of JSONL": (
        "r.jsonl",
        lambda: json.dumps({**PAIR, "answer": CELL}) + f"\n{json.dumps(PAIR)}\n",
        10**8,
        "2 to",
    ),
    "a cell of JSON": ("r.json", lambda: json.dumps([PAIR, {**PAIR, "question": CELL}]), 10**8, "2 to train on"),
    "an open quote before it": (
        "r.csv",
        lambda: f'question,answer\na,b\n"{CELL}\n' + "".join(f"c{n},d\n" for n in range(9999)),
        10**8,
        "1 rejected",
    ),
    "many short rows": (
        "r.csv",
        lambda: "question,answer\na,b\n" + "a few words, more\n" * 250_000,
        10**5,
        "2 to train",
    ),
    "columns of a table": (
        "r.csv",
        lambda: "".join(",".join(row) + "\n" for row in [MANY, *[[str(n)] * len(MANY) for n in range(100)]]),
        10**8,
        "100 to train on",
    ),
    "columns of JSONL": (
        "r.jsonl",
        lambda: "".join(json.dumps(dict.fromkeys(MANY, str(n))) + "\n" for n in range(50)),
        10**8,
        "50 to train on",
    ),
    "columns that do not fit": ("r.csv", lambda: f"{','.join(MANY[2:])}\n{','.join(MANY[2:])}\n", 10**8, "there is no"),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for the memory")
@pytest.mark.parametrize("case", HUGE)
def test_huge_cells_and_wide_tables_take_little_memory(case: str, tmp_path: Path) -> None:
    """A cell of 10 MB and a table of 10 000 columns are read in less than 400 MB."""
    name, content, most, expected = HUGE[case]
    (tmp_path / name).write_text(content(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / name, tmp_path / "out", str(most)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, size = done.stdout.split("\n")[:2]
    assert expected in said
    assert len(said) < 5000
    assert int(size) < 400 << 10, f"{size} kB"


# Killed


WORK = """
import sys
from pathlib import Path
from temper.data import process
from temper.data.options import STEPS, Options
steps = frozenset(STEPS) - {"tokens", "near", "report", "checks", "personal"}
process.process([Path(sys.argv[1])], Path(sys.argv[2]), Options(workers=2, steps=steps))
"""
ENV = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of 60 MB."""
    path, chance = tmp_path_factory.mktemp("large") / "r.csv", random.Random(1)
    texts = ["".join(chance.choices("保修多久几天内可以退货吗abcdefgh ", k=300)) for _ in range(200)]
    with open(path, "w", encoding="utf-8") as file:
        file.write("question,answer\n")
        file.writelines(f"{number} {texts[number % 199]},{texts[number % 198]}\n" for number in range(50_000))
    assert path.stat().st_size > 60 << 20
    return path


def at_work(path: Path, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run of two workers and return it once something is in its spool, with the workers' numbers."""
    run = subprocess.Popen([sys.executable, "-c", WORK, path, out], env=ENV, stderr=subprocess.PIPE, text=True)
    children, until = Path(f"/proc/{run.pid}/task/{run.pid}/children"), time.monotonic() + 60
    while not any(file.stat().st_size for file in out.rglob("*") if file.is_file()):
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.005)
    workers = list(map(int, children.read_text().split()))
    assert len(workers) == 2
    return run, workers


def alive(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_gone(workers: list[int]) -> None:
    """Check that no worker is left a second from now."""
    until = time.monotonic() + 1
    while any(map(alive, workers)):
        assert time.monotonic() < until
        time.sleep(0.01)


@NEEDS_PROC
def test_a_killed_run_leaves_no_process_and_can_be_repeated(large: Path, tmp_path: Path) -> None:
    """A run killed at work takes its workers along within a second, and the next one writes what it would have."""
    run, workers = at_work(large, tmp_path / "one")
    with run:
        run.send_signal(signal.SIGKILL)
    check_gone(workers)
    assert not (tmp_path / "one" / "report.json").exists()
    for out in ("one", "two"):
        subprocess.run([sys.executable, "-c", WORK, large, tmp_path / out], env=ENV, check=True)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / out).glob("*.json*")} for out in ("one", "two"))
    assert one.keys() >= {"train.jsonl", "eval.jsonl", "report.json"} and one == two


@NEEDS_PROC
def test_a_killed_worker_ends_the_run(large: Path, tmp_path: Path) -> None:
    """When a worker dies, as one does that takes too much memory, the run fails at once, and nobody waits for it."""
    run, workers = at_work(large, tmp_path / "out")
    os.kill(workers[0], signal.SIGKILL)
    with run:
        said = run.communicate(timeout=20)[1]
    assert run.returncode and "a worker process was killed, most likely for want of memory" in said
    check_gone(workers)
    assert {file.name for file in (tmp_path / "out").iterdir() if file.stat().st_size} <= {"rejected.jsonl"}
