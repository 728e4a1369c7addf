"""The data stage as a whole: what it reads, refuses, merges, holds out and writes, and that no row is lost."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from test_sources import parquet, xlsx

from temper.data import near, process
from temper.data.options import STEPS, Options
from temper.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {"instruction": "question", "output": "answer"}
PAIRS = [(f"question {number}", f"answer {number}") for number in range(40)]
TABLE = "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in PAIRS)
RECORDS = [{"question": question, "answer": answer} for question, answer in PAIRS]
CHINESE = "question,answer\n几天内可以退货？,二十一天\n保修多久？,两年\n"
RETURNS = "你们商城的商品签收以后，几天之内可以申请无理由退货呢"  # long enough to have near-duplicates
WRITTEN = {
    "train.jsonl", "eval.jsonl", "checks.jsonl", "rejected.jsonl", "duplicates.jsonl", "conflicts.jsonl",
    "dataset_info.json", "report.json", "report.html",
}  # fmt: skip
Made = dict[str, list[dict[str, Any]]]


def put(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files of these contents."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(out: Path) -> Made:
    """Return the rows of each file in the folder written; they are all accounted for, in the report too."""
    made = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in out.glob("*.jsonl")
    }
    counts = json.loads((out / "report.json").read_text(encoding="utf-8"))
    kept = {name: len(made[name]) for name in ("train", "eval", "duplicates", "rejected")}
    assert {name: counts[name] for name in kept} == kept
    assert sum(kept.values()) == counts["read"]
    assert sum(file["rows"] for file in counts["files"]) == counts["read"]
    return made


def report(folder: Path) -> dict[str, Any]:
    """Return the report of the run in a folder."""
    return dict(json.loads((folder / "out" / "report.json").read_text(encoding="utf-8")))


def options(skip: Iterable[str] = (), **settings: Any) -> Options:
    """Return options with the columns `question` and `answer`, nothing held out, and all steps but those to skip."""
    return Options(**{"columns": COLUMNS, "eval_share": 0, "steps": frozenset(STEPS) - set(skip), **settings})


def made(tmp_path: Path, name: str, content: str | bytes, **settings: Any) -> Made:
    """Process a file of this content; return the rows of each file written."""
    put(tmp_path, {name: content})
    process.process([tmp_path / name], tmp_path / "out", options(**settings))
    return read(tmp_path / "out")


def made_of(
    tmp_path: Path, files: Mapping[str, str | bytes], held: Mapping[str, str | bytes] | None = None, **settings: Any
) -> Made:
    """Process a folder of files, with others to evaluate on; return the rows of each file written."""
    put(tmp_path / "in", files)
    put(tmp_path / "held", held or {})
    process.process([tmp_path / "in"], tmp_path / "out", options(**settings), [tmp_path / "held"] if held else [])
    return read(tmp_path / "out")


def refusal(tmp_path: Path, name: str, content: str | bytes, **settings: Any) -> str:
    """Return the one line with which a file is refused; it begins with the file, and only refused rows are written."""
    with pytest.raises(DataError) as refused:
        made(tmp_path, name, content, **settings)
    text = str(refused.value).removeprefix(f"{tmp_path}/")
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    assert {path.name for path in (tmp_path / "out").glob("*") if path.stat().st_size} <= {"rejected.jsonl"}
    return text.removeprefix(f"{name}: ")


def pairs(rows: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return (question, answer) of each row."""
    return {(row["instruction"], row["output"]) for row in rows}


def asked(rows: Iterable[dict[str, Any]]) -> set[str]:
    """Return the questions of rows."""
    return {row["instruction"] for row in rows}


def table(rows: Iterable[Iterable[object]], header: Iterable[str] = ("question", "answer")) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


# What it reads

SAME: dict[str, tuple[str, str | bytes]] = {
    "csv": ("rows.csv", TABLE),
    "crlf": ("rows.CSV", TABLE.replace("\n", "\r\n")),
    "cr": ("rows.csv", TABLE.replace("\n", "\r")),
    "empty lines": ("rows.csv", "\n\n" + TABLE.replace("\n", "\n\n")),
    "no last line end": ("rows.csv", TABLE.rstrip("\n")),
    "quoted": ("rows.csv", "".join(f'"{q}","{a}"\n' for q, a in [("question", "answer"), *PAIRS])),
    "tsv": ("rows.tsv", TABLE.replace(",", "\t")),
    "jsonl": ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in RECORDS)),
    "jsonl with empty lines": ("rows.ndjson", "".join(json.dumps(row) + "\r\n \r\n" for row in RECORDS)),
    "json": ("rows.json", json.dumps(RECORDS, indent=2)),
    "json in an object": ("rows.json", json.dumps({"version": 1, "data": RECORDS})),
    "xlsx": ("rows.xlsx", xlsx({1: ["question", "answer"], **{n: pair for n, pair in enumerate(PAIRS, 3)}})),
    "parquet": ("rows.parquet", parquet(pyarrow.Table.from_pylist(RECORDS))),
    "gzip": ("rows.csv.gz", gzip.compress(TABLE.encode())),
    "zstd": ("rows.jsonl.zst", pyarrow.Codec("zstd").compress(TABLE.encode(), asbytes=True)),
}
SAME["zstd"] = ("rows.csv.zst", SAME["zstd"][1])


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_of_file_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """CSV, TSV, XLSX, JSON, JSONL and Parquet, with any line ends and packing, give the same train and eval files."""
    name, content = SAME[kind]
    rows = made(tmp_path, name, content, eval_share=0.2)
    assert pairs(rows["train"] + rows["eval"]) == set(PAIRS)
    (tmp_path / "plain").mkdir()
    made(tmp_path / "plain", "rows.csv", TABLE, eval_share=0.2)
    for written in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "out" / written).read_bytes() == (tmp_path / "plain" / "out" / written).read_bytes()


def test_the_order_of_rows_and_files_does_not_matter(tmp_path: Path) -> None:
    """The same rows in another order, in one file or several, give the same train, eval and checks to the byte."""
    rows = [(n, f"question {n % 30}", f"answer {n % 45}") for n in range(90)]
    header = ("id", "question", "answer")
    shuffled = random.Random(3).sample(rows, len(rows))
    records = "".join(json.dumps({"id": str(n), "question": q, "answer": a}) + "\n" for n, q, a in shuffled[60:])
    several = {"z.csv": table(shuffled[:40], header), "a/b.csv": table(shuffled[40:60], header), "a.jsonl": records}
    for folder, files in (("one", {"rows.csv": table(rows, header)}), ("several", several)):
        made_of(tmp_path / folder, files, eval_share=0.3)
    for name in ("train.jsonl", "eval.jsonl", "checks.jsonl"):
        written = (tmp_path / "one" / "out" / name).read_bytes()
        assert written and written == (tmp_path / "several" / "out" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", "auto"), ("utf-8-sig", "auto"), ("gbk", "auto"), ("gb18030", "auto"), ("utf-16", "auto"),
        ("utf-16-le", "auto"), ("utf-8-sig", "UTF8"), ("gbk", "gb18030"), ("gbk", "gbk"), ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"), ("hz", "hz"),
    ],
)  # fmt: skip
def test_encodings_give_the_same_rows(tmp_path: Path, codec: str, encoding: str) -> None:
    """UTF-8 with and without a byte order mark, GBK and UTF-16 are told apart; a named encoding is used."""
    rows = made(tmp_path, "rows.csv", CHINESE.encode(codec), encoding=encoding)
    assert pairs(rows["train"]) == {("几天内可以退货？", "二十一天"), ("保修多久？", "两年")}
    (file,) = report(tmp_path)["files"]
    found = {"utf-8-sig": "utf-8 with byte order mark", "gbk": "gb18030", "utf-16-le": "utf-16"}
    assert file["encoding"] == (found.get(codec, codec) if encoding == "auto" else encoding)


