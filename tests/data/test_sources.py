"""Sources: which files are found, what they are taken for, and the plain form that each is brought to."""

from __future__ import annotations

import codecs
import csv
import datetime
import gzip
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow
import pyarrow.parquet
import pytest

from temper.data import sources
from temper.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"question": "几天内可以退货？", "answer": "二十一天，\n“原包装”"},
    {"question": "How long is the warranty?", "answer": 'two years, "parts" too'},
    {"question": "保修多久？", "answer": "两年"},
]
UTF8 = "utf-8"


def table(separator: str = ",") -> str:
    """Return ROWS as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


TEXTS = {
    "csv": table(),
    "tsv": table("\t"),
    "json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "ndjson": "".join(json.dumps(row) + "\r\n" for row in ROWS),
}


def zstd(data: bytes) -> bytes:
    """Compress data as one zstd frame."""
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


PACKED = {"": ("", bytes), ".gz": ("gzip", gzip.compress), ".ZST": ("zstd", zstd), ".zstd": ("zstd", zstd)}
MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def xlsx(*sheets: dict[int, Sequence[str]]) -> bytes:
    """Return a workbook whose sheets hold, under each row's number, its cells: text, or XML that starts with <c."""

    def cell(value: str, at: str) -> str:
        value = value if value.startswith("<c") else f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return value.replace("<c", f'<c r="{at}"', 1)

    def row(number: int, values: Iterable[str]) -> str:
        cells = (cell(value, f"{'ABCDEFG'[i]}{number}") for i, value in enumerate(values) if value)
        return f'<row r="{number}">{"".join(cells)}</row>'

    numbers = range(1, len(sheets) + 1)
    listed = "".join(f'<sheet name="s{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
    links = [("r0", "styles", "styles.xml"), *((f"r{n}", "worksheet", f"sheet{n}.xml") for n in numbers)]
    related = "".join(f'<Relationship Id="{a}" Type="{LINKS}/{b}" Target="{c}"/>' for a, b, c in links)
    styles = "".join(f'<xf numFmtId="{n}"/>' for n in (0, 14, 22))  # plain, a date, a date with its time
    office = f'<Relationship Id="r" Type="{LINKS}/officeDocument" Target="xl/workbook.xml"/>'
    parts = {
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{office}</Relationships>',
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{LINKS}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{related}</Relationships>',
        "xl/styles.xml": f"<styleSheet {MAIN}><cellXfs>{styles}</cellXfs></styleSheet>",
    }
    for n, rows in zip(numbers, sheets, strict=True):
        cells = "".join(row(*item) for item in rows.items())
        parts[f"xl/sheet{n}.xml"] = f"<worksheet {MAIN}><sheetData>{cells}</sheetData></worksheet>"
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return book.getvalue()


def parquet(columns: Any) -> bytes:
    """Return these columns as a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), file)
    return file.getvalue()


def prepared(folder: Path, name: str, content: str | bytes, encoding: str = "auto") -> sources.Source:
    """Write a file of this content and prepare it; the spool holds what is read, and nothing else."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    before = set(spool.iterdir())
    source = sources.prepare(name, folder / name, spool, encoding)
    assert set(spool.iterdir()) - before <= {source.plain}
    return source


def lines(source: sources.Source) -> list[bytes]:
    """Return the lines to be read."""
    return source.plain.read_bytes()[source.start :].split(b"\n")


def read(source: sources.Source) -> list[Any]:
    """Return the rows of a source as a plain reader gives them."""
    if source.form == "jsonl":
        return [json.loads(line) for line in lines(source) if line.strip()]
    text = io.StringIO(source.plain.read_bytes()[source.start :].decode(), newline="")
    return list(csv.DictReader(text, delimiter="\t" if source.form == "tsv" else ","))


def refusal(folder: Path, name: str, content: str | bytes, encoding: str = "auto") -> str:
    """Return the one line with which a file is refused; it names the file."""
    with pytest.raises(DataError) as refused:
        prepared(folder, name, content, encoding)
    text = str(refused.value)
    assert text.startswith(f"{folder / name}: ")
    assert "\n" not in text
    return text.removeprefix(f"{folder / name}: ")


# What comes out


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("utf-8", "utf-8"), ("utf-8-sig", "utf-8 with byte order mark"), ("gb18030", "gb18030"), ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"),
    ],
)  # fmt: skip
def test_every_text_gives_the_same_rows(tmp_path: Path, kind: str, packing: str, codec: str, said: str) -> None:
    """Each kind, compression and encoding is recognised without being told and gives the same rows."""
    if kind == "ndjson" and codec == "gb18030":
        said = "utf-8"  # it is all ASCII
    source = prepared(tmp_path, f"数据 1.{kind}{packing}", PACKED[packing][1](TEXTS[kind].encode(codec)))
    assert read(source) == ROWS
    assert (source.compression, source.encoding) == (PACKED[packing][0], said)
    assert source.kind == kind.removeprefix("nd").replace("json", "jsonl" if kind == "ndjson" else "json", 1)
    assert source.form == (kind if kind in ("csv", "tsv") else "jsonl")
    if said.startswith("utf-8") and not packing and kind != "json":
        assert source.plain == source.path
        assert source.start == (3 if codec == "utf-8-sig" else 0)


