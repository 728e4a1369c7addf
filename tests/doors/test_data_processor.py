"""data_processor.py, exactly as the documentation calls it, by a Python that has nothing installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doors_run import BARE, DOORS, refused, run

SCRIPT = DOORS / "data_processor.py"
COMMAND = ("--output", "./processed_data", "--instruction_col", "question", "--output_col", "answer")
ROWS = "id,question,answer\n" + "".join(f"{n},q{n},a{n}\n" for n in range(50))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with your_data.csv and nothing else."""
    (tmp_path / "your_data.csv").write_text(ROWS, encoding="utf-8")
    return tmp_path


def test_the_documented_command_works_in_an_empty_folder(here: Path) -> None:
    """The command writes processed_data beside the file and says what became of the rows."""
    done = run(*BARE, SCRIPT, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert (done.code, done.err) == (0, "")
    made = here / "processed_data"
    kept = {name: len((made / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "eval", "checks")}
    assert kept["train"] + kept["eval"] == kept["checks"] == 50
    assert done.out == (
        f"50 rows = {kept['train']} to train on + {kept['eval']} held out + 0 duplicates + 0 rejected\n"
        "written to processed_data\n"
    )
    assert json.loads((made / "dataset_info.json").read_text())["train"]["file_name"] == "train.jsonl"


def test_it_works_from_another_folder_and_again(here: Path) -> None:
    """Paths are relative to where it is called, not to the repository; a second run gives the same bytes."""
    away = here / "away"
    away.mkdir()
    for _ in range(2):
        done = run(*BARE, SCRIPT, "--input", "../your_data.csv", *COMMAND, "--quiet", cwd=away)
        assert (done.code, done.out, done.err) == (0, "", "")
        written = {path.name: path.read_bytes() for path in (away / "processed_data").iterdir()}
    run(*BARE, SCRIPT, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert {path.name: path.read_bytes() for path in (here / "processed_data").iterdir()} == written


def test_options_reach_the_rows(here: Path) -> None:
    """System prompt, material, share held out and encoding given on the command line are used."""
    (here / "my rows 数据.csv").write_bytes("问,答,材料\n几天？,七天,甲\n".encode("gbk"))
    done = run(
        *BARE, SCRIPT, "--input", "my rows 数据.csv", "--output", "out put", "--instruction_col", "问",
        "--output_col", "答", "--input_col", "材料", "--system", "你是小砚", "--encoding", "gb18030",
        "--eval_share", "0", cwd=here,
    )  # fmt: skip
    assert done.code == 0, done.err
    row = json.loads((here / "out put" / "train.jsonl").read_text(encoding="utf-8"))
    assert row == {"instruction": "几天？", "input": "甲", "output": "七天", "system": "你是小砚"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "a,b\n1,2\n",
            "there is no instruction column 'question' and no output column 'answer'; the columns are: a, b",
        ),
        ("question,answer\n退货,七天\n".encode("gbk"), "it looks like GBK; set data.encoding (--encoding) to gb18030"),
        ("", "the file is empty; give a file with a header line and rows"),
    ],
)
def test_bad_rows_end_with_4_and_one_line(here: Path, content: str | bytes, said: str) -> None:
    """Missing columns, GBK and an empty file: code 4, one line with file and remedy, nothing written."""
    (here / "bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(4, *BARE, SCRIPT, "--input", "bad.csv", *COMMAND, cwd=here)
    assert line.startswith("bad.csv: ") and said in line
    assert not (here / "processed_data").exists()


def test_a_file_that_is_not_there_ends_with_4(here: Path) -> None:
    """A mistyped file name is one line."""
    line = refused(4, *BARE, SCRIPT, "--input", "my.csv", *COMMAND, cwd=here)
    assert line == "my.csv: no such file; give a CSV, TSV, JSON or JSONL file that exists"


def test_an_output_that_is_a_file_ends_with_10(here: Path) -> None:
    """A place that cannot be written is one line with code 10."""
    (here / "processed_data").write_text("in the way")
    assert "processed_data" in refused(10, *BARE, SCRIPT, "--input", "your_data.csv", *COMMAND, cwd=here)
    assert (here / "processed_data").read_text() == "in the way"


@pytest.mark.parametrize(
    "words", [["--input", "your_data.csv"], ["--outputs", "x"], [*COMMAND, "--input", "x", "--eval_share", "2"]]
)
def test_a_wrong_option_ends_with_2(here: Path, words: list[str]) -> None:
    """A missing, unknown or impossible option ends with code 2 and the usage."""
    done = run(*BARE, SCRIPT, *words, cwd=here)
    assert done.code == 2
    assert done.err.startswith("usage: data_processor.py")


def test_help_explains_every_option() -> None:
    """--help works without packages and gives each option a sentence or a default."""
    done = run(*BARE, SCRIPT, "--help")
    assert (done.code, done.err) == (0, "")
    for name in ("input", "output", "instruction_col", "output_col", "encoding", "eval_share", "max_rejected"):
        assert f"--{name} " in done.out