def test_a_byte_order_mark_never_gets_into_a_column_name(tmp_path: Path) -> None:
    """A mark that the codec itself leaves in the text is taken off, in UTF-16-LE and GB18030 too."""
    for codec in ("utf-8", "utf-16-le", "gb18030"):
        for encoding in (codec, "auto"):
            content = ("\ufeff" + CHINESE).encode(codec)
            if (codec, encoding) != ("gb18030", "auto"):
                assert len(made(tmp_path, "rows.csv", content, encoding=encoding)["train"]) == 2


def test_fields_keep_commas_quotes_and_lines(tmp_path: Path) -> None:
    """Quoted commas, doubled quotes and line breaks inside a field survive; blanks around a field do not."""
    for ends in ("\n", "\r\n", "\r"):
        content = 'question,answer\n" a, ""b"" ","one\ntwo"\nc,d\n'.replace("\n", ends)
        assert pairs(made(tmp_path, "rows.csv", content)["train"]) == {('a, "b"', "one\ntwo"), ("c", "d")}


def test_a_tab_and_a_comma_are_text_where_they_do_not_separate(tmp_path: Path) -> None:
    """A TSV keeps commas and quoted tabs, a CSV keeps tabs."""
    rows = made(tmp_path, "rows.tsv", 'question\tanswer\na, b\t"c\td"\n')
    assert pairs(rows["train"]) == {("a, b", "c\td")}
    assert pairs(made(tmp_path, "rows.csv", "question,answer\na\tb,c\n")["train"]) == {("a\tb", "c")}


def test_numbers_are_written_as_they_stand(tmp_path: Path) -> None:
    """Numbers of JSON and workbooks become text without a decimal point they did not have; null is empty."""
    content = '[{"question": 7, "answer": 1.50, "system": null}, {"question": "n", "answer": 12345678901234567890}]'
    rows = made(tmp_path, "r.json", content, columns={**COLUMNS, "system": "system"})["train"]
    assert pairs(rows) == {("7", "1.5"), ("n", "12345678901234567890")}
    assert {row["system"] for row in rows} == {""}
    number = "<c><v>{}</v></c>".format
    book = xlsx({1: ["question", "answer"], 2: ["price?", number("299.0")], 3: [number(2024), number(0.25)]})
    assert pairs(made(tmp_path, "r.xlsx", book)["train"]) == {("price?", "299"), ("2024", "0.25")}


def test_an_optional_column_may_start_late(tmp_path: Path) -> None:
    """A JSON row may leave out a column that other rows have, also the first row."""
    content = '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d", "text": "e"}\n'
    rows = made(tmp_path, "r.jsonl", content, columns={**COLUMNS, "input": "text"})["train"]
    assert {(row["instruction"], row["input"]) for row in rows} == {("a", ""), ("c", "e")}


def test_the_system_prompt_of_a_row_wins_over_the_common_one(tmp_path: Path) -> None:
    """data.system fills the rows whose own system column is empty, and no others."""
    content = "question,answer,role\na,b,clerk\nc,d,\n"
    rows = made(tmp_path, "r.csv", content, columns={**COLUMNS, "system": "role"}, system="help desk")["train"]
    assert {(row["instruction"], row["system"]) for row in rows} == {("a", "clerk"), ("c", "help desk")}


def test_the_input_is_never_changed(tmp_path: Path) -> None:
    """Inputs that are converted, damaged or refused keep their bytes and times, and nothing is put beside them."""
    damaged = '{"question": "几天内可以退货？", "answer": "七天"}\n'.encode() + b'{"question": "\xff"}\n'
    files = {
        "a.csv": CHINESE.encode("gbk"),
        "b.jsonl": damaged,
        "c.json": json.dumps(RECORDS).encode(),
        "d.csv.gz": gzip.compress(TABLE.encode()),
        "e.tsv": TABLE.replace(",", "\t").encode("utf-16"),
    }
    put(tmp_path / "in", files)
    held = tmp_path / "in" / "a.csv"
    for path in (tmp_path / "in").iterdir():
        os.utime(path, ns=(10**18, 10**18))
        path.chmod(0o444)
    for most in (1.0, 0.0):
        try:
            process.process([tmp_path / "in"], tmp_path / "out", options(max_rejected=most), [held])
        except DataError:
            assert most == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == files
    assert {path.stat().st_mtime_ns for path in (tmp_path / "in").iterdir()} == {10**18}


# What it refuses


def test_gbk_read_as_utf8_is_no_text_row_by_row(tmp_path: Path) -> None:
    """A file in GBK whose encoding is given as UTF-8 has each row refused as damaged; found by itself it is read."""
    said = refusal(tmp_path, "rows.csv", CHINESE.encode("gbk"), encoding="utf-8")
    assert said.startswith(
        "2 of 2 rows cannot be used (100.0%): 2 x bytes or characters that are damaged (first in line 2)"
    )
    assert len(made(tmp_path, "rows.csv", CHINESE.encode("gbk"))["train"]) == 2


@pytest.mark.parametrize("codec", ["utf-8", "gbk"])
def test_damaged_bytes_cost_their_row_alone(tmp_path: Path, codec: str) -> None:
    """Bytes that are not in the file's encoding are refused in the row they are in; all others are read."""
    content = CHINESE.encode(codec) + b"a,\xff\nb,c\n"
    rows = made(tmp_path, "rows.csv", content, max_rejected=1)
    assert asked(rows["train"]) == {"几天内可以退货？", "保修多久？", "b"}
    assert [(row["line"], row["reason"]) for row in rows["rejected"]] == [(4, "encoding")]


@pytest.mark.parametrize("codec", ["utf-8", "gbk"])
@pytest.mark.parametrize("place", ["row", "header"])
def test_damaged_bytes_in_a_column_that_is_not_learnt_do_not_stop_the_stage(
    tmp_path: Path, codec: str, place: str
) -> None:
    """A damaged note or column name does not matter to a question and its answer: the other rows are kept."""
    head, body = (
        CHINESE.replace("answer", "answer,note", 1).replace("天\n", "天,甲\n").replace("年\n", "年,乙\n").split("\n", 1)
    )
    content = head.encode(codec) + (b"\xff" if place == "header" else b"") + b"\n" + body.encode(codec)
    content += b"a,b,\xff\n" if place == "row" else b""
    rows = made(tmp_path, "rows.csv", content, max_rejected=1)
    assert {"几天内可以退货？", "保修多久？"} <= asked(rows["train"])


