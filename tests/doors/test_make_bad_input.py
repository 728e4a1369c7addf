"""Bad input to `make data`: what is wrong, the remedy, the listed exit code, no traceback, nothing taken as done."""

from __future__ import annotations

from pathlib import Path

import pytest
from doors_run import make_refuses
from tests.graph.scratch import Repo

ROWS = "question,answer\n" + "".join(f"question {n},answer {n}\n" for n in range(40))


def scenario(repo: Repo, name: str, content: str | bytes, more: str = "") -> Path:
    """Write a scenario with rows of its own; return the file of its rows."""
    rows = repo.root / "data" / f"{name}.csv"
    rows.write_bytes(content if isinstance(content, bytes) else content.encode())
    (repo.root / "configs" / "scenarios" / f"{name}.yaml").write_text(
        f"# {name}: rows of a test\nmodel: smollm2-135m\ndata:\n  path: data/{name}.csv\n"
        f"  columns: {{instruction: question, output: answer}}\n{more}",
        encoding="utf-8",
    )
    return rows


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("columns", "Frage,Antwort\na,b\n",
         "there is no instruction column 'question' and no output column 'answer'; "
         "the columns are: Frage, Antwort; set data.columns (--instruction_col, --output_col)"),
        ("gbk", "question,answer\n退货,七天\n".encode("gbk"),
         "byte 16 (0xcd) is not utf-8; it looks like GBK; set data.encoding (--encoding) to gb18030"),
        ("utf16", "question,answer\n退货,七天\n".encode("utf-16"),
         "byte 0 (0xff) is not utf-8; it looks like UTF-16; set data.encoding (--encoding) to utf-16"),
        ("empty", "", "the file is empty; give a file with a header line and rows"),
        ("header", "question,answer\n",
         "no row is left to train on (0 read); give more rows, or lower data.eval_share (--eval_share)"),
        ("ragged", ROWS + "a,b,c\n",
         "1 of 41 rows cannot be used (2.4%): 1 x 3 fields where the header has 2 (first in line 42); "
         "correct them, or allow more than 0.5% with data.max_rejected (--max_rejected)"),
    ],
)  # fmt: skip
def test_bad_rows_end_with_4_and_one_line(repo: Repo, name: str, content: str | bytes, said: str) -> None:
    """Each kind of bad rows is one line with file and remedy, code 4, and leaves no result."""
    scenario(repo, name, content)
    assert make_refuses(repo, 4, "data", SCENARIO=name) == f"data/{name}.csv: {said}"
    assert not (repo.build / name / "cpu" / "data").exists()
    assert not (repo.build / name / "cpu" / ".state" / "data.done").exists()


def test_mended_rows_are_made(repo: Repo) -> None:
    """After a refusal the mended file is read, and the next make has nothing to do."""
    rows = scenario(repo, "mended", "")
    make_refuses(repo, 4, "data", SCENARIO="mended")
    rows.write_text(ROWS)
    made = repo.make("data", SCENARIO="mended")
    assert made.code == 0, made.err
    assert "40 rows = " in made.out
    assert repo.make("data", SCENARIO="mended").out == ""


def test_a_byte_order_mark_is_no_problem(repo: Repo) -> None:
    """A CSV that a spreadsheet wrote as UTF-8 with a byte order mark works as it is."""
    scenario(repo, "marked", b"\xef\xbb\xbf" + ROWS.encode())
    made = repo.make("data", SCENARIO="marked")
    assert (made.code, made.err) == (0, "")
    assert "40 rows = " in made.out


def test_gbk_works_once_it_is_named(repo: Repo) -> None:
    """The setting that the refusal names reads the file, from SET too."""
    scenario(repo, "named", ROWS.replace("answer ", "答").encode("gbk"))
    assert "gb18030" in make_refuses(repo, 4, "data", SCENARIO="named")
    made = repo.make("data", SCENARIO="named", SET="data.encoding=gb18030")
    assert made.code == 0, made.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"SCENARIO": "no-such"}, "there is no configs/scenarios/no-such.yaml; there are: "),
        ({"PROFILE": "huge"}, "there is no configs/profiles/huge.yaml; there are: "),
        ({"MODEL": "smollm3"}, "configs/models/smollm3.yaml: there is no model named smollm3; did you mean smollm2-"),
        ({"MODEL": "chatglm3-6b"}, "model chatglm3-6b is retired: "),
        ({"SET": "train.lora_rank"}, "SET: 'train.lora_rank' is not key=value; write for example SET="),
        ({"SET": "ask.show=[a"}, "SET: ask.show: '[a' is not a YAML value; put it in quotes"),
        ({"SET": 'data.system="a'}, 'SET: data.system="a: no closing quotation; close the quote'),
    ],
)  # fmt: skip
def test_a_wrong_name_or_set_ends_with_3_and_one_line(repo: Repo, settings: dict[str, str], said: str) -> None:
    """An unknown scenario, profile or model and an unreadable SET: one line with what there is, code 3."""
    line = make_refuses(repo, 3, "data", **settings)
    assert line.startswith(said)
    assert "\n" not in line


@pytest.mark.parametrize("goal", ["data", "plan", "status", "verify"])
def test_a_wrong_key_ends_with_3_for_every_goal(repo: Repo, goal: str) -> None:
    """Typos in SET stop every goal that reads the configuration, both at once, each with the right key."""
    said = make_refuses(repo, 3, goal, SET="train.lrate=1 serve.prot=2")
    assert said.splitlines() == [
        "SET: 2 problems",
        "  serve.prot: unknown key; did you mean serve.port?",
        "  train.lrate: unknown key; did you mean train.learning_rate?",
    ]


def test_rows_that_went_missing_end_with_3(repo: Repo) -> None:
    """A scenario whose file is gone says so with key and file, also after it was made once."""
    rows = scenario(repo, "gone", ROWS)
    assert repo.make("data", SCENARIO="gone").code == 0
    rows.unlink()
    said = make_refuses(repo, 3, "data", SCENARIO="gone").splitlines()
    assert said == [
        "configs/scenarios/gone.yaml: 1 problem",
        "  data.path: data/gone.csv: no such file; give a path that exists",
    ]


def test_a_question_that_is_not_there_ends_with_2(repo: Repo) -> None:
    """`make ask` without Q is code 2 with an example."""
    assert make_refuses(repo, 2, "ask").startswith("there is no question; write make ask Q=")