@pytest.mark.parametrize("packing", PACKED)
def test_tables_that_are_no_text_give_the_same_rows(tmp_path: Path, packing: str) -> None:
    """Workbooks and Parquet files give the same rows, compressed again or not."""
    sheet = {1: list(ROWS[0]), **{n: list(row.values()) for n, row in enumerate(ROWS, 2)}}
    for kind, content in (("xlsx", xlsx(sheet)), ("parquet", parquet(pyarrow.Table.from_pylist(ROWS)))):
        source = prepared(tmp_path, f"r.{kind}{packing}", PACKED[packing][1](content))
        assert read(source) == ROWS
        assert (source.kind, source.form, source.encoding, source.start) == (kind, "jsonl", "", 0)


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    """A conversion holds nothing of the time or the place."""
    book, again = (prepared(tmp_path, f"{n}.xlsx", xlsx({1: ["a"], 2: ["b"]})) for n in (1, 2))
    assert book.plain != again.plain
    assert book.plain.read_bytes() == again.plain.read_bytes() == b'\n{"a":"b"}\n'


def test_sources_do_not_meet_in_the_spool(tmp_path: Path) -> None:
    """Files of one name in two folders are converted side by side."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.json").write_text(json.dumps([{"question": folder}]))
    found = sources.find([tmp_path / "a" / "rows.json", tmp_path / "b" / "rows.json"])
    assert [name for name, _ in found] == ["a/rows.json", "b/rows.json"]
    (tmp_path / "spool").mkdir()
    made = [sources.prepare(name, path, tmp_path / "spool") for name, path in found]
    assert [read(source) for source in made] == [[{"question": "a"}], [{"question": "b"}]]


# Encodings


def test_gbk_after_megabytes_of_ascii_is_seen(tmp_path: Path) -> None:
    """The first text beyond ASCII decides, wherever it is."""
    rows = "question,answer\n" + "what?,that\n" * 300_000
    for codec, said in (("gbk", "gb18030"), (UTF8, UTF8), ("ascii", UTF8)):
        source = prepared(tmp_path, "r.csv", rows.encode() + "几天？,两年\n".encode(codec, "ignore"))
        assert source.encoding == said
        assert source.plain.read_bytes() == (rows + "几天？,两年\n").encode(
            "ascii" if codec == "ascii" else UTF8, "ignore"
        )


@pytest.mark.parametrize("codec", ["utf-8", "gb18030"])
@pytest.mark.parametrize("before", range(4))
def test_a_character_cut_by_a_window_is_no_error(
    tmp_path: Path, codec: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and blocks that end in the middle of a character change nothing."""
    monkeypatch.setattr(sources, "ENOUGH", 10**9)
    monkeypatch.setattr(sources, "WINDOW", 1001)
    monkeypatch.setattr(sources, "BLOCK", 997)
    text = "a" * before + "几天内可以退货？😀" * 1000
    (tmp_path / "r").write_bytes(text.encode(codec))
    good, _, bad, first = sources._seen(tmp_path / "r", codec)
    assert (good, bad, first) == (9000, 0, -1)
    assert prepared(tmp_path, "r.csv", text.encode(codec)).plain.read_bytes() == text.encode()