ODD = [
    r'"note": "\ud83d"', r'"\ud83d": 1', '"n": NaN, "id": 123456789012345678901234567890',
    f'"tree": {"[" * 300}{"]" * 300}',
]  # fmt: skip


@pytest.mark.parametrize("more", ['"n": 1e400', '"n": -0.0', *(odd for odd in ODD)])
def test_odd_values_in_a_field_that_is_not_learnt_do_not_stop_the_stage(tmp_path: Path, more: str) -> None:
    """Half characters, endless numbers and deep lists beside a good question and answer never end the stage."""
    content = f'{{"question": "a", "answer": "b", {more}}}\n{{"question": "c", "answer": "d"}}\n'
    rows = made(tmp_path, "r.jsonl", content, max_rejected=1)
    assert ("c", "d") in pairs(rows["train"])
    assert len(rows["train"]) + len(rows["rejected"]) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.csv", b"", "the file is empty; give a file with a header line and rows"),
        ("r.csv", b"\xef\xbb\xbf \r\n\n", "the file is empty; "),
        ("r.jsonl", b"\n\n", "the file is empty; "),
        ("r.csv", "question,answer\n", "no row is left to train on (0 read); give more rows, or lower data.eval_share"),
        ("r.json", "[]", "no row is left to train on (0 read); "),
        ("r.xlsx", xlsx({1: ["question", "answer"]}), "no sheet has a header and rows; "),
        ("r.csv", bytes(range(1, 256)) * 9, "byte 127 (0x80) is neither UTF-8 nor GB18030; save it as UTF-8"),
        ("r.csv", b"question,answer\na\0b,c\n", "holds NUL characters, so it is no text file; save it as UTF-8 text"),
        ("r.xlsx", b"PK\x03\x04\xff\xfe", "cannot be read as .xlsx ("),
        ("r.parquet", b"PAR1 no PAR1", "cannot be read as Parquet ("),
        ("r.csv.gz", TABLE, "the gzip file is damaged after 0 bytes"),
        ("r", "question,answer\na,b\n", "unknown kind of file ''; save it as one of .csv, .tsv, .xlsx, "),
        ("r.txt", "question,answer\na,b\n", "unknown kind of file '.txt'; "),
        ("r.json", "[{]", "not valid JSON in line 1, item 1: "),
        ("r.json", "[" * 100_000, "not valid JSON in line 1, item 1: it is nested too deeply; "),
        ("r.json", "[1, 2]", "2 of 2 rows cannot be used (100.0%): 2 x not an object with fields (first in line 1)"),
        ("r.csv", "question,question,answer\na,b,c\n", "the column 'question' comes twice; give each column a name"),
        ("r.csv", '"question,answer\na,b\n', "no header line (unexpected end of data); give the column names in the"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    """Empty, header only, binary, broken and unknown files: one line with the remedy each, and no rows are written."""
    assert said in refusal(tmp_path, name, content)


def test_a_damaged_name_of_a_column_does_not_end_the_stage(tmp_path: Path) -> None:
    """Two columns are learnt whatever they are called, also where the name of one is damaged."""
    content = "客户说".encode() + b"\xff," + "我们说\n几天内可以退货？,二十一天\n".encode()
    assert pairs(made(tmp_path, "r.csv", content, columns={})["train"]) == {("几天内可以退货？", "二十一天")}


def test_a_missing_value_of_pandas_is_empty(tmp_path: Path) -> None:
    """NaN, which pandas writes for a missing value, is never learnt as an answer."""
    content = '{"question": "a", "answer": NaN}\n{"question": "c", "answer": "d"}\n'
    rows = made(tmp_path, "r.jsonl", content, max_rejected=1)
    assert pairs(rows["train"]) == {("c", "d")}
    assert [row["reason"] for row in rows["rejected"]] == ["empty-answer"]


@pytest.mark.parametrize("encoding", ["klingon", "base64", ""])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    """An encoding that does not exist, or is none for text, is named with two that are."""
    assert refusal(tmp_path, "r.csv", TABLE, encoding=encoding) == (
        f"unknown encoding {encoding!r}; use utf-8 or gb18030"
    )


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """A path without a file, a folder without rows, and a missing file of rows to evaluate on are one line."""
    put(tmp_path, {"r.csv": TABLE, "notes/read.txt": "a"})
    for given, held, said in (
        (["none.csv"], [], "none.csv: no such file; give a CSV, TSV, XLSX, JSON, JSONL or Parquet file, or a folder"),
        (["r.csv", "notes"], [], "notes: no file here that can be read; put in files that end in one of .csv, .tsv"),
        (["r.csv"], ["none.csv"], "none.csv: no such file; "),
        (["r.csv"], ["r.csv"], "r.csv: no row is left to train on (40 read); "),
    ):
        with pytest.raises(DataError) as refused:
            paths, held_out = ([tmp_path / name for name in names] for names in (given, held))
            process.process(paths, tmp_path / "out", options(), held_out)
        assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "there"),
    [
        ("r.csv", "Question,reply,区域\na,b,c\n", "Question, reply, 区域"),
        ("r.tsv", "Question\treply\t区域\na\tb\tc\n", "Question, reply, 区域"),
        ("r.csv", "question;answer\na;b\n", "question;answer"),
        ("r.json", '[{"q": "a", "a": "b"}, {"more": 1}]', "q, a, more"),
        ("r.xlsx", xlsx({2: ["问题描述", "答复"], 3: ["a", "b"]}), "问题描述, 答复"),
        ("r.parquet", parquet({"q": ["a"], "a": ["b"]}), "q, a"),
    ],
)
def test_missing_columns_list_those_there_are(tmp_path: Path, name: str, content: str | bytes, there: str) -> None:
    """All missing columns are named at once, with the columns the file has and the setting to change."""
    assert refusal(tmp_path, name, content) == (
        "there is no instruction column 'question' and no output column 'answer'; "
        f"the columns are: {there}; set data.columns (--instruction_col, --output_col)"
    )


def test_more_unusable_rows_than_allowed_stop_the_stage(tmp_path: Path) -> None:
    """At the allowed share the stage runs; one row beyond it is refused with counts, reasons, lines and the setting."""
    content = TABLE + "only a question,\n"
    assert len(made(tmp_path, "r.csv", content, max_rejected=1 / 41)["rejected"]) == 1
    (tmp_path / "out").rename(tmp_path / "kept")
    said = refusal(tmp_path, "r.csv", content + "a,b,c\n", max_rejected=1 / 41)
    assert said == (
        "2 of 42 rows cannot be used (4.8%): 1 x the answer is empty (first in line 42), 1 x not as many fields as the"
        f" header has (first in line 43); each is in {tmp_path}/out/rejected.jsonl; correct them, or allow more than"
        " 2.4% with data.max_rejected (--max_rejected)"
    )
    assert "1 of 41 rows" in refusal(tmp_path, "r.csv", content)


