"""`make new`: a scenario for the user's own file, which then just works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from doors_run import make_refuses
from tests.graph.scratch import Repo


def table(path: Path, instruction: str = "question", output: str = "answer", codec: str = "utf-8") -> Path:
    """Write 30 rows with these column names, quoted as CSV wants it."""
    header = ",".join('"' + name.replace('"', '""') + '"' for name in ("id", instruction, output))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + "\n" + "".join(f"{n},问题 {n},答案 {n}\n" for n in range(30))).encode(codec))
    return path


def rows(repo: Repo, name: str) -> list[tuple[str, str]]:
    """Return (question, answer) of every row that a scenario's data stage kept, in the order of the file's ids."""
    kept = (repo.build / name / "cpu" / "data" / "checks.jsonl").read_text(encoding="utf-8").splitlines()
    ordered = sorted(map(json.loads, kept), key=lambda row: int(row["columns"]["id"]))
    return [(row["instruction"], row["output"]) for row in ordered]


NO_NAME = "cannot name a file; use small letters, digits, '-', '_' and '.'"
EXPECTED = [(f"问题 {n}", f"答案 {n}") for n in range(30)]


def test_the_documented_commands_work(repo: Repo) -> None:
    """A scenario made from a file and two columns is commented and valid: data, plan and help take it at once."""
    table(repo.root / "my.csv")
    made = repo.make("new", SCENARIO="mine", INPUT="my.csv", INSTRUCTION_COL="question", OUTPUT_COL="answer")
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines() == [
        "new     configs/scenarios/mine.yaml: question -> answer from my.csv (utf-8)",
        "next:   make plan SCENARIO=mine, then make serve SCENARIO=mine",
    ]
    text = (repo.root / "configs" / "scenarios" / "mine.yaml").read_text(encoding="utf-8")
    assert text.count("#") > 8
    data = yaml.safe_load(text)["data"]
    assert data == {"path": "my.csv", "columns": {"instruction": "question", "output": "answer"}, "eval_share": 0.1}
    made = repo.make("data", SCENARIO="mine")
    assert made.code == 0, made.err
    assert rows(repo, "mine") == EXPECTED
    plan = repo.make("plan", SCENARIO="mine")
    assert plan.code == 0, plan.err
    assert "data    up to date" in plan.out
    assert "  mine                     mine: answers learnt from my.csv." in repo.make().out


@pytest.mark.parametrize(
    ("name", "file", "instruction", "output"),
    [
        ("blanks", "my rows/客服 问答 (1).csv", "the question", "the answer"),
        ("chinese", "数据/问答.csv", "问题", "答案"),
        ("quotes", 'odd "rows".csv', 'the "question"', "answer: [1]"),
        ("yaml", "- rows #1.csv", "null", "yes"),
        ("absolute", "/", "question", "answer"),
        ("tab.2_x-y", "rows.csv", "{question}", "%answer%"),
        ("apostrophe", "it's.csv", "customer's", "answer"),
    ],
)
def test_odd_files_and_columns_work(
    repo: Repo, tmp_path: Path, name: str, file: str, instruction: str, output: str
) -> None:
    """Blanks, Chinese, quotes and YAML's own characters in paths and columns come through unharmed."""
    path = tmp_path / "rows.csv" if file == "/" else repo.root / file
    table(path, instruction, output)
    given = str(path) if file == "/" else file
    made = repo.make("new", SCENARIO=name, INPUT=given, INSTRUCTION_COL=instruction, OUTPUT_COL=output)
    assert made.code == 0, made.err
    made = repo.make("data", SCENARIO=name)
    assert made.code == 0, made.err
    assert rows(repo, name) == EXPECTED