def test_single_bad_bytes_do_not_change_the_encoding(tmp_path: Path) -> None:
    """A damaged row of UTF-8 stays as it is; one of GB18030 or UTF-16 becomes no UTF-8, and no other row does."""
    bad = (table() * 4).encode() + b"a,\xff\xfe\nb,c\n"
    assert prepared(tmp_path, "r.csv", bad).plain == tmp_path / "r.csv"
    assert prepared(tmp_path, "r.csv", b"\xe9,b\n" + table().encode()).encoding == UTF8
    broken = {"gb18030": b"a,\xd6\n", "utf-16-le": b"a\0,\0\0\xd8\n\0"}
    for codec, row in broken.items():
        source = prepared(tmp_path, "r.csv", (table() * 4).encode(codec) + row + "b,年\n".encode(codec))
        before, wrong, after = source.plain.read_bytes().rsplit(b"\n", 3)[:3]
        assert before.decode() == (table() * 4).rstrip("\n")
        assert after == "b,年".encode()
        with pytest.raises(UnicodeDecodeError):
            wrong.decode()


def test_bad_bytes_never_become_characters(tmp_path: Path) -> None:
    """Bytes that an encoding lacks are not UTF-8 afterwards, even where together they were."""
    source = prepared(tmp_path, "r.csv", b"a,\xc3\xa9\nb,c\n", "ascii")
    with pytest.raises(UnicodeDecodeError):
        lines(source)[0].decode()
    assert lines(source)[1] == b"b,c"


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("big5", "請問這個產品的保固期是多久？退貨需要什麼條件，運費由誰負擔？"),
        ("latin-1", "é,è\nélève,café crème\n"),
        ("shift-jis", "製品の保証期間はどのくらいですか？"),
        ("cp1251", "Сколько дней можно вернуть товар?"),
    ],
)
def test_other_encodings_are_not_taken_for_chinese(tmp_path: Path, codec: str, text: str) -> None:
    """What is neither UTF-8 nor GB18030 is refused with its first byte, and read when its encoding is named."""
    at = len(text) - len(text.lstrip("aA"))
    byte = text.encode(codec)[at]
    assert refusal(tmp_path, "r.csv", text.encode(codec)) == (
        f"byte {at} (0x{byte:02x}) is neither UTF-8 nor GB18030; "
        "save it as UTF-8, or name its encoding with data.encoding (--encoding)"
    )
    source = prepared(tmp_path, "r.csv", text.encode(codec), codec)
    assert source.plain.read_bytes().decode() == text
    assert source.encoding == codec


def test_traditional_chinese_in_gbk_is_read(tmp_path: Path) -> None:
    """Characters that GB2312 lacks do not make a file foreign."""
    text = "問,答\n請問這個產品的保固期是多久？,我們會在三個工作天內處理您的申請，並寄送電子郵件通知。\n"
    assert prepared(tmp_path, "r.csv", text.encode("gbk")).plain.read_bytes().decode() == text


@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8-sig", "UTF8"), ("utf-8-sig", "utf-8-sig"), ("gbk", "GBK"), ("utf-16", "utf-16"), ("hz", "hz"),
        ("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"), ("utf-32", "utf-32"), ("utf-32-le", "utf-32"),
    ],
)  # fmt: skip
def test_a_named_encoding_is_used(tmp_path: Path, codec: str, encoding: str) -> None:
    """What is named is not guessed, and is called as it was."""
    source = prepared(tmp_path, "r.csv", TEXTS["csv"].replace("“", "").replace("”", "").encode(codec), encoding)
    assert [row["answer"] for row in read(source)] == ["二十一天，\n原包装", ROWS[1]["answer"], "两年"]
    assert source.encoding == encoding


def test_a_byte_order_mark_never_gets_into_a_column_name(tmp_path: Path) -> None:
    """A mark that the codec itself leaves in the text is skipped or taken off."""
    for codec in (UTF8, "utf-16-le", "gb18030"):
        assert read(prepared(tmp_path, "r.csv", ("\ufeff" + table()).encode(codec), codec)) == ROWS


