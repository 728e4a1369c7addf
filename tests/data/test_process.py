"""The data stage: what it reads, what it refuses, and an account in which no row is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper.data import process
from temper.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {"instruction": "question", "output": "answer"}
PAIRS = [(f"question {number}", f"answer {number}") for number in range(40)]
TABLE = "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in PAIRS)
CHINESE = "question,answer\n几天内可以退货？,二十一天\n保修多久？,两年\n"


def made(tmp_path: Path, name: str, content: str | bytes, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """Process a file of this content; return the rows of each file written."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    process.process(tmp_path / name, tmp_path / "out", **{"columns": COLUMNS, "eval_share": 0, **settings})
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in (tmp_path / "out").glob("*.jsonl")
    }


def refusal(tmp_path: Path, name: str, content: str | bytes, **settings: Any) -> str:
    """Return the one line with which a file is refused; it names the file."""
    with pytest.raises(DataError) as refused:
        made(tmp_path, name, content, **settings)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / name}: ")
    assert "\n" not in text
    assert not (tmp_path / "out").exists()
    return text.removeprefix(f"{tmp_path / name}: ")


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (question, answer) of each row."""
    return [(row["instruction"], row["output"]) for row in rows]


# What it reads


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", TABLE),
        ("rows.CSV", TABLE.replace("\n", "\r\n")),
        ("rows.csv", TABLE.replace("\n", "\r")),
        ("rows.csv", "\n\n" + TABLE.replace("\n", "\n\n")),
        ("rows.csv", TABLE.rstrip("\n")),
        ("rows.tsv", TABLE.replace(",", "\t")),
        ("rows.jsonl", "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS)),
        ("rows.jsonl", "".join(json.dumps({"question": q, "answer": a}) + "\r\n\r\n" for q, a in PAIRS)),
        ("rows.json", json.dumps([{"question": q, "answer": a} for q, a in PAIRS], indent=2)),
    ],
)
def test_tables_and_records_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    """CSV, TSV, JSON and JSONL, with any line ends and with empty lines, give the same rows in the same order."""
    assert pairs(made(tmp_path, name, content)["train"]) == PAIRS


@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-8-sig", "UTF8"), ("gbk", "gb18030"), ("gbk", "gbk"),
        ("gb18030", "gb18030"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"), ("hz", "hz"),
    ],
)  # fmt: skip
def test_encodings_give_the_same_rows(tmp_path: Path, codec: str, encoding: str) -> None:
    """UTF-8 with and without a byte order mark, GBK, UTF-16 and others read the same when they are named."""
    rows = made(tmp_path, "rows.csv", CHINESE.encode(codec), encoding=encoding)["train"]
    assert pairs(rows) == [("几天内可以退货？", "二十一天"), ("保修多久？", "两年")]


def test_a_byte_order_mark_never_gets_into_a_column_name(tmp_path: Path) -> None:
    """A mark that the codec itself leaves in the text is taken off, in UTF-16-LE and GB18030 too."""
    for codec in ("utf-8", "utf-16-le", "gb18030"):
        assert len(made(tmp_path, "rows.csv", ("\ufeff" + CHINESE).encode(codec), encoding=codec)["train"]) == 2


def test_fields_keep_commas_quotes_and_lines(tmp_path: Path) -> None:
    """Quoted commas, doubled quotes and line breaks inside a field survive; blanks around a field do not."""
    rows = made(tmp_path, "rows.csv", 'question,answer\n" a, ""b"" ","one\r\ntwo"\n')["train"]
    assert pairs(rows) == [('a, "b"', "one\ntwo")]


def test_values_that_are_no_text_are_written_as_json(tmp_path: Path) -> None:
    """Numbers, truth values and lists of a JSON row become the text a reader expects; null is empty."""
    content = json.dumps([{"question": 7, "answer": [1, "二"], "more": True, "system": None}], ensure_ascii=False)
    rows = made(tmp_path, "r.json", content, columns={**COLUMNS, "input": "more", "system": "system"})["train"]
    assert rows == [{"instruction": "7", "input": "true", "output": '[1, "二"]', "system": ""}]


def test_an_optional_column_may_start_late(tmp_path: Path) -> None:
    """A JSON row may leave out a column that other rows have, also the first row."""
    content = '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d", "text": "e"}\n'
    rows = made(tmp_path, "r.jsonl", content, columns={**COLUMNS, "input": "text"})["train"]
    assert [row["input"] for row in rows] == ["", "e"]


def test_the_system_prompt_of_a_row_wins_over_the_common_one(tmp_path: Path) -> None:
    """data.system fills the rows whose own system column is empty, and no others."""
    content = "question,answer,role\na,b,clerk\nc,d,\n"
    rows = made(tmp_path, "r.csv", content, columns={**COLUMNS, "system": "role"}, system="help desk")["train"]
    assert [row["system"] for row in rows] == ["clerk", "help desk"]


# What it refuses


def test_a_gbk_file_is_one_line_that_names_gb18030(tmp_path: Path) -> None:
    """A file in GBK is refused as UTF-8 with the byte, the position and the setting that reads it."""
    said = refusal(tmp_path, "rows.csv", CHINESE.encode("gbk"))
    assert said == "byte 16 (0xbc) is not utf-8; it looks like GBK; set data.encoding (--encoding) to gb18030"
    assert len(made(tmp_path, "rows.csv", CHINESE.encode("gbk"), encoding="gb18030")["train"]) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.csv", CHINESE.encode("utf-16"), "it looks like UTF-16; set data.encoding (--encoding) to utf-16"),
        ("r.csv", b"", "the file is empty; give a file with a header line and rows"),
        ("r.csv", b"\xef\xbb\xbf \r\n\n", "the file is empty; "),
        ("r.jsonl", b"\n\n", "the file is empty; "),
        ("r.csv", "question,answer\n", "no row is left to train on (0 read); give more rows"),
        ("r.json", "[]", "no row is left to train on (0 read); "),
        ("r.csv", bytes(range(256)) * 9, "byte 128 (0x80) is not utf-8; save it as UTF-8"),
        ("r.csv", b"question,answer\na\0b,c\n", "holds NUL characters, so it is no text file; save it as UTF-8 text"),
        ("r.xlsx", b"PK\x03\x04\xff\xfe", "unknown kind of file '.xlsx'; save it as .csv, .tsv, .json or .jsonl"),
        ("r", "question,answer\na,b\n", "unknown kind of file ''; "),
        ("r.json", "[{]", "not valid JSON: "),
        ("r.json", "[" * 100_000, "not valid JSON: maximum recursion depth exceeded"),
        ("r.json", "[1, 2]", "2 of 2 rows cannot be used (100.0%): 2 x not an object with fields (first in line 1)"),
        ("r.csv", 'question,answer\na,b\n"c,d\ne,f\n', "a quote opened in the row of line 3 is never closed; "),
        ("r.csv", "question,question,answer\na,b,c\n", "the column 'question' comes twice; give each column a name"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    """Empty, header only, binary, broken and unknown files: one line with the remedy each, and nothing is written."""
    assert said in refusal(tmp_path, name, content)


@pytest.mark.parametrize("encoding", ["klingon", "base64", ""])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    """An encoding that does not exist, or is none for text, is named with two that are."""
    assert refusal(tmp_path, "r.csv", TABLE, encoding=encoding) == (
        f"unknown encoding {encoding!r}; use utf-8 or gb18030"
    )


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A path without a file, or that of a folder, is one line."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="no such file; give a CSV, TSV, JSON or JSONL file that exists"):
            process.process(path, tmp_path / "out", COLUMNS)


@pytest.mark.parametrize(
    "content", ["Question,reply,区域\na,b,c\n", "question;answer\na;b\n", '[{"q": "a", "a": "b"}]']
)
def test_missing_columns_list_those_there_are(tmp_path: Path, content: str) -> None:
    """All missing columns are named at once, with the columns the file has and the setting to change."""
    name = "r.json" if content.startswith("[") else "r.csv"
    there = "q, a" if name == "r.json" else ", ".join(content.splitlines()[0].split(","))
    assert refusal(tmp_path, name, content) == (
        "there is no instruction column 'question' and no output column 'answer'; "
        f"the columns are: {there}; set data.columns (--instruction_col, --output_col)"
    )


# What becomes of each row


def test_unusable_rows_are_kept_with_line_and_reason(tmp_path: Path) -> None:
    """Ragged rows, empty cells and broken quotes are set aside in rejected.jsonl; the good rows are used."""
    content = 'question,answer\na,b\nc\nd,e,f\n ,g\nh,\n"i\n"j,k\nl,m\n'
    rows = made(tmp_path, "r.csv", content, max_rejected=1)
    assert pairs(rows["train"]) == [("a", "b"), ("l", "m")]
    assert [(row["file"], row["line"], row["reason"].split(":")[0]) for row in rows["rejected"]] == [
        ("r.csv", 3, "1 fields where the header has 2"),
        ("r.csv", 4, "3 fields where the header has 2"),
        ("r.csv", 5, "empty question"),
        ("r.csv", 6, "empty answer"),
        ("r.csv", 7, "not readable as CSV"),
    ]
    assert "(up to line 8)" in rows["rejected"][-1]["reason"]


def test_broken_records_are_kept_with_line_and_reason(tmp_path: Path) -> None:
    """A line of JSONL that is no JSON, no object, too deep or holds half a character does not stop the others."""
    good = '{"question": "a", "answer": "b"}'
    lines = [good, '{"question":', "[1]", '{"question": "\\ud83d", "answer": "b"}', "[" * 100_000, '{"answer": "b"}']
    rows = made(tmp_path, "r.jsonl", "\n".join(lines), max_rejected=1)
    assert pairs(rows["train"]) == [("a", "b")]
    reasons = {row["line"]: row["reason"] for row in rows["rejected"]}
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert reasons[3] == "not an object with fields"
    assert reasons[4] == "half of a character (an unpaired surrogate)"
    assert reasons[6] == "empty question"


def test_more_unusable_rows_than_allowed_stop_the_stage(tmp_path: Path) -> None:
    """At the allowed share the stage runs; one row beyond it is refused with counts, reasons, lines and the setting."""
    table = TABLE + "only a question,\n"
    assert len(made(tmp_path, "r.csv", table, max_rejected=1 / 41)["rejected"]) == 1
    (tmp_path / "out").rename(tmp_path / "kept")
    said = refusal(tmp_path, "r.csv", table + "a,b,c\n", max_rejected=1 / 41)
    assert said.startswith("2 of 42 rows cannot be used (4.8%): 1 x empty answer (first in line 42), 1 x 3 fields")
    assert said.endswith("correct them, or allow more than 2.4% with data.max_rejected (--max_rejected)")
    assert "1 of 41 rows" in refusal(tmp_path, "r.csv", table)


def test_rows_that_clean_to_the_same_are_merged(tmp_path: Path) -> None:
    """Repeated rows are counted and used once; the same question with another answer is another row."""
    content = "question,answer\na,b\n a ,b\r\na,c\na,b\n"
    rows = made(tmp_path, "r.csv", content)
    assert pairs(rows["train"]) == [("a", "b"), ("a", "c")]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {"read": 4, "train": 2, "eval": 0, "duplicates": 2, "rejected": 0}


def generated(seed: int) -> tuple[str, dict[str, int]]:
    """Write a table of random good, repeated, empty and ragged rows; return it and how many there are of each."""
    chance = random.Random(seed)
    text = io.StringIO()
    writer = csv.writer(text, quoting=chance.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), lineterminator="\n")
    writer.writerow(["id", "question", "answer"])
    counts, good = {"good": 0, "duplicates": 0, "rejected": 0}, []
    for number in range(chance.randrange(1, 60)):
        kind = chance.choices(["good", "duplicate", "empty", "ragged"], [6, 2, 1, 1])[0]
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
    """In 300 random tables the rows in are exactly those kept, merged and rejected, kind by kind."""
    kept = 0
    for seed in range(300):
        text, counts = generated(seed)
        path = tmp_path / "rows.csv"
        path.write_text(text, encoding="utf-8", newline="")
        account = process.collect(path, COLUMNS, "utf-8", None, eval_share=0.3)
        found = {"good": len(account.train) + len(account.eval), "duplicates": account.duplicates,
                 "rejected": len(account.rejected)}  # fmt: skip
        assert found == counts, f"seed {seed}"
        assert account.read == sum(counts.values()), f"seed {seed}"
        assert len(account.checks) == counts["good"]
        kept += counts["good"]
    assert kept > 3000


# The split


def split(tmp_path: Path, questions: list[str], share: float = 0.25) -> tuple[set[str], set[str]]:
    """Return the questions trained on and those held out."""
    table = "question,answer\n" + "".join(f"{question},{n}\n" for n, question in enumerate(questions))
    rows = made(tmp_path, "r.csv", table, eval_share=share)
    return tuple({row["instruction"] for row in rows[name]} for name in ("train", "eval"))  # type: ignore[return-value]


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
    table = "question,material,answer\n" + "".join(f"q{n % 50},m{n % 3},a{n}\n" for n in range(600))
    rows = made(tmp_path, "r.csv", table, eval_share=0.4, columns={**COLUMNS, "input": "material"})
    train, held = ({row["instruction"] for row in rows[name]} for name in ("train", "eval"))
    assert train | held == {f"q{n}" for n in range(50)} and train & held == set() and train and held


# What it writes


def test_columns_that_are_not_learnt_reach_the_checks(tmp_path: Path) -> None:
    """Every other column of a row is kept in checks.jsonl under `columns`, whatever it is called."""
    content = "question,answer,columns,split,output,facts\na,b,1,2,3,4\n"
    rows = made(tmp_path, "r.csv", content)
    assert rows["checks"] == [
        {"instruction": "a", "input": "", "output": "b", "system": "", "split": "train",
         "columns": {"columns": "1", "split": "2", "output": "3", "facts": "4"}}
    ]  # fmt: skip
    assert set(rows["train"][0]) == {"instruction", "input", "output", "system"}


def test_each_line_is_one_row_for_every_reader(tmp_path: Path) -> None:
    """Characters that some readers take for line ends stay inside their row and come back as they were."""
    question = "a\u2028b\u2029c\x85d"
    rows = made(tmp_path, "r.csv", f'question,answer\n"{question}",e\nf,g\n')
    assert rows["train"][0]["instruction"] == question
    text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["output"] for line in text.splitlines()] == ["e", "g"]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    """The files hold nothing of the time or the place: the same rows give the same bytes."""
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        made(tmp_path / folder, "rows.csv", TABLE, eval_share=0.2)
        files = sorted((tmp_path / folder / "out").iterdir())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert set(written[0]) == {"train.jsonl", "eval.jsonl", "checks.jsonl", "rejected.jsonl", "dataset_info.json",
                               "report.json"}  # fmt: skip


LOADER = """
import json, os, sys
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