@pytest.mark.parametrize(
    ("codec", "name_of_it"),
    [("gb18030", "gb18030"), ("utf-16", "utf-16"), ("utf-8-sig", "utf-8 with byte order mark"), ("utf-8", "utf-8")],
)
def test_the_encoding_is_found(repo: Repo, codec: str, name_of_it: str) -> None:
    """A file in GBK or UTF-16, or with a byte order mark, gets a scenario that reads it; make says what it is in."""
    name = f"in-{codec}"
    table(repo.root / f"{name}.csv", "问题", "答案", codec)
    made = repo.make("new", SCENARIO=name, INPUT=f"{name}.csv", INSTRUCTION_COL="问题", OUTPUT_COL="答案")
    assert made.code == 0, made.err
    assert f" from {name}.csv ({name_of_it})\n" in made.out
    assert "encoding" not in (repo.root / "configs" / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
    assert repo.make("data", SCENARIO=name).code == 0
    assert rows(repo, name) == EXPECTED


def test_without_columns_the_first_two_are_taken_and_named(repo: Repo) -> None:
    """Columns that are not given are the first and the second, and make says which they are."""
    (repo.root / "two.jsonl").write_text('{"ask": "a", "say": "b"}\n', encoding="utf-8")
    made = repo.make("new", SCENARIO="two", INPUT="two.jsonl")
    assert "two.yaml: ask -> say from two.jsonl (utf-8)" in made.out


@pytest.mark.parametrize(
    ("code", "settings", "said"),
    [
        (4, {"INSTRUCTION_COL": "qestion", "OUTPUT_COL": "reply"},
         "rows.csv: there is no column qestion and no reply; the columns are: id, question, answer; "
         "set INSTRUCTION_COL and OUTPUT_COL"),
        (4, {"INSTRUCTION_COL": "answer", "OUTPUT_COL": "answer"},
         "rows.csv: 'answer' cannot be both the question and the answer; the columns are: id, question, answer; "
         "set INSTRUCTION_COL and OUTPUT_COL"),
        (4, {"INPUT": "none.csv"},
         "none.csv: no such file; give a CSV, TSV, XLSX, JSON, JSONL or Parquet file, or a folder of them"),
        (4, {"INPUT": "empty.csv"}, "empty.csv: the file is empty; give a file with a header line and rows"),
        (4, {"INPUT": "header.csv"}, "header.csv: has no readable row; give a file with a header line and rows"),
        (4, {"INPUT": "rows.xls"},
         "rows.xls: unknown kind of file '.xls'; save it as one of .csv, .tsv, .xlsx, .json, .jsonl, .ndjson, "
         ".parquet, also with .gz, .zst, .zstd"),
        (4, {"INPUT": "broken.xlsx"},
         "broken.xlsx: cannot be read as .xlsx (CalamineError: Cannot detect file format); save it again in a "
         "spreadsheet program, without a password"),
        (2, {"INPUT": ""}, "there is no INPUT; write make new SCENARIO=mine INPUT=my.csv"),
        (2, {"SCENARIO": "customer-service"},
         "configs/scenarios/customer-service.yaml exists; choose another SCENARIO, or delete it"),
        (2, {"SCENARIO": "Mine"}, f"SCENARIO=Mine {NO_NAME}"),
        (2, {"SCENARIO": "../mine"}, f"SCENARIO=../mine {NO_NAME}"),
        (2, {"SCENARIO": "我的"}, f"SCENARIO=我的 {NO_NAME}"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_scenario_is_refused(repo: Repo, code: int, settings: dict[str, str], said: str) -> None:
    """A wrong column, file or name is one line with the remedy and its code, and no scenario is written."""
    table(repo.root / "rows.csv")
    (repo.root / "empty.csv").write_text("")
    (repo.root / "header.csv").write_text("question,answer\n")
    for name in ("rows.xls", "broken.xlsx"):
        (repo.root / name).write_bytes(b"PK\x03\x04\xff\xfe\x00\x00")
    (repo.root / "configs" / "scenarios" / "refused.yaml").unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in (repo.root / "configs").rglob("*.yaml")}
    assert make_refuses(repo, code, "new", **{"SCENARIO": "refused", "INPUT": "rows.csv", **settings}) == said
    assert {path: path.read_bytes() for path in (repo.root / "configs").rglob("*.yaml")} == before