@pytest.mark.parametrize("encoding", ["klingon", "base64", "", "undefined", "a\0b"])
@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    """An encoding that does not exist, or is none for text, is named with two that are."""
    assert refusal(tmp_path, name, "a", encoding) == f"unknown encoding {encoding!r}; use utf-8 or gb18030"


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        (b"", "auto", "the file is empty; give a file with a header line and rows"),
        (b" \r\n\n", "auto", "the file is empty; "),
        (codecs.BOM_UTF8 + b"\n", "auto", "the file is empty; "),
        (codecs.BOM_UTF16_LE, "auto", "the file is empty; "),
        (table().encode("utf-32"), "auto", "the file is in UTF-32; save it as UTF-8"),
        (table().encode("utf-16"), UTF8, "holds NUL characters, so it is no text file; it looks like UTF-16; "),
        (b"question,answer\na\0b,c\n", "auto", "holds NUL characters, so it is no text file; save it as UTF-8 text"),
        (bytes(range(256)) * 9, "auto", "holds NUL characters, so it is no text file; "),
        (table().encode(), "idna", "cannot be read as idna; use utf-8 or gb18030"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, encoding: str, said: str) -> None:
    """Empty and binary files are one line with the remedy each, compressed or not."""
    assert refusal(tmp_path, "r.csv", content, encoding).startswith(said)
    assert refusal(tmp_path, "r.csv.gz", gzip.compress(content), encoding).startswith(said)


# Compression


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_damaged_archives_are_refused(tmp_path: Path, packing: str) -> None:
    """Cut, altered, lengthened and mistaken archives are refused; archives written one after the other are read."""
    text = "".join(f"{n},{random.Random(n).random()}\n" for n in range(30_000)).encode()
    packed = PACKED[packing.replace("zst", "ZST")][1](text)
    kind = {".gz": "gzip", ".zst": "zstd"}[packing]
    for content in (packed[:-5], packed[: len(packed) // 2], packed + b"something", text):
        said = refusal(tmp_path, f"r.csv{packing}", content)
        assert said.startswith(f"the {kind} file is damaged after ")
        assert said.endswith(" bytes of text; copy it again from its source")
    source = prepared(tmp_path, f"r.csv{packing}", packed + packed)
    assert source.plain.read_bytes() == text + text
    if packing == ".gz":  # its checksum
        assert "damaged" in refusal(tmp_path, "r.csv.gz", packed[:-6] + b"\0\0" + packed[-4:])


PEAK = """
import sys
from pathlib import Path
import pyarrow
from temper.data import sources
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
source = sources.prepare("r", Path(sys.argv[1]), Path(sys.argv[2]))
assert source.encoding == "gb18030", source
print(source.plain.stat().st_size, peak() - before)
"""


def test_a_long_line_is_never_held_as_a_whole(tmp_path: Path) -> None:
    """Unpacking and recoding 60 MB of GBK in one line takes less memory than that line."""
    with gzip.open(tmp_path / "r.csv.gz", "wb", 1) as file:
        for _ in range(60):
            file.write("退货".encode("gbk") * (1 << 18))
    command = [sys.executable, "-c", PEAK, tmp_path / "r.csv.gz", tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, peak = map(int, done.stdout.split())
    assert size == 90 << 20
    assert peak < 50 << 10  # KiB


# JSON


def test_json_items_stay_as_they_are_written(tmp_path: Path) -> None:
    """Order, repeated keys, long numbers, floats and halves of characters pass through, each item on its own line."""
    items = [
        '{"b": 1.50,\n "a": 1e400}',
        '{"a": 1, "a": 2}',
        "9" * 5000,
        r'{"a": "\ud83d"}',
        "[1, NaN]",
        "null",
        '"年"',
    ]
    source = prepared(tmp_path, "r.json", f"[{', '.join(items)}]\n")
    assert lines(source) == [item.replace("\n", "\t").encode() for item in items] + [b""]


def test_a_line_end_inside_text_spoils_that_item_alone(tmp_path: Path) -> None:
    """A raw line end in a string is no JSON: the item stays on its line and does not become valid."""
    source = prepared(tmp_path, "r.json", '[{"a": "b\nc"}, {"a": "d"}]')
    assert lines(source) == [b'{"a": "b\tc"}', b'{"a": "d"}', b""]
    with pytest.raises(ValueError, match="Invalid control character"):
        json.loads(lines(source)[0])


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"version": "1", "data": [{"a": 1}, {"a": 2}], "tags": ["x"]}', ['{"a": 1}', '{"a": 2}']),
        ('{"data": [\n\n {"a": 1}\n]}\n', ['{"a": 1}']),
        ('{"": [{"a": 1}]}', ['{"a": 1}']),
        ('{"question": "a", "answer": "b"}', ['{"question": "a", "answer": "b"}']),
        ('{\n"a": 1}\n{\n"a": 2}\n', ['{\t"a": 1}', '{\t"a": 2}']),
        ('{"messages": [{"role": "user"}]}', ['{"messages": [{"role": "user"}]}']),
        ("[]", []),
        ("{}", ["{}"]),
    ],
)
def test_an_object_holds_the_rows_or_is_one(tmp_path: Path, content: str, rows: list[str]) -> None:
    """The only list of objects is taken; without one each object is a row, and so is a conversation."""
    source = prepared(tmp_path, "r.json", content)
    assert lines(source) == [row.encode() for row in [*rows, ""]]
    assert source.kind == "json"


