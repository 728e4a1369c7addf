"""Bad input to `make data`: what is wrong, the remedy, the listed exit code, no traceback, nothing taken as done."""

from __future__ import annotations

import gzip
import json
import re
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
        ("foreign", "question,answer\n製品の保証,期間はどのくらいですか\n".encode("shift-jis"),
         "byte 16 (0x90) is neither UTF-8 nor GB18030; "
         "save it as UTF-8, or name its encoding with data.encoding (--encoding)"),
        ("empty", "", "the file is empty; give a file with a header line and rows"),
        ("header", "question,answer\n",
         "no row is left to train on (0 read); give more rows, or lower data.eval_share (--eval_share)"),
        ("ragged", ROWS + "a,b,c\n",
         "1 of 41 rows cannot be used (2.4%): 1 x not as many fields as the header has (first in line 42); "
         "each is in build/ragged/cpu/.data.work/rejected.jsonl; "
         "correct them, or allow more than 0.5% with data.max_rejected (--max_rejected)"),
    ],
)  # fmt: skip
def test_bad_rows_end_with_4_and_one_line(repo: Repo, name: str, content: str | bytes, said: str) -> None:
    """Each kind of bad rows is one line with file and remedy, code 4, and leaves no result."""
    scenario(repo, name, content)
    assert make_refuses(repo, 4, "data", SCENARIO=name).removeprefix("data/") == f"{name}.csv: {said}"
    assert not (repo.build / name / "cpu" / "data").exists()
    assert not (repo.build / name / "cpu" / ".state" / "data.done").exists()


BAD = b"a,\nb\xff,c\nd,\ne,f,g\nh,\ni,j,k\nl\x07,m\n"  # 3 empty answers, 2 of too many fields, 2 damaged in two ways


def test_too_many_bad_rows_are_all_listed(repo: Repo) -> None:
    """The refusal names the three commonest reasons with their first lines, and a file that lists every bad row."""
    scenario(repo, "listed", ROWS.replace("answer ", "答案是").encode() + BAD)
    said = make_refuses(repo, 4, "data", SCENARIO="listed")
    assert said.startswith(
        "listed.csv: 7 of 47 rows cannot be used (14.9%): 3 x the answer is empty (first in line 42), "
        "2 x not as many fields as the header has (first in line 45), 1 x "
    )
    file = re.search(r"each is in (\S+);", said)
    assert file
    rows = [json.loads(line) for line in (repo.root / file[1]).read_text(encoding="utf-8").splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [
        (42, "empty-answer"), (43, "encoding"), (44, "empty-answer"), (45, "field-count"), (46, "empty-answer"),
        (47, "field-count"), (48, "control-character"),
    ]  # fmt: skip
    assert all(row["file"] == "listed.csv" and row["detail"] and row["remedy"] for row in rows)


def test_bad_rows_that_are_allowed_stop_nothing(repo: Repo) -> None:
    """Damaged bytes and a quote that is never closed cost their own rows only, where that many are allowed."""
    many = ROWS + "".join(f"question {n},答案是{n}\n" for n in range(40, 400))
    damaged = many.replace("是200\n", '是200\nx,"y\n').encode().replace("是300\n".encode(), b"\xff\n")
    scenario(repo, "allowed", damaged)
    made = repo.make("data", SCENARIO="allowed", SET="data.max_rejected=0.01")
    assert made.code == 0, made.err
    assert made.out.count("401 rows = ") == 1 and "+ 2 rejected" in made.out
    rejected = (repo.build / "allowed" / "cpu" / "data" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(row["line"], row["reason"]) for row in map(json.loads, rejected)] == [
        (203, "unclosed-quote"), (303, "encoding")
    ]  # fmt: skip


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


@pytest.mark.parametrize("codec", ["gbk", "gb18030", "utf-16"])
def test_another_encoding_is_no_problem(repo: Repo, codec: str) -> None:
    """A file in GBK or UTF-16 works as it is, gives the rows of one in UTF-8, and may be named all the same."""
    content, written = ROWS.replace("answer ", "答案是"), []
    for name in ("utf-8", codec):
        scenario(repo, f"from-{name}", content.encode(name))
        made = repo.make("data", SCENARIO=f"from-{name}")
        assert made.code == 0, made.err
        written.append((repo.build / f"from-{name}" / "cpu" / "data" / "train.jsonl").read_text(encoding="utf-8"))
    assert written[0] == written[1] and "答案是" in written[0]
    assert repo.make("data", SCENARIO=f"from-{codec}", SET=f"data.encoding={codec}").code == 0


def test_a_folder_of_files_is_one_set_of_rows(repo: Repo) -> None:
    """A folder with a CSV in GBK, a packed TSV and JSONL in a folder of its own, and no columns named, just works."""
    folder = repo.root / "data" / "all sorts"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("no rows")
    (folder / "a.csv").write_bytes(ROWS.replace("answer", "答案是").encode("gbk"))
    (folder / "b.tsv.gz").write_bytes(gzip.compress(ROWS.replace(",", "\t").replace("question", "ask").encode()))
    (folder / "deep" / "c.jsonl").write_text('{"instruction": "Which one?", "output": "This one."}\n')
    (repo.root / "configs" / "scenarios" / "sorts.yaml").write_text(
        "# files of all sorts\nmodel: smollm2-135m\ndata: {path: data/all sorts}\n", encoding="utf-8"
    )
    made = repo.make("data", SCENARIO="sorts")
    assert made.code == 0, made.err
    assert "81 rows = " in made.out and "+ 0 rejected" in made.out
    report = json.loads((repo.build / "sorts" / "cpu" / "data" / "report.json").read_text(encoding="utf-8"))
    assert [file["file"] for file in report["files"]] == ["a.csv", "b.tsv.gz", "deep/c.jsonl"]


def test_a_name_that_begins_with_a_dash_is_no_option(repo: Repo) -> None:
    """Rows in a file called -rows.csv are read as any others."""
    scenario(repo, "dash", ROWS).rename(repo.root / "-rows.csv")
    made = repo.make("data", SCENARIO="dash", SET="data.path=-rows.csv")
    assert made.code == 0, made.err
    assert "40 rows = " in made.out


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
        "  data.path: data/gone.csv: no such file or folder; give a path that exists",
    ]


def test_a_question_that_is_not_there_ends_with_2(repo: Repo) -> None:
    """`make ask` without Q is code 2 with an example."""
    assert make_refuses(repo, 2, "ask").startswith("there is no question; write make ask Q=")