folder = sys.argv[1]
data = DataArguments(dataset="train", dataset_dir=folder, template="qwen")
model = ModelArguments(model_name_or_path=folder, cache_dir=os.path.join(folder, "cache"))
training = Seq2SeqTrainingArguments(output_dir=os.path.join(folder, "out"), use_cpu=True, report_to="none")
rows = []
for name in ("train", "eval"):
    attributes = get_dataset_list([name], folder)[0]
    for row in _load_single_dataset(attributes, model, data, training):
        rows.append([name, row["_prompt"], row["_response"], row["_system"]])
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_llama_factory_loads_every_row_as_it_was_meant(tmp_path: Path) -> None:
    """LLaMA Factory's own loader reads the folder: prompt with its material, answer, system prompt, none lost."""
    table = "question,text,answer,role\n" + "".join(
        f'"q{n}\u2028, ""{n}""",{"m" if n % 2 else ""},答{n},{"r" if n % 3 else ""}\n' for n in range(30)
    )
    rows = made(
        tmp_path, "r.csv", table, columns={**COLUMNS, "input": "text", "system": "role"}, system="S", eval_share=0.2
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, tmp_path / "out"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [
        [
            name,
            [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row["input"])))}],
            [{"role": "assistant", "content": row["output"]}],
            row["system"],
        ]
        for name in ("train", "eval")
        for row in rows[name]
    ]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert len(expected) == 30