def test_jsonl_under_the_name_of_json_is_read_where_it_lies(tmp_path: Path) -> None:
    """One object per line keeps its line numbers, and its broken lines are left to the reader."""
    content = '\n{"a": 1}\n\n{"a":\n{"messages": [{"role": "user"}]}\n'
    source = prepared(tmp_path, "r.json", content)
    assert (source.plain, source.kind, source.form) == (tmp_path / "r.json", "jsonl", "jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1,\n{]", "not valid JSON in line 2, item 2: Expecting property name enclosed in double quotes; "),
        ("[1, 2", "not valid JSON in line 1, item 3: ',' or ']' is missing at the end of the file; "),
        ('[{"a": 1}\n{"a": 2}]', "not valid JSON in line 2, item 2: ',' or ']' is missing before '{'; "),
        ('[{"a": "b}]', "not valid JSON in line 1, item 1: Unterminated string; "),
        ("[1,]", "not valid JSON in line 1, item 2: Expecting value; "),
        ("[1] 2", "not valid JSON in line 1, item 2: something follows its end; "),
        ('{"a" 1}', "not valid JSON in line 1, item 1: ':' is missing before '1'; "),
        ("{a: 1}", "not valid JSON in line 1, item 1: a name in quotes is missing; "),
        ('{"a": 1}, {"a": 2}', "not valid JSON in line 1, item 2: Expecting value; "),
        ("question,answer\n", "not valid JSON in line 1, item 1: '{' is missing before 'q'; "),
        ("[1, " + "[" * 100_000, "not valid JSON in line 1, item 2: it is nested too deeply; "),
        ('{"a": [{}], "b": [{}]}', "holds several lists, 'a' and 'b'; keep one list of rows in a file"),
    ],
)  # fmt: skip
def test_broken_json_is_refused_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    """A file that is no JSON says in which line and item, and what to do."""
    assert refusal(tmp_path, "r.json", content).startswith(said)


