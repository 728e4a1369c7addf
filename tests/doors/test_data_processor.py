"""data_processor.py, exactly as the documentation calls it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from doors_run import BARE, DOORS, refused, run

SCRIPT = DOORS / "data_processor.py"
CALL = (sys.executable, SCRIPT)
COMMAND = ("--output", "./processed_data", "--instruction_col", "question", "--output_col", "answer")
ROWS = "id,question,answer\n" + "".join(f"{n},q{n},a{n}\n" for n in range(50))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with your_data.csv and nothing else."""
    (tmp_path / "your_data.csv").write_text(ROWS, encoding="utf-8")
    return tmp_path


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    """Return the rows of a file written."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_documented_command_works_in_an_empty_folder(here: Path) -> None:
    """The command writes processed_data beside the file, says what became of the rows and names the report."""
    done = run(*CALL, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert (done.code, done.err) == (0, "")
    made = here / "processed_data"
    kept = {name: len(rows(made, name)) for name in ("train", "eval", "checks")}
    assert kept["train"] + kept["eval"] == kept["checks"] == 50
    assert done.out == (
        f"50 rows = {kept['train']} to train on + {kept['eval']} held out + 0 duplicates + 0 rejected\n"
        "written to processed_data; see report.html there\n"
    )
    assert json.loads((made / "dataset_info.json").read_text())["train"]["file_name"] == "train.jsonl"
    assert "your_data.csv" in (made / "report.html").read_text(encoding="utf-8")


def test_columns_are_found_without_being_named(here: Path) -> None:
    """Without column options the usual names are found, and the same files are written."""
    for more in ([], COMMAND[2:]):
        done = run(*CALL, "--input", "your_data.csv", "--output", "out", *more, "--quiet", cwd=here)
        assert (done.code, done.out, done.err) == (0, "", "")
        written = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
        (here / "out").rename(here / f"out{len(more)}")
    assert {path.name: path.read_bytes() for path in (here / "out0").iterdir()} == written


def test_it_works_from_another_folder_and_again(here: Path) -> None:
    """Paths are relative to where it is called, not to the repository; a second run gives the same bytes."""
    away = here / "away"
    away.mkdir()
    for _ in range(2):
        done = run(*CALL, "--input", "../your_data.csv", *COMMAND, "--quiet", cwd=away)
        assert (done.code, done.out, done.err) == (0, "", "")
        written = {path.name: path.read_bytes() for path in (away / "processed_data").iterdir()}
    run(*CALL, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert {path.name: path.read_bytes() for path in (here / "processed_data").iterdir()} == written


def test_several_files_and_folders_are_one_dataset(here: Path) -> None:
    """--input takes files and folders of different kinds; rows they share are merged, each file has its name."""
    (here / "more").mkdir()
    talk = {"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]}
    (here / "more" / "chat.jsonl").write_text(json.dumps(talk) + "\n")
    (here / "more" / "old.tsv.gz").write_bytes(gzip.compress("问\t答\n几天？\t七天\n几周？\t\n".encode("gb18030")))
    done = run(*CALL, "--input", "your_data.csv", "more", "--output", "out", "--max_rejected", "1", cwd=here)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("53 rows = ") and "+ 1 duplicates + 1 rejected" in done.out
    assert [(row["file"], row["line"], row["reason"]) for row in rows(here / "out", "rejected")] == [
        ("more/old.tsv.gz", 3, "empty-answer")
    ]
    assert [(row["file"], row["kept_file"]) for row in rows(here / "out", "duplicates")] == [
        ("your_data.csv", "more/chat.jsonl")
    ]


def test_options_reach_the_rows(here: Path) -> None:
    """System prompt, material, share held out and encoding given on the command line are used."""
    (here / "my rows 数据.csv").write_bytes("问,答,材料,角色,之前\n几天？,七天,甲,,\n".encode("gbk"))
    done = run(
        *CALL, "--input", "my rows 数据.csv", "--output", "out put", "--instruction_col", "问",
        "--output_col", "答", "--input_col", "材料", "--system_col", "角色", "--history_col", "之前",
        "--system", "你是小砚", "--encoding", "gb18030", "--eval_share", "0", cwd=here,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert rows(here / "out put", "train") == [
        {"instruction": "几天？", "input": "甲", "output": "七天", "system": "你是小砚"}
    ]


def test_personal_data_and_length_follow_their_options(here: Path) -> None:
    """--personal and --max_chars decide about rows that are otherwise good."""
    (here / "r.csv").write_text("问,答\n我的电话是13912345678,好的\n长,一二三四五六七八九十\n短,一\n", encoding="utf-8")
    for personal, questions in (("mask", {"我的电话是[MOBILE]", "短"}), ("drop", {"短"})):
        done = run(
            *CALL, "--input", "r.csv", "--output", personal, "--personal", personal, "--max_chars", "16",
            "--max_rejected", "1", "--eval_share", "0", "--steps=-near", cwd=here,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert {row["instruction"] for row in rows(here / personal, "train")} == questions | {"长"}
    done = run(*CALL, "--input", "r.csv", "--output", "out", "--max_chars", "9", "--max_rejected", "1", cwd=here)
    assert [(row["line"], row["reason"]) for row in rows(here / "out", "rejected")] == [
        (2, "too-long"), (3, "too-long")
    ]  # fmt: skip


def test_rows_to_evaluate_on_may_be_given(here: Path) -> None:
    """--eval_input holds out its own rows and no others."""
    (here / "held.jsonl").write_text('{"question": "q7", "answer": "another"}\n{"question": "new", "answer": "n"}\n')
    done = run(*CALL, "--input", "your_data.csv", "--eval_input", "held.jsonl", "--output", "out", cwd=here)
    assert done.code == 0, done.err
    assert {row["instruction"] for row in rows(here / "out", "eval")} == {"q7", "new"}
    assert done.out.startswith("52 rows = 49 to train on + 2 held out + 1 duplicates + 0 rejected\n")


@pytest.mark.parametrize(
    ("steps", "train", "page"),
    [
        ("-exact,-near", 2, True),
        ("exact", 1, False),
        ("near,report", 1, True),
        ("-report", 1, False),
        ("read", 2, False),
    ],
)
def test_steps_can_be_named_or_left_out(here: Path, steps: str, train: int, page: bool) -> None:
    """--steps takes the names of steps to do, or with a minus of those not to do."""
    (here / "r.csv").write_text("question,answer\nWhere is it?,Here.\nWhere is it?,Here.\n")
    done = run(*CALL, "--input", "r.csv", "--output", "out", "--eval_share", "0", f"--steps={steps}", cwd=here)
    assert done.code == 0, done.err
    assert len(rows(here / "out", "train")) == train
    assert (here / "out" / "report.html").exists() == page


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "a,b\n1,2\n",
            "there is no instruction column 'question' and no output column 'answer'; the columns are: a, b",
        ),
        ("question,answer\n製品の保証,期間はどのくらいですか\n".encode("shift-jis"), "is neither UTF-8 nor GB18030; "),
        ("", "the file is empty; give a file with a header line and rows"),
        ("question,answer\na,\n", "1 of 1 rows cannot be used (100.0%): 1 x the answer is empty (first in line 2); "),
    ],
)
def test_bad_rows_end_with_4_and_one_line(here: Path, content: str | bytes, said: str) -> None:
    """Missing columns, a foreign encoding, an empty file and unusable rows: code 4, one line with file and remedy.

    No rows are written but those refused.
    """
    (here / "bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(4, *CALL, "--input", "bad.csv", *COMMAND, cwd=here)
    assert line.startswith("bad.csv: ") and said in line
    assert {path.name for path in (here / "processed_data").glob("*") if path.stat().st_size} <= {"rejected.jsonl"}


def test_what_is_not_there_ends_with_4(here: Path) -> None:
    """A mistyped file name, and a folder without rows, are one line."""
    line = refused(4, *CALL, "--input", "my.csv", *COMMAND, cwd=here)
    assert line == "my.csv: no such file; give a CSV, TSV, XLSX, JSON, JSONL or Parquet file, or a folder of them"
    (here / "nothing").mkdir()
    line = refused(4, *CALL, "--input", "nothing", *COMMAND, cwd=here)
    assert line.startswith("nothing: no file here that can be read; put in files that end in one of .csv, ")


def test_an_output_that_is_a_file_ends_with_10(here: Path) -> None:
    """A place that cannot be written is one line with code 10."""
    (here / "processed_data").write_text("in the way")
    assert "processed_data" in refused(10, *CALL, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert (here / "processed_data").read_text() == "in the way"


@pytest.mark.parametrize(
    "words",
    [
        ["--input", "your_data.csv"],
        ["--outputs", "x"],
        [*COMMAND, "--input"],
        [*COMMAND, "--input", "x", "--eval_share", "2"],
        [*COMMAND, "--input", "x", "--personal", "hide"],
        [*COMMAND, "--input", "x", "--steps", "-red"],
        [*COMMAND, "--input", "x", "--steps", "read,dedup"],
    ],
)
def test_a_wrong_option_ends_with_2(here: Path, words: list[str]) -> None:
    """A missing, unknown or impossible option ends with code 2 and the usage, before any package is needed."""
    done = run(*BARE, SCRIPT, *words, cwd=here)
    assert done.code == 2
    assert done.err.startswith("usage: data_processor.py")


def test_an_unknown_step_lists_those_there_are(here: Path) -> None:
    """A mistyped step is named with the steps that exist."""
    done = run(*BARE, SCRIPT, "--input", "x", *COMMAND, "--steps=-dedup", cwd=here)
    assert "there is no step '-dedup'; there are: read, normalise, personal, exact, near, split," in done.err


def test_help_explains_every_option() -> None:
    """--help works without packages and gives each option a sentence or a default."""
    done = run(*BARE, SCRIPT, "--help")
    assert (done.code, done.err) == (0, "")
    for name in (
        "input", "output", "eval_input", "instruction_col", "output_col", "input_col", "system_col", "history_col",
        "system", "encoding", "eval_share", "max_rejected", "personal", "max_chars", "steps", "model", "cutoff_len",
        "engine", "workers",
    ):  # fmt: skip
        assert f"--{name} " in done.out