def test_the_three_commonest_reasons_are_named_with_their_first_places(tmp_path: Path) -> None:
    """With several files the message names the three commonest reasons, each with a file and line; the rest is counted.

    rejected.jsonl has every row.
    """
    files = {
        "a.csv": "question,answer\nq1,\nq2,\na,b,c\n",
        "b/c.jsonl": '{"question": "q3", "answer": ""}\n{"question":\n[1]\n[2]\n{"question": "q4", "answer": "good"}\n',
    }
    with pytest.raises(DataError) as refused:
        made_of(tmp_path, files)
    assert str(refused.value).startswith(
        "2 files: 7 of 8 rows cannot be used (87.5%): 3 x the answer is empty (first in a.csv line 2), 2 x not an"
        " object with fields (first in b/c.jsonl line 3), 1 x not as many fields as the header has (first in a.csv line"
        f" 4); each is in {tmp_path}/out/rejected.jsonl; "
    )
    assert [path.name for path in (tmp_path / "out").iterdir() if path.stat().st_size] == ["rejected.jsonl"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"], row["reason"]) for row in rejected] == [
        ("a.csv", 2, "empty-answer"), ("a.csv", 3, "empty-answer"), ("a.csv", 4, "field-count"),
        ("b/c.jsonl", 1, "empty-answer"), ("b/c.jsonl", 2, "not-json"), ("b/c.jsonl", 3, "not-an-object"),
        ("b/c.jsonl", 4, "not-an-object"),
    ]  # fmt: skip


def test_a_refused_run_writes_rejected_rows_alone(tmp_path: Path) -> None:
    """When too many rows are refused, rejected.jsonl is all there is: nothing looks like a dataset."""
    with pytest.raises(DataError):
        made(tmp_path, "r.csv", "question,answer\na,\nb,c\n", max_rejected=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.jsonl"]


# What becomes of each row


def test_unusable_rows_are_kept_with_line_and_reason(tmp_path: Path) -> None:
    """Ragged rows, empty cells and broken quotes are set aside in rejected.jsonl; the good rows are used."""
    content = 'question,answer\na,b\nc\nd,e,f\n ,g\nh,\n"i" j,k\nl,m\n"n,o\np,q\n'
    rows = made(tmp_path, "r.csv", content, max_rejected=1)
    assert pairs(rows["train"]) == {("a", "b"), ("l", "m"), ("p", "q")}
    assert [(row["file"], row["line"], row["reason"]) for row in rows["rejected"]] == [
        ("r.csv", 3, "field-count"), ("r.csv", 4, "field-count"), ("r.csv", 5, "empty-question"),
        ("r.csv", 6, "empty-answer"), ("r.csv", 7, "not-csv"), ("r.csv", 9, "unclosed-quote"),
    ]  # fmt: skip


def test_a_quote_that_another_row_closes_tells_how_far_it_went(tmp_path: Path) -> None:
    """Where a quote is closed by the next one opened, the lines in between are lost: the refusal says which."""
    content = 'question,answer\na,b\n"c,d\ne,f\n"g","h"\ni,j\n'
    rows = made(tmp_path, "r.csv", content, max_rejected=1)
    assert pairs(rows["train"]) == {("a", "b"), ("i", "j")}
    ((line, reason, detail),) = [(row["line"], row["reason"], row["detail"]) for row in rows["rejected"]]
    assert (line, reason) == (3, "not-csv")
    assert "line 5" in detail or "3 lines" in detail


def test_broken_records_are_kept_with_line_and_reason(tmp_path: Path) -> None:
    """A line of JSONL that is no JSON, no object, too deep or holds half a character does not stop the others."""
    good = '{"question": "a", "answer": "b"}'
    lines = [good, '{"question":', "[1]", '{"question": "\\ud83d", "answer": "b"}', "[" * 100_000, '{"answer": "b"}']
    rows = made(tmp_path, "r.jsonl", "\n".join(lines), max_rejected=1)
    assert pairs(rows["train"]) == {("a", "b")}
    assert [(row["line"], row["reason"]) for row in rows["rejected"]] == [
        (2, "not-json"), (3, "not-an-object"), (4, "encoding"), (5, "not-json"), (6, "empty-question")
    ]  # fmt: skip
    assert len(rows["rejected"][3]["row"]) == 200


def test_a_first_row_longer_than_what_is_looked_at_for_columns_is_read(tmp_path: Path) -> None:
    """A pasted document of megabytes in the first row hides no column of the rows after it."""
    content = json.dumps({"question": "x" * 5_000_000, "answer": "b"}) + '\n{"question": "a", "answer": "b"}\n'
    rows = made(tmp_path, "r.jsonl", content, max_rejected=1, columns={})
    assert pairs(rows["train"]) == {("a", "b")}
    assert [(row["line"], row["reason"]) for row in rows["rejected"]] == [(1, "too-long")]


def test_a_column_without_a_name_is_not_learnt(tmp_path: Path) -> None:
    """What pandas and Excel leave in nameless columns, an index or a remark, is no question, prompt or history."""
    for content in (
        ",question,answer\n0,a,b\n1,c,d\n",
        "question,answer,\na,b,remark\nc,d,\n",
        "question,answer,,\na,b,,remark\nc,d,,\n",
    ):
        rows = made(tmp_path, "r.csv", content)
        assert pairs(rows["train"]) == {("a", "b"), ("c", "d")}
        assert {(row["system"], row["input"]) for row in rows["train"]} == {("", "")}


def test_rows_that_clean_to_the_same_are_merged(tmp_path: Path) -> None:
    """Repeated rows are counted and used once; each is in duplicates.jsonl with the row it was merged into."""
    content = "question,answer\na,b\n a ,b\r\na,c\na,b\ncafe\u0301,d\ncafé,d\n"
    rows = made(tmp_path, "r.csv", content)
    assert pairs(rows["train"]) == {("a", "b"), ("a", "c"), ("café", "d")}
    merged = {(row["line"], row["kind"], row["kept_file"], row["kept_line"]) for row in rows["duplicates"]}
    assert merged == {(3, "exact", "r.csv", 2), (5, "exact", "r.csv", 2), (7, "exact", "r.csv", 6)}
    assert {row["file"] for row in rows["duplicates"]} == {"r.csv"}
    assert report(tmp_path)["duplicates_by"] == {"exact": 3, "near": 0, "across_split": 0}


def test_rows_are_merged_across_files_and_kinds(tmp_path: Path) -> None:
    """The same row in a table and in a conversation is one row, kept under the first file that has it."""
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = made_of(tmp_path, {"a.csv": "question,answer\na,b\n", "b.jsonl": json.dumps(talk) + "\n"}, columns={})
    assert pairs(rows["train"]) == {("a", "b")}
    assert rows["duplicates"] == [
        {"file": "b.jsonl", "line": 1, "kind": "exact", "kept_file": "a.csv", "kept_line": 2}
    ]  # fmt: skip


def test_material_and_system_prompt_make_another_row(tmp_path: Path) -> None:
    """Rows that differ in their material or system prompt alone are no duplicates and no conflict."""
    content = "question,answer,text,role\na,b,,\na,b,m,\na,b,,r\na,c,n,\n"
    rows = made(tmp_path, "r.csv", content, columns={**COLUMNS, "input": "text", "system": "role"}, skip=["near"])
    assert len(rows["train"]) == 4
    assert rows["conflicts"] == []


def test_one_question_with_several_answers_is_listed(tmp_path: Path) -> None:
    """Answers that contradict each other are all kept, and listed with their places in conflicts.jsonl and the report.

    Rows that say the same are no conflict, however often they do.
    """
    files = {"a.csv": "question,answer\na,b\nc,d\nc,d\n", "b/c.csv": "question,answer\n a,other\na,b\nx,y\n"}
    rows = made_of(tmp_path, files)
    assert pairs(rows["train"]) == {("a", "b"), ("a", "other"), ("c", "d"), ("x", "y")}
    (conflict,) = rows["conflicts"]
    assert conflict["question"] == "a"
    assert {(item["output"], item["file"], item["line"]) for item in conflict["answers"]} == {
        ("b", "a.csv", 2), ("other", "b/c.csv", 2)
    }  # fmt: skip
    assert report(tmp_path)["conflicts"] == {"questions": 1, "examples": [{"question": "a", "answers": ["b", "other"]}]}


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ((f"{RETURNS}？", "签收后七天之内都可以的"), (f"{RETURNS}?", "签收后七天之内都可以的。"), True),
        (
            ("How do I return the X3 kettle?", "Bring it back."),
            ("how do i return the x3 kettle", "bring it back"),
            True,
        ),
        ((f"请问{RETURNS}？", "签收后七天之内"), (f"{RETURNS}？", "不支持退货，请联系您的门店"), False),
        (("How do I return the X3 kettle?", "Bring it back."), ("How do I return the X4 kettle?", "Bring it"), False),
        (("退货运费是5元吗？", "是"), ("退货运费是-5元吗？", "是"), False),
        (("How long is the warranty?", "2 years"), ("How long does the refund take?", "2 years"), False),
    ],
)
def test_near_duplicates_are_merged(
    tmp_path: Path, first: tuple[str, str], second: tuple[str, str], merged: bool
) -> None:
    """Rows that ask and answer nearly the same are used once, and shown in the report; other codes or answers are not.

    duplicates.jsonl says how alike they were.
    """
    rows = made(tmp_path, "r.csv", table([first, second, ("a", "b")]))
    assert len(rows["train"]) == 3 - merged
    shown = report(tmp_path)
    assert shown["near_duplicates"]["threshold"] == near.THRESHOLD
    assert shown["duplicates_by"] == {"exact": 0, "near": int(merged), "across_split": 0}
    if merged:
        (row,) = rows["duplicates"]
        assert {row["line"], row["kept_line"]} == {2, 3}
        assert row["kind"] == "near" and near.THRESHOLD <= row["likeness"] <= 1
        (example,) = shown["near_duplicates"]["examples"]
        assert {example["kept"], example["left_out"]} == {first[0], second[0]}
        assert example["kept"] in asked(rows["train"])