def test_an_endless_item_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that is never closed does not take the rest of the file into memory."""
    monkeypatch.setattr(sources, "HEAD", 100)
    monkeypatch.setattr(sources, "LONGEST", 1000)
    said = refusal(tmp_path, "r.json", '[1, "' + "a" * 10_000)
    assert said.startswith("not valid JSON in line 1, item 2: it is longer than 1000 characters; ")


def value(chance: random.Random, depth: int = 0) -> Any:
    """Return a random JSON value."""
    kind = chance.randrange(8 if depth < 3 else 5)
    if kind < 3:
        return chance.choice(["", "年", 'a"b\\', "[{,]}:", "\ud83d", " " * 30, 0, -1.5e-7, 12345678, True, None])
    if kind < 5:
        return chance.random()
    inside = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return inside if kind == 5 else {f"k{n}": item for n, item in enumerate(inside)}


def test_json_is_the_same_wherever_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random lists, read in blocks of a few characters, give the items that Python's own reader gives."""
    for seed in range(150):
        chance = random.Random(seed)
        items = [value(chance) for _ in range(chance.randrange(8))]
        monkeypatch.setattr(sources, "HEAD", chance.choice([1, 2, 3, 7, 50]))
        text = json.dumps(items, indent=chance.choice([None, 0, 30]), separators=chance.choice([None, (",", ":")]))
        if named := bool(items) and isinstance(items[0], dict):
            text = f'{{"n": 1, "data" : {text} , "end": "x"}}'
        (tmp_path / "r.json").write_text(text, encoding=UTF8)
        found = list(sources._json(tmp_path / "r.json", tmp_path / "r.json"))
        assert [json.loads(line) for line in found] == items, (seed, named)


# Workbooks


def test_rows_of_a_sheet_keep_their_numbers_and_values(tmp_path: Path) -> None:
    """Line n is row n; whole numbers, dates, formulas, errors and empty cells become what a reader expects."""
    number = '<c s="{}"><v>{}</v></c>'.format
    sheet = {
        2: ["question", " answer", "", number(0, 7)],
        3: ["a\nb", number(0, "3.0"), "left out", number(0, 0.25)],
        5: [number(1, 45000), number(2, 45000.5), "", '<c t="b"><v>1</v></c>'],
        6: ['<c t="e"><v>#N/A</v></c>', '<c t="str"><f>A1</f><v>年</v></c>', "", number(0, 123456789012)],
    }
    source = prepared(tmp_path, "r.xlsx", xlsx({}, {1: ["notes"]}, sheet))
    assert [json.loads(line) if line else None for line in lines(source)] == [
        None,
        None,
        {"question": "a\nb", "answer": 3, "7": 0.25},
        None,
        {"question": "2023-03-15", "answer": "2023-03-15T12:00:00", "7": True},
        {"question": None, "answer": "年", "7": 123456789012},
        None,
    ]
    assert b'"answer":3,' in source.plain.read_bytes()


def test_workbooks_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Repeated columns, no rows, damage, and what is no workbook at all are one line each."""
    twice = xlsx({1: ["question", " question"], 2: ["a"]})
    said = "the column 'question' comes twice; give each column a name of its own"
    assert refusal(tmp_path, "r.xlsx", twice) == said
    for empty in (xlsx({}), xlsx(), xlsx({1: ["question", "answer"]})):
        assert refusal(tmp_path, "r.xlsx", empty).startswith("no sheet has a header and rows; ")
    assert refusal(tmp_path, "r.xlsx", b"").startswith("the file is empty; ")
    for content in (twice[:-40], twice[:300], b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), table()):
        said = refusal(tmp_path, "r.xlsx", content)
        assert said.startswith("cannot be read as .xlsx (")
        assert said.endswith("); save it again in a spreadsheet program, without a password")


# Parquet


def test_parquet_values_become_json(tmp_path: Path) -> None:
    """Conversations, times, decimals and missing values become what a reader expects; bytes are text or nothing."""
    said = [{"role": "user", "content": "你好"}]
    columns = {
        "messages": [said, None],
        "at": pyarrow.array([datetime.datetime(2024, 1, 2, 3, 4, 5), None], pyarrow.timestamp("us")),
        "zone": pyarrow.array([1700000000, None], pyarrow.timestamp("s", "Asia/Shanghai")),
        "day": [datetime.date(2024, 1, 2), None],
        "price": [Decimal("1.50"), None],
        "share": [0.5, float("nan")],
        "raw": ["年".encode(), b"\xff"],
        "took": pyarrow.array([90, None], pyarrow.duration("s")),
    }
    source = prepared(tmp_path, "r.parquet", parquet(columns))
    first, second = read(source)
    assert first == {
        "messages": said, "at": "2024-01-02T03:04:05", "zone": "2023-11-15T06:13:20+08:00", "day": "2024-01-02",
        "price": "1.50", "share": 0.5, "raw": "年", "took": "0:01:30",
    }  # fmt: skip
    assert second == dict.fromkeys(columns)


def test_a_parquet_row_that_is_no_text_spoils_that_row_alone(tmp_path: Path) -> None:
    """Line n is row n, also beside a row whose text is not UTF-8, and across batches."""
    ends, text = b"".join(n.to_bytes(4, "little") for n in range(4)), b"a\xffc"
    broken = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(ends), pyarrow.py_buffer(text))
    source = prepared(tmp_path, "r.parquet", parquet({"q": broken}))
    assert lines(source) == [b'{"q":"a"}', b"\xff", b'{"q":"c"}', b""]
    many = prepared(tmp_path, "m.parquet", parquet({"q": list(range(2500))}))
    assert [row["q"] for row in read(many)] == list(range(2500))


def test_parquet_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Cut, altered and mistaken files, and repeated columns, are one line each."""
    good = parquet({"question": ["几天"], "answer": ["两年"]})
    for content in (good[:-20], good[:4] + bytes(60) + good[64:], b"junk" * 9, table()):
        said = refusal(tmp_path, "r.parquet", content)
        assert said.startswith("cannot be read as Parquet (")
        assert said.endswith("); copy it again from its source")
    twice = parquet(pyarrow.table([["a"], ["b"]], names=["q", "q"]))
    assert refusal(tmp_path, "r.parquet", twice) == "the column 'q' comes twice; give each column a name of its own"


# Finding


def test_a_folder_gives_its_known_files_in_order(tmp_path: Path) -> None:
    """Folders are searched, links to folders too; hidden files, READMEs and unknown kinds are passed over."""
    files = ["b.csv", "数据 1/a b.JSONL", "数据 1/c.csv.gz", "a/x.parquet", "a.xlsx", ".hidden.csv", ".git/x.csv"]
    for name in [*files, "README.json", "a/readme.csv", "a/x.txt", "a/y.gz", "elsewhere/z.csv"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "in" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    found = sources.find([tmp_path / "in"])
    assert [name for name, _ in found] == [
        "a.xlsx", "a/x.parquet", "b.csv", "link/z.csv", "数据 1/a b.JSONL", "数据 1/c.csv.gz"
    ]  # fmt: skip
    assert all(path == tmp_path / "in" / name for name, path in found)
    assert sources.find([]) == []


def test_every_file_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is given, lies in a folder given and has a link to it is one; names start at the common folder."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/deep/rows.csv", "other.csv"):
        (tmp_path / name).write_text("a,b\n")
    (tmp_path / "in" / "same.csv").symlink_to("deep/rows.csv")
    monkeypatch.chdir(tmp_path)
    alone = Path("in/deep/rows.csv")
    assert sources.find([alone]) == [("rows.csv", alone)]
    assert sources.find([alone, tmp_path / alone]) == [("rows.csv", tmp_path / alone)]
    given = [tmp_path / "in", tmp_path / alone, tmp_path / "other.csv", tmp_path / "in" / "deep"]
    assert [name for name, _ in sources.find(given)] == ["in/deep/rows.csv", "other.csv"]


def test_what_cannot_be_found_is_refused(tmp_path: Path) -> None:
    """A missing file, a dangling link, an unknown kind and a folder without rows say what would do."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("a")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "rows.csv").symlink_to("nowhere")
    missing = "no such file; give a CSV, TSV, XLSX, JSON, JSONL or Parquet file, or a folder of them"
    known = ".csv, .tsv, .xlsx, .json, .jsonl, .ndjson, .parquet, also with .gz, .zst, .zstd"
    for given, path, said in (
        ("none.csv", "none.csv", missing),
        ("links", "links/rows.csv", missing),
        ("in/notes.txt", "in/notes.txt", f"unknown kind of file '.txt'; save it as one of {known}"),
        ("in", "in", f"no file here that can be read; put in files that end in one of {known}"),
    ):
        with pytest.raises(DataError) as refused:
            sources.find([tmp_path / given])
        assert str(refused.value) == f"{tmp_path / path}: {said}"
    with pytest.raises(DataError, match="no such file"):
        sources.prepare("x", tmp_path / "none.csv", tmp_path)