SAME_QUESTION = {"instruction": "What does the lamp cost?", "output": "It costs 299."}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"system": "You are Anna."}, {"system": "Talk like a pirate."}),
        ({"history": [["Is it red?", "Yes."]]}, {"history": [["Is it red?", "No, it is blue."]]}),
        ({"chosen": "It costs 299.", "rejected": "No idea."}, {"chosen": "It costs 299.", "rejected": "Ask someone."}),
    ],
)
def test_rows_that_differ_in_more_than_question_and_answer_are_no_near_duplicates(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Another system prompt, other earlier answers and another worse answer make another row."""
    content = "".join(json.dumps({**SAME_QUESTION, **more}) + "\n" for more in (one, other))
    assert len(made(tmp_path, "r.jsonl", content, columns={})["train"]) == 2


PHONE, ID, KEY = "13912345678", "11010519491231002X", "sk-" + "a1B2c3D4e5F6g7H8i9J0k1L2"


@pytest.mark.parametrize("action", ["report", "mask", "drop"])
def test_personal_data_is_reported_masked_or_dropped(tmp_path: Path, action: str) -> None:
    """Phone, ID and key are counted with kinds and masked places; masked in the rows too, or their rows refused."""
    content = table(
        [
            ("怎么改手机号？", "在设置里改"),
            (f"我的电话是{PHONE}，请回电", "好的，稍后回电"),
            ("证件号填错了", f"您填的是{ID}，请改为本人的"),
            ("My key?", f"It is {KEY}, and call {PHONE}"),
        ]
    )
    rows = made(tmp_path, "r.csv", content, personal=action, max_rejected=1)
    found = report(tmp_path)["personal_data"]
    assert (found["action"], found["rows"]) == (action, 3)
    assert found["kinds"] == {"api_key": 1, "cn_id": 1, "mobile": 2}
    assert [(item["kind"], item["file"], item["line"]) for item in found["examples"]] == [
        ("mobile", "r.csv", 3), ("cn_id", "r.csv", 4), ("api_key", "r.csv", 5)
    ]  # fmt: skip
    shown = (tmp_path / "out" / "report.json").read_text() + (tmp_path / "out" / "report.html").read_text()
    written = "".join(path.read_text() for path in (tmp_path / "out").glob("*.jsonl"))
    for secret in (PHONE, ID, KEY):
        assert secret not in json.dumps(found)
        assert action == "report" or secret not in shown
        assert (secret in written) == (action == "report")
    if action == "mask":
        assert "我的电话是[MOBILE]，请回电" in asked(rows["train"])
        assert "It is [API_KEY], and call [MOBILE]" in {row["output"] for row in rows["train"]}
    assert len(rows["train"]) == (1 if action == "drop" else 4)
    refused = [(row["line"], row["reason"]) for row in rows["rejected"]]
    assert refused == ([(line, "personal-data") for line in (3, 4, 5)] if action == "drop" else [])


def test_rows_that_differ_in_masked_data_alone_are_merged(tmp_path: Path) -> None:
    """What is equal once personal data is masked is one row."""
    content = table([(f"我的电话是{PHONE}", "好的"), ("我的电话是13812345678", "好的")])
    assert len(made(tmp_path, "r.csv", content)["train"]) == 2
    assert asked(made(tmp_path, "r.csv", content, personal="mask")["train"]) == {"我的电话是[MOBILE]"}


# Steps

STEPPED = table(
    [
        (1, "<p>几天可以&nbsp;退货？</p>", "七天"),
        (2, f"{RETURNS}？", "签收后七天之内都可以的"),
        (3, f"{RETURNS}?", "签收后七天之内都可以的。"),
        (4, f"电话{PHONE}", "好的"),
        (5, "a", "b"),
        (6, "a", "b"),
        (7, "a", "c"),
    ],
    ("id", "question", "answer"),
)


def test_without_a_step_only_what_it_does_is_missing(tmp_path: Path) -> None:
    """Each step can be left out, and the files differ from those of all steps in what it does and in nothing else."""

    def stepped(name: str, skip: Iterable[str]) -> tuple[Made, dict[str, Any]]:
        rows = made(tmp_path / name, "r.csv", STEPPED, skip=skip, personal="mask", eval_share=0.3)
        return rows, report(tmp_path / name)

    (tmp_path / "all").mkdir()
    rows, shown = stepped("all", [])
    questions = asked(rows["train"] + rows["eval"])
    assert "几天可以 退货？" in questions and "电话[MOBILE]" in questions and rows["eval"]
    assert shown["duplicates_by"] == {"exact": 1, "near": 1, "across_split": 0}
    for step in ("normalise", "personal", "exact", "near", "split", "tokens", "checks", "report"):
        (tmp_path / step).mkdir()
        now, said = stepped(step, [step])
        now_asked = asked(now["train"] + now["eval"])
        same = {name for name in rows if now.get(name) == rows[name]}
        assert now["rejected"] == [], step
        if step == "normalise":
            assert now_asked - questions == {"<p>几天可以&nbsp;退货？</p>"} and said["normalised"] is None
        elif step == "personal":
            assert now_asked - questions == {f"电话{PHONE}"} and said["personal_data"] is None
        elif step == "exact":
            assert now_asked == questions and said["duplicates_by"]["exact"] == 0
        elif step == "near":
            assert len(now_asked - questions) == 1 and said["duplicates_by"] == {**shown["duplicates_by"], "near": 0}
            assert said["near_duplicates"] is None
        elif step == "split":
            assert now["eval"] == [] and pairs(now["train"]) == pairs(rows["train"] + rows["eval"])
        elif step == "checks":
            assert "checks" not in now and same == set(rows) - {"checks"} and said == shown
        else:
            assert same == set(rows) and said == shown
        written = {path.name for path in (tmp_path / step / "out").iterdir()}
        assert written == WRITTEN - {"checks": {"checks.jsonl"}, "report": {"report.html"}}.get(step, set())


CELLS = [
    "a", " a ", "\u200ba", "a\rb", "a<b>", "A&amp;B", "e\u0301", "a\u2028b", "\x85a", "13812345678",
    *(cell for cell in
      ("\u3000a", "\fa", "a\v", "\x1ca", "x" + " " * 120)),
]  # fmt: skip


def both_ways(tmp_path: Path, content: str, **settings: Any) -> None:
    """Process a table with checks.jsonl and, the short way, without: rows and counts must be the same."""
    rows, shown = [], []
    for skip in (["report"], ["checks", "report"]):
        rows.append(made(tmp_path, "r.csv", content, skip=skip, max_rejected=1, max_chars=100, **settings))
        shown.append(report(tmp_path))
    for name in ("train", "rejected", "duplicates"):
        assert rows[0][name] == rows[1][name], name
    for name in ("normalised", "personal_data"):
        assert shown[0][name] == shown[1][name], name


@pytest.mark.parametrize("cell", CELLS)
def test_the_short_way_of_plain_tables_does_the_same(tmp_path: Path, cell: str) -> None:
    """Rows that need no checks.jsonl are copied faster, and come out as all others: kept, refused and counted alike."""
    both_ways(tmp_path, table([(cell, "b"), ("c", cell), ("d", "e")]))


UNCLEAN = [" S ", "e\u0301", "a<b>c</b>"]


@pytest.mark.parametrize("system", ["S", *(text for text in UNCLEAN)])
def test_the_common_system_prompt_is_the_same_on_the_short_way(tmp_path: Path, system: str) -> None:
    """data.system is cleaned once and the same for all rows, also for those that are copied faster."""
    both_ways(tmp_path, table([("a", "b"), ("c", "<b>d</b>")]), system=system)


def generated(seed: int) -> tuple[str, dict[str, int]]:
    """Write a table of random good, repeated, empty and ragged rows; return it and how many there are of each."""
    chance = random.Random(seed)
    text = io.StringIO()
    writer = csv.writer(text, quoting=chance.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), lineterminator="\n")
    writer.writerow(["id", "question", "answer"])
    counts, good = {"good": 0, "duplicates": 0, "rejected": 0}, []
    for number in range(chance.randrange(1, 60)):
        kind = chance.choices(["good", "duplicate", "empty", "ragged"], [6, 2, 1, 1])[0] if number else "good"
        row = [str(number), chance.choice(["", " ", "，", '"', "\n"]) + f"问{number}", chance.choice("ab,\n\"'") + "答"]
        if kind == "duplicate" and good:
            _, question, answer = chance.choice(good)
            writer.writerow([number, f" {question}\t", answer])
            counts["duplicates"] += 1
        elif kind == "empty":
            writer.writerow([number, *chance.choice([["", row[2]], [row[1], " "], ["", ""]])])
            counts["rejected"] += 1
        elif kind == "ragged":
            writer.writerow(row[:2] if chance.random() < 0.5 else [*row, "more"])
            counts["rejected"] += 1
        else:
            good.append(row)
            writer.writerow(row)
            counts["good"] += 1
    return text.getvalue(), counts


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    """In random tables the rows in are exactly those kept, merged and rejected, kind by kind; checks has all kept."""
    kept = 0
    for seed in range(60):
        text, counts = generated(seed)
        rows = made(tmp_path, "rows.csv", text, max_rejected=1, skip=["report"])
        found = {"good": len(rows["train"]), "duplicates": len(rows["duplicates"]), "rejected": len(rows["rejected"])}
        assert found == counts, f"seed {seed}"
        assert len(rows["checks"]) == counts["good"]
        places = [row["line"] for name in ("duplicates", "rejected") for row in rows[name]]
        assert len(set(places)) == len(places)
        kept += counts["good"]
    assert kept > 600


# The split


def split(tmp_path: Path, questions: list[str], share: float = 0.25) -> tuple[set[str], set[str]]:
    """Return the questions trained on and those held out."""
    rows = made(tmp_path, "r.csv", table([(text, n) for n, text in enumerate(questions)]), eval_share=share)
    return asked(rows["train"]), asked(rows["eval"])


def test_adding_rows_never_moves_old_ones(tmp_path: Path) -> None:
    """A question is held out by its own hash: new, removed and reordered rows change nothing for the others."""
    questions = [f"q{number}" for number in range(400)]
    train, held = split(tmp_path, questions[:200])
    shuffled = random.Random(5).sample(questions[50:], 350)
    train_now, held_now = split(tmp_path, shuffled)
    common = set(questions[50:200])
    assert held & common == held_now & common and held & common
    assert train & common == train_now & common and train & common


def test_a_larger_share_only_adds_to_what_is_held_out(tmp_path: Path) -> None:
    """The held-out share is near what was asked for, and raising it never trains on a question held out before."""
    questions = [f"q{number}" for number in range(2000)]
    before: set[str] = set()
    for share in (0, 0.05, 0.1, 0.3):
        _, held = split(tmp_path, questions, share)
        assert before <= held
        assert abs(len(held) / 2000 - share) < 0.03
        before = held


def test_one_question_is_never_in_both_splits(tmp_path: Path) -> None:
    """The same question with other answers or other material stays on one side."""
    content = table([(f"q{n % 50}", f"m{n % 3}", f"a{n}") for n in range(600)], ("question", "m", "answer"))
    rows = made(tmp_path, "r.csv", content, eval_share=0.4, columns={**COLUMNS, "input": "m"})
    train, held = asked(rows["train"]), asked(rows["eval"])
    assert train | held == {f"q{n}" for n in range(50)} and train & held == set() and train and held


@pytest.mark.parametrize("count", [2, 24, 400])
def test_questions_that_are_nearly_the_same_are_never_on_both_sides(tmp_path: Path, count: int) -> None:
    """Of near questions on both sides of the split the held-out one is left out, in groups of any size."""
    names = [
        f"{a}{b}"
        for a in "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何"
        for b in "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超兰霞平"
    ]
    text = (
        "客户{}昨天下午在你们的官方网站上下了一个新的订单，请问什么时候可以安排送到北京市朝阳区的家里，需要本人签收吗？"
    )
    groups = [(text.format(name), f"{name}的快递由{name[::-1]}派送") for name in names[:count]]
    content = table([*groups, *((f"q{n}", "a") for n in range(20))])
    rows = made(tmp_path, "r.csv", content, eval_share=0.5, skip=["report"])
    train, held = asked(rows["train"]), asked(rows["eval"])
    assert held
    assert [(a, b) for a in held for b in train if near.likeness(a, b) >= near.THRESHOLD] == []
    left_out = [row for row in rows["duplicates"] if row["kind"] == "across_split"]
    assert report(tmp_path)["duplicates_by"]["across_split"] == len(left_out)


def test_a_given_file_of_rows_to_evaluate_on_is_respected(tmp_path: Path) -> None:
    """Its rows are held out, all of them and no others; a row to train on with the same or a near question is left out.

    A row that is in both files is one row, held out; so it is with other answers and other columns.
    """
    files = {
        "a.csv": table(
            [("a", "b", 1), (f"{RETURNS}?", "两周", 2), ("x", "other", 3), ("kept", "y", 4), ("kept too", "z", 5)],
            ("question", "answer", "id"),
        )
    }
    given = [("a", "b"), ("x", "y"), (f"{RETURNS}？", "七天"), ("new", "n"), ("new", "")]
    held = {"e.jsonl": "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in given)}
    rows = made_of(tmp_path, files, held, max_rejected=1, eval_share=0.9)
    assert pairs(rows["train"]) == {("kept", "y"), ("kept too", "z")}
    assert pairs(rows["eval"]) == {("a", "b"), ("x", "y"), (f"{RETURNS}？", "七天"), ("new", "n")}
    assert sorted((row["file"], row["line"], row["kind"], row["kept_line"]) for row in rows["duplicates"]) == [
        ("a.csv", 2, "exact", 1), ("a.csv", 3, "across_split", 3), ("a.csv", 4, "across_split", 2)
    ]  # fmt: skip
    assert [(row["file"], row["line"], row["reason"]) for row in rows["rejected"]] == [("e.jsonl", 5, "empty-answer")]
    assert report(tmp_path)["split"]["given"] is True
    assert {file["file"]: file["eval"] for file in report(tmp_path)["files"]} == {"a.csv": False, "e.jsonl": True}


def test_a_file_given_twice_is_held_out(tmp_path: Path) -> None:
    """A file to evaluate on that lies in the folder to train on is not trained on; files of one name are told apart."""
    put(tmp_path / "in", {"a.csv": "question,answer\na,b\n", "eval.csv": "question,answer\nc,d\n"})
    process.process([tmp_path / "in"], tmp_path / "out", options(), [tmp_path / "in" / "eval.csv"])
    rows = read(tmp_path / "out")
    assert (pairs(rows["train"]), pairs(rows["eval"])) == ({("a", "b")}, {("c", "d")})
    put(tmp_path, {"held/a.csv": "question,answer\n,x\ne,f\n"})
    process.process([tmp_path / "in" / "a.csv"], tmp_path / "2", options(max_rejected=1), [tmp_path / "held" / "a.csv"])
    assert [row["file"] for row in read(tmp_path / "2")["rejected"]] == ["eval/a.csv"]


# What it writes


def test_columns_that_are_not_learnt_reach_the_checks(tmp_path: Path) -> None:
    """Every other column of a row is kept in checks.jsonl under `columns`, whatever it is called and holds."""
    content = "question,answer,columns,split,output,facts\na,b,1,2,3,4\n"
    rows = made(tmp_path, "r.csv", content)
    assert rows["checks"] == [
        {"instruction": "a", "input": "", "output": "b", "system": "", "split": "train",
         "columns": {"columns": "1", "split": "2", "output": "3", "facts": "4"}}
    ]  # fmt: skip
    assert set(rows["train"][0]) == {"instruction", "input", "output", "system"}
    content = '{"question": "a", "answer": "b", "facts": ["x", 1, {"y": null}]}\n{"question": "c", "answer": "d"}\n'
    rows = made(tmp_path, "r.jsonl", content)
    kept = {row["instruction"]: row["columns"] for row in rows["checks"]}
    assert kept == {"a": {"facts": ["x", 1, {"y": None}]}, "c": {}}


def test_each_line_is_one_row_for_every_reader(tmp_path: Path) -> None:
    """Characters that some readers take for line ends stay inside their row and come back as they were."""
    question = "a\u2028b\u2029c\x85d"
    for skip in ([], ["checks"]):
        rows = made(tmp_path, "r.csv", f'question,answer\n"{question}","{question}"\nf,g\n', skip=skip)
        assert pairs(rows["train"]) == {(question, question), ("f", "g")}
        text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
        assert len([json.loads(line) for line in text.splitlines()]) == 2


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    """Files hold nothing of the time or the place: the same rows give the same bytes, with any number of workers."""
    written = []
    for folder, workers in (("one", 1), ("two", 3)):
        (tmp_path / folder).mkdir()
        made(tmp_path / folder, "rows.csv", TABLE + "a,\n", eval_share=0.2, max_rejected=1, workers=workers)
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / folder / "out").iterdir())})
    assert written[0] == written[1]
    assert set(written[0]) == WRITTEN


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    """Rows of an earlier run are never left in the folder, also when the second is refused."""
    made(tmp_path, "r.csv", TABLE + "a,\n", max_rejected=1)
    rows = made(tmp_path, "r.csv", "question,answer\na,b\nc,d\n")
    assert pairs(rows["train"]) == {("a", "b"), ("c", "d")}
    assert (rows["rejected"], rows["duplicates"]) == ([], [])
    with pytest.raises(DataError):
        made(tmp_path, "r.csv", "question,answer\na,\n")
    train = tmp_path / "out" / "train.jsonl"
    assert not train.exists() or not train.read_bytes()


def test_what_was_written_is_never_read_again(tmp_path: Path) -> None:
    """The folder written to may lie in the folder read: a second run gives what the first gave."""
    put(tmp_path, {"rows/r.csv": TABLE})
    written = []
    for _ in range(2):
        process.process([tmp_path / "rows"], tmp_path / "rows" / "out", options())
        written.append(pairs(read(tmp_path / "rows" / "out")["train"]))
    assert written == [set(PAIRS)] * 2


def test_the_account_is_one_line(tmp_path: Path) -> None:
    """The stage says in one line what became of the rows, in the numbers of the report."""
    put(tmp_path, {"r.csv": TABLE + "question 1,answer 1\na,\n"})
    said = process.process([tmp_path / "r.csv"], tmp_path / "out", options(max_rejected=1))
    assert (
        said == "42 rows = 40 to train on + 0 held out + 1 duplicates + 1 rejected" == process.summary(tmp_path / "out")
    )


def test_the_report_names_files_reasons_and_changes(tmp_path: Path) -> None:
    """The report has each file with its kind, encoding and columns, each reason with places, and what was cleaned."""
    files = {
        "a.csv": "问题,答案\n几天？ ,<b>七天</b>\r\n，,\n".encode("gbk"),
        "b.jsonl.gz": gzip.compress('{"prompt": "e\u0301a", "completion": "b\\r\\nc"}\n[1]\n'.encode()),
    }
    made_of(tmp_path, files, columns={}, max_rejected=1)
    shown = report(tmp_path)
    common = {"rejected": 1, "rows": 2, "eval": False}
    assert shown["files"] == [
        {"file": "a.csv", "kind": "csv", "compression": "", "encoding": "gb18030", "shape": "columns",
         "columns": {"instruction": "问题", "output": "答案"}, **common},
        {"file": "b.jsonl.gz", "kind": "jsonl", "compression": "gzip", "encoding": "utf-8", "shape": "columns",
         "columns": {"instruction": "prompt", "output": "completion"}, **common},
    ]  # fmt: skip
    assert [(item["reason"], item["count"], item["first"]) for item in shown["reasons"]] == [
        ("empty-answer", 1, [{"file": "a.csv", "line": 3}]),
        ("not-an-object", 1, [{"file": "b.jsonl.gz", "line": 2}]),
    ]
    assert shown["normalised"] == {"unicode": 1, "line_ends": 1, "full_width_space": 0, "html": 1, "blanks": 1}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "b.jsonl.gz" in page and "http://" not in page.replace("http://www.w3.org/", "")


# LLaMA Factory

LOADER = """
import json, os, sys
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

rows = []
for place in sys.argv[1:]:
    folder, name = os.path.split(place)
    data = DataArguments(dataset=name, dataset_dir=folder, template="qwen")
    model = ModelArguments(model_name_or_path=folder, cache_dir=os.path.join(folder, "cache"))
    training = Seq2SeqTrainingArguments(output_dir=os.path.join(folder, "out"), use_cpu=True, report_to="none")
    for row in _load_single_dataset(get_dataset_list([name], folder)[0], model, data, training):
        rows.append([place, row["_prompt"], row["_response"], row["_system"]])
print(json.dumps(rows))
"""
Loaded = list[tuple[list[dict[str, str]], list[dict[str, str]], str]]  # prompt, response, system prompt


def loaded(tmp_path: Path, *places: str) -> dict[str, Loaded]:
    """Return what LLaMA Factory's own loader gives for each dataset of folders inside `tmp_path`."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", LOADER, *(tmp_path / place for place in places)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Loaded] = {place: [] for place in places}
    for place, *row in json.loads(done.stdout.splitlines()[-1]):
        found[str(Path(place).relative_to(tmp_path))].append(tuple(row))
    return found


def said(*texts: str) -> list[dict[str, str]]:
    """Return messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def answers(*texts: str) -> list[dict[str, str]]:
    """Return messages of an assistant."""
    return [{"role": "assistant", "content": text} for text in texts]


@pytest.mark.slow
def test_llama_factory_loads_every_row_as_it_was_meant(tmp_path: Path) -> None:
    """LLaMA Factory's own loader reads the folders: questions with material, conversations, preference pairs.

    Prompt, answer, earlier turns and system prompt are where they belong, and no row is lost. Of preference pairs
    `train` has the better answers alone, as for SFT, and `train_preference` both, the better one first, for rm and dpo.
    """
    pairs_in = [
        {"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "system": "S" if n % 2 else "",
         "history": [["before", "after"]] if n % 2 else []}
        for n in range(12)
    ]  # fmt: skip
    talks_in = [
        {"system": "S" if n % 2 else "", "instruction": f"q{n}", "input": "m" if n % 3 == 0 else "", "output": f"a{n}",
         "history": [[f"q{n}\u2028{k}", f"a{n}.{k}"] for k in range(n % 4)]}
        for n in range(20)
    ]  # fmt: skip
    content = table(
        [(f'q{n}\u2028, "{n}"', "m" if n % 2 else "", f"答{n}", "r" if n % 3 else "") for n in range(30)],
        ("question", "text", "answer", "role"),
    )
    written: dict[str, Made] = {}
    for folder, name, rows, columns in (
        ("rows", "r.csv", content, {**COLUMNS, "input": "text", "system": "role"}),
        ("talks", "r.json", json.dumps(talks_in), {}),
        ("pairs", "r.json", json.dumps([{**pair, "history": []} for pair in pairs_in]), {}),
        ("talk-pairs", "r.json", json.dumps(pairs_in), {}),
    ):
        (tmp_path / folder).mkdir()
        written[folder] = made(tmp_path / folder, name, rows, columns=columns, eval_share=0.3)
        assert written[folder]["eval"]
    places = [f"{folder}/out/{side}" for folder in written for side in ("train", "eval")]
    found = loaded(tmp_path, *places, *(f"{place}_preference" for place in places if "pairs" in place))

    both = {place.rpartition("/")[0]: found[place] + found[place.replace("train", "eval")] for place in places[::2]}
    assert both["rows/out"] == [
        (said("\n".join(filter(None, (row["instruction"], row["input"])))), answers(row["output"]), row["system"])
        for name in ("train", "eval")
        for row in written["rows"][name]
    ]
    assert len(both["rows/out"]) == 30

    assert set(written["talks"]["train"][0]) == {"messages"}
    by_answer = {response[0]["content"]: (prompt, system) for prompt, response, system in both["talks/out"]}
    assert len(both["talks/out"]) == len(by_answer) == 20
    for talk in talks_in:
        turns = [text for turn in talk["history"] for text in turn]
        last = "\n".join(filter(None, (talk["instruction"], talk["input"])))
        assert by_answer[talk["output"]] == (said(*turns, last), talk["system"])

    for folder in ("pairs", "talk-pairs"):
        for kind in ("", "_preference"):
            rows_out = [row for side in ("train", "eval") for row in found[f"{folder}/out/{side}{kind}"]]
            assert len(rows_out) == 12
            for prompt, response, system in rows_out:
                number = int(prompt[-1]["content"].removeprefix("q"))
                before = ["before", "after"] if folder == "talk-pairs" and number % 2 else []
                assert (prompt, system) == (said(*before, f"q{number}"), "S" if number % 2 else "")
                assert response == answers(f"good {number}", f"bad {number}")[: 2 if kind else 1]
