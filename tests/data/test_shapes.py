"""The shapes rows come in: which columns are taken for what, and the conversation that each row becomes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from test_sources import parquet, xlsx

from temper.data import process
from temper.data.options import STEPS, Options
from temper.errors import DataError

Fields = Mapping[str, Any]
Turn = tuple[str, str]


def jsonl(*rows: object) -> str:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*rows: Fields, separator: str = ",") -> str:
    """Return rows as a table; lists and objects are cells of JSON text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return text.getvalue()


def made(folder: Path, files: Mapping[str, str | bytes], **settings: Any) -> dict[str, Any]:
    """Process files of these contents; return the rows of each file written, and the report."""
    (folder / "in").mkdir()
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    steps = frozenset(STEPS) - {"near", "report"}
    options = Options(**{"eval_share": 0, "max_rejected": 1, "steps": steps, **settings})
    process.process([folder / "in"], folder / "out", options)
    rows: dict[str, Any] = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in (folder / "out").glob("*.jsonl")
    }
    return {**rows, "report": json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))}


def talks(rows: Iterable[Fields]) -> set[tuple[str, tuple[Turn, ...]]]:
    """Return (system prompt, turns) of each row, in whichever form it is written."""
    found = set()
    for row in rows:
        said = row.get("messages") or [
            {"role": "system", "content": row["system"]},
            {"role": "user", "content": "\n".join(filter(None, (row["instruction"], row["input"])))},
            {"role": "assistant", "content": row["output"]},
        ]
        system = said[0]["content"] if said[0]["role"] == "system" else ""
        said = [turn for turn in said if turn["role"] != "system"]
        assert [turn["role"] for turn in said] == ["user", "assistant"] * (len(said) // 2)
        found.add((system, tuple((a["content"], b["content"]) for a, b in zip(said[::2], said[1::2], strict=True))))
    return found


def refused(made_rows: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Return (line, reason, detail) of each row refused."""
    return [(row["line"], row["reason"], row["detail"]) for row in made_rows["rejected"]]


def messages(*said: tuple[str, Any]) -> dict[str, Any]:
    """Return a row of OpenAI's messages."""
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def conversation(*said: tuple[str, Any]) -> dict[str, Any]:
    """Return a row of ShareGPT's conversations."""
    return {"conversations": [{"from": role, "value": content} for role, content in said]}


# Columns

ONE = {("", (("几天可以退货？", "七天"),))}


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("instruction", "output"), ("question", "answer"), ("prompt", "response"), ("prompt", "completion"),
        ("query", "response"), ("input", "output"), ("问题", "答案"), ("问题", "回答"), ("问", "答"),
    ],
)  # fmt: skip
def test_usual_names_are_found(tmp_path: Path, asked: str, answered: str) -> None:
    """Columns of a usual name are found beside others, wherever they stand; the others reach checks.jsonl."""
    rows = made(tmp_path, {"r.csv": table({"编号": "1", answered: "七天", "note": "n", asked: "几天可以退货？"})})
    assert talks(rows["train"]) == ONE
    assert rows["checks"][0]["columns"] == {"编号": "1", "note": "n"}
    (file,) = rows["report"]["files"]
    assert file["shape"] == ("alpaca" if asked == "instruction" else "columns")
    assert (file["columns"]["instruction"], file["columns"]["output"]) == (asked, answered)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "xlsx", "parquet"])
def test_two_columns_of_any_names_are_question_and_answer(tmp_path: Path, kind: str) -> None:
    """A file of two columns needs no names: the first asks, the second answers, in every kind of file."""
    row = {"客户说": "几天可以退货？", "我们说": "七天"}
    content = {
        "csv": table(row), "tsv": table(row, separator="\t"), "jsonl": jsonl(row), "json": json.dumps([row]),
        "xlsx": xlsx({1: list(row), 2: list(row.values())}), "parquet": parquet(pyarrow.Table.from_pylist([row])),
    }[kind]  # fmt: skip
    rows = made(tmp_path, {f"r.{kind}": content})
    assert talks(rows["train"]) == ONE
    assert rows["report"]["files"][0]["columns"] == {"instruction": "客户说", "output": "我们说"}


def test_the_most_telling_names_win(tmp_path: Path) -> None:
    """Of several pairs the most telling one is taken; its material, system prompt and history are found by name."""
    row = {"question": "no", "answer": "no", "instruction": "a", "input": "m", "output": "b", "system": "S"}
    rows = made(tmp_path, {"r.csv": table({**row, "history": [["c", "d"]]})})
    assert talks(rows["train"]) == {("S", (("c", "d"), ("a\nm", "b")))}


def test_named_columns_win_over_names_that_are_known(tmp_path: Path) -> None:
    """What is named is taken even where other columns have usual names; of a pair the other may be left to its name."""
    row = {"question": "no", "answer": "no", "q": "a", "a": "b", "output": "c", "about": "m", "role": "S", "past": "[]"}
    names = {"instruction": "q", "output": "a", "input": "about", "system": "role", "history": "past"}
    for number, (columns, answer) in enumerate([(names, "b"), ({**names, "output": None}, "c")]):
        (tmp_path / str(number)).mkdir()
        rows = made(tmp_path / str(number), {"r.csv": table(row)}, columns=columns)
        assert talks(rows["train"]) == {("S", (("a\nm", answer),))}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"instruction": "Frage"}, "no instruction column 'Frage'"),
        ({"instruction": "q", "output": "a"}, "no instruction column 'q' and no output column 'a'"),
        ({"instruction": "question", "history": "past"}, "no history column 'past'"),
        ({"instruction": "question"}, "no output column 'output'"),
        ({"input": "material"}, "no input column 'material'"),
    ],
)
def test_a_wrong_name_lists_the_columns(tmp_path: Path, wanted: dict[str, str], said: str) -> None:
    """A column that is not there is named with those that are, and the option to set."""
    with pytest.raises(DataError) as error:
        made(tmp_path, {"r.csv": "question,answer,区域\na,b,c\n"}, columns=wanted)
    there = "the columns are: question, answer, 区域; set data.columns (--instruction_col, --output_col)"
    assert str(error.value) == f"{tmp_path}/in/r.csv: there is {said}; {there}"


def test_three_columns_of_unknown_names_are_not_guessed(tmp_path: Path) -> None:
    """With more than two columns and no usual name the columns are listed, and nothing is taken."""
    with pytest.raises(DataError, match=r"the columns are: 客户说, 我们说, 渠道; set data\.columns"):
        made(tmp_path, {"r.csv": "客户说,我们说,渠道\na,b,c\n"})


def test_files_of_different_shapes_are_read_together(tmp_path: Path) -> None:
    """Each file of a folder has its own shape; what means the same is one row, and all are written in one form."""
    files = {
        "a.csv": "question,answer\n几天可以退货？,七天\n",
        "b.jsonl": jsonl({"instruction": "a", "input": "m", "output": "b"}),
        "c.jsonl": jsonl(messages(("user", "几天可以退货？"), ("assistant", "七天"))),
        "d.json": json.dumps([conversation(("human", "c"), ("gpt", "d"), ("human", "e"), ("gpt", "f"))]),
        "e.tsv": "客户说\t我们说\n一年\t两年\n",
    }
    rows = made(tmp_path, files)
    assert talks(rows["train"]) == ONE | {
        ("", (("a\nm", "b"),)), ("", (("c", "d"), ("e", "f"))), ("", (("一年", "两年"),))
    }  # fmt: skip
    assert all(set(row) == {"messages"} for row in rows["train"])
    assert [(row["file"], row["kept_file"]) for row in rows["duplicates"]] == [("c.jsonl", "a.csv")]
    shapes = [file["shape"] for file in rows["report"]["files"]]
    assert shapes == ["columns", "alpaca", "messages", "sharegpt", "columns"]


# Alpaca

ALPACA = {"instruction": "翻译成英文", "input": "你好", "output": "Hello"}


def test_alpaca_rows_of_one_turn_stay_alpaca_rows(tmp_path: Path) -> None:
    """Without earlier turns a row keeps question, material, answer and system prompt apart, as Alpaca's rows do."""
    rows = made(tmp_path, {"r.jsonl": jsonl(ALPACA, {"instruction": "a", "output": "b", "system": "S", "history": []})})
    assert sorted(rows["train"], key=lambda row: row["output"]) == [
        {**ALPACA, "system": ""}, {"instruction": "a", "input": "", "output": "b", "system": "S"}
    ]  # fmt: skip
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    assert info == {name: {"file_name": f"{name}.jsonl", "columns": columns} for name in ("train", "eval")}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_history_makes_rows_of_several_turns(tmp_path: Path, kind: str) -> None:
    """Earlier turns come first, as a list or as JSON text in a cell; then all rows are written as messages."""
    past = [["在吗？", "在的"], ["L9 台灯，还有货吗？", '有，"现货"']]
    rows_in = [
        {"instruction": "多少钱？", "input": "", "output": "299 元", "history": past, "system": "你是客服"},
        {**ALPACA, "history": [] if kind in ("jsonl", "parquet") else "", "system": ""},
    ]
    writers: dict[str, Callable[[], str | bytes]] = {
        "jsonl": lambda: jsonl(*rows_in),
        "csv": lambda: table(*rows_in),
        "tsv": lambda: table(*rows_in, separator="\t"),
        "parquet": lambda: parquet(pyarrow.Table.from_pylist(rows_in)),
    }
    rows = made(tmp_path, {f"r.{kind}": writers[kind]()})
    assert talks(rows["train"]) == {
        ("你是客服", (*((a, b) for a, b in past), ("多少钱？", "299 元"))), ("", (("翻译成英文\n你好", "Hello"),))
    }  # fmt: skip
    assert all(set(row) == {"messages"} for row in rows["train"])
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info["train"]["formatting"] == "sharegpt" and info["train"]["columns"] == {"messages": "messages"}


@pytest.mark.parametrize(
    ("history", "reason", "detail"),
    [
        ("今天的对话", "wrong-type", "the history is text that is no JSON list"),
        ({"q": "a"}, "wrong-type", "the history is no list"),
        ([["a"]], "wrong-type", "the history is no list of [question, answer]"),
        (["a", "b"], "wrong-type", "the history is no list of [question, answer]"),
        ([["a", ["b"]]], "wrong-type", "the answer is a list, not text"),
        ([["", "b"]], "empty-question", "the question is empty"),
        ([["a", " "]], "empty-answer", "the answer is empty"),
        ([["a", None]], "empty-answer", "the answer is empty"),
        ([["a", "b\x00"]], "control-character", "holds U+0000 at character 2"),
    ],
)
def test_a_wrong_history_costs_its_row(tmp_path: Path, history: object, reason: str, detail: str) -> None:
    """A history that is no list of pairs, or has an empty or damaged turn, is refused with its row alone."""
    rows = made(tmp_path, {"r.jsonl": jsonl({**ALPACA, "history": history}, {**ALPACA, "history": None})})
    assert refused(rows) == [(1, reason, detail)]
    assert len(rows["train"]) == 1


# Messages and ShareGPT

TURNS = (("在吗？", "在的，请讲"), ("保修多久？", "两年"))
SAID = [text for turn in TURNS for text in turn]
ROLES = [("user", "assistant"), ("human", "gpt"), ("user", "bot"), ("human", "model"), ("user", "gpt")]


@pytest.mark.parametrize("shape", [messages, conversation])
@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("system", ["", "system", "developer"])
def test_conversations_are_read(tmp_path: Path, shape: Any, roles: Turn, system: str) -> None:
    """OpenAI's and ShareGPT's conversations are read with all usual names of speakers; a system prompt may lead."""
    lead = [(system, "你是客服")] if system else []
    row = shape(*lead, *zip(roles * 2, SAID, strict=True))
    rows = made(tmp_path, {"r.jsonl": jsonl({**row, "id": 7})})
    assert talks(rows["train"]) == {("你是客服" if system else "", TURNS)}
    assert rows["report"]["files"][0]["shape"] == ("messages" if "messages" in row else "sharegpt")
    assert rows["checks"][0]["columns"] == {"id": 7}
    assert rows["checks"][0]["instruction"] == "在吗？\n保修多久？"


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
@pytest.mark.parametrize("name", ["messages", "conversations", "conversation"])
def test_conversations_are_read_from_every_kind_of_file(tmp_path: Path, kind: str, name: str) -> None:
    """A conversation may be a list of JSON or Parquet, or JSON text in a cell; a column holds its system prompt."""
    shape, roles = (messages, ("user", "assistant")) if name == "messages" else (conversation, ("human", "gpt"))
    (said,) = shape(*zip(roles * 2, SAID, strict=True)).values()
    row = {"system": "S", name: said, "question": "not this", "answer": "nor this"}
    content = {
        "json": json.dumps({"data": [row]}), "csv": table(row), "parquet": parquet(pyarrow.Table.from_pylist([row]))
    }[kind]  # fmt: skip
    assert talks(made(tmp_path, {f"r.{kind}": content})["train"]) == {("S", TURNS)}


def test_a_conversation_of_one_turn_is_a_row_like_any_other(tmp_path: Path) -> None:
    """Where no row has several turns, conversations are written as questions and answers."""
    rows = made(tmp_path, {"r.jsonl": jsonl(messages(("system", "S"), ("user", "a"), ("assistant", "b")))})
    assert rows["train"] == [{"instruction": "a", "input": "", "output": "b", "system": "S"}]


def test_the_system_prompt_of_a_conversation_wins(tmp_path: Path) -> None:
    """A system message wins over the column, the column over data.system; an empty one says nothing."""
    said = [("user", "a"), ("assistant", "b")]
    rows_in = [
        {**messages(("system", "inner"), *said), "system": "outer"},
        {**messages(("system", ""), *said), "system": "outer"},
        {**messages(*said), "system": ""},
    ]
    rows = made(tmp_path, {"r.jsonl": jsonl(*rows_in)}, system="common")
    assert {row["system"] for row in rows["train"]} == {"inner", "outer", "common"}


@pytest.mark.parametrize(
    ("roles", "detail"),
    [
        ("user", "the roles are user"),
        ("assistant", "the roles are assistant"),
        ("assistant user assistant", "the roles are assistant, user, assistant"),
        ("user assistant user", "the roles are user, assistant, user"),
        ("user user assistant", "the roles are user, user, assistant"),
        ("user assistant assistant", "the roles are user, assistant, assistant"),
        ("user system assistant", "the roles are user, system, assistant"),
        ("system system user assistant", "the roles are system, user, assistant"),
        ("user assistant user assistant system user assistant",
         "the roles are user, assistant, user, assistant, system, user, …"),
    ],
)  # fmt: skip
def test_speakers_must_take_turns(tmp_path: Path, roles: str, detail: str) -> None:
    """From a user to an assistant, each in turn, with a system prompt at the head alone; else the row is refused."""
    good = messages(("user", "a"), ("assistant", "b"))
    row = messages(*((role, f"text {n}") for n, role in enumerate(roles.split())))
    rows = made(tmp_path, {"r.jsonl": jsonl(good, row)})
    assert refused(rows) == [(2, "role-order", detail)]
    assert talks(rows["train"]) == {("", (("a", "b"),))}


@pytest.mark.parametrize(
    ("item", "reason", "detail"),
    [
        ({"role": "tool", "content": "{}"}, "unknown-role", "the role 'tool' is not trained on"),
        ({"role": "function", "content": "{}"}, "unknown-role", "the role 'function' is not trained on"),
        ({"from": "observation", "value": "1"}, "unknown-role", "the role 'observation' is not trained on"),
        ({"role": "客服", "content": "x"}, "unknown-role", "the role '客服' is not trained on"),
        ({"role": "User", "content": "x"}, "unknown-role", "the role 'User' is not trained on"),
        ({"content": "x"}, "unknown-role", "the role 'None' is not trained on"),
        pytest.param(
            {"role": ["user"], "content": "x"},
            "unknown-role",
            "the role \"['user']\" is not trained on",
        ),
        pytest.param(
            {"role": {"name": "user"}, "content": "x"},
            "unknown-role",
            "the role \"{'name': 'user'}\" is not trained on",
        ),
        ({"role": "x" * 99, "content": "x"}, "unknown-role", f"the role '{'x' * 40}' is not trained on"),
        ("user: x", "wrong-type", "a message is no object"),
        (["user", "x"], "wrong-type", "a message is no object"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "wrong-type", "the message is a list, not text"),
        ({"role": "user", "content": {"text": "x"}}, "wrong-type", "the message is an object, not text"),
    ],
)
def test_a_message_that_cannot_be_trained_on_costs_its_row(
    tmp_path: Path, item: object, reason: str, detail: str
) -> None:
    """Messages of tools, of unknown speakers and without text are refused with their row; other rows are kept."""
    good = messages(("user", "a"), ("assistant", "b"))
    bad = {"messages": [*good["messages"], item, *good["messages"]]}
    rows = made(tmp_path, {"r.jsonl": jsonl(bad, good)})
    assert refused(rows) == [(1, reason, detail)]
    assert len(rows["train"]) == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "empty-question"),
        (None, "empty-question"),
        ("", "empty-question"),
        ([{"role": "system", "content": "S"}], "empty-question"),
        ("你好", "wrong-type"),
        ({"role": "user", "content": "a"}, "wrong-type"),
        (7, "wrong-type"),
        (messages(("user", ""), ("assistant", "b"))["messages"], "empty-question"),
        (messages(("user", "a"), ("assistant", "　"))["messages"], "empty-answer"),
        (messages(("user", "a"), ("assistant", None))["messages"], "empty-answer"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, said: object, reason: str) -> None:
    """No messages, no list, and empty turns are refused row by row."""
    good = messages(("user", "a"), ("assistant", "b"))
    rows = made(tmp_path, {"r.jsonl": jsonl({"messages": said}, good)})
    assert [(line, code) for line, code, _ in refused(rows)] == [(1, reason)]
    assert len(rows["train"]) == 1


# Preference pairs

A, B, C = (
    {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "good"), ("assistant", "bad"))
)
GPT = [{"from": role, "value": text} for role, text in (("human", "a"), ("gpt", "good"), ("gpt", "bad"))]
PREFERENCES: dict[str, Fields] = {
    "text": {"prompt": "a", "chosen": "good", "rejected": "bad"},
    "alpaca": {"instruction": "a", "input": "", "chosen": "good", "rejected": "bad"},
    "question": {"question": "a", "chosen": "good", "rejected": "bad", "answer": "other"},
    "whole conversations": {"chosen": [A, B], "rejected": [A, C]},
    "whole conversations beside the prompt": {"prompt": "a", "chosen": [A, B], "rejected": [A, C]},
    "last messages": {"messages": [A], "chosen": B, "rejected": C},
    "lists of last messages": {"messages": [A], "chosen": [B], "rejected": [C]},
    "sharegpt": {"conversations": GPT[:1], "chosen": GPT[1], "rejected": GPT[2]},
    "prompt as messages": {"prompt": [A], "chosen": [B], "rejected": [C]},
}


@pytest.mark.parametrize("shape", list(PREFERENCES))
def test_preference_pairs_are_read(tmp_path: Path, shape: str) -> None:
    """A better and a worse answer to a question, as text, messages or whole conversations, make a pair."""
    rows = made(tmp_path, {"r.jsonl": jsonl({**PREFERENCES[shape], "score": 5})})
    assert rows["train"] == [{"instruction": "a", "input": "", "output": "good", "rejected": "bad", "system": ""}]
    assert rows["checks"][0]["columns"]["score"] == 5
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert set(info) == {"train", "eval", "train_preference", "eval_preference"}
    assert info["train_preference"] == {
        "file_name": "train.jsonl",
        "ranking": True,
        "columns": {
            "prompt": "instruction", "query": "input", "system": "system", "chosen": "output", "rejected": "rejected"
        },
    }  # fmt: skip
    assert info["train"]["columns"]["response"] == "output" and "ranking" not in info["train"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_preference_pairs_are_read_from_tables(tmp_path: Path, kind: str) -> None:
    """Pairs may come from a table; the conversation before them may be JSON text in its cell."""
    row = {
        "messages": [*messages(("user", "x"), ("assistant", "y"))["messages"], A],
        "chosen": "good",
        "rejected": "bad",
    }
    content = table(row) if kind == "csv" else parquet(pyarrow.Table.from_pylist([row]))
    rows = made(tmp_path, {f"r.{kind}": content})
    assert rows["train"] == [
        {
            "messages": [*messages(("user", "x"), ("assistant", "y"))["messages"], A, B],
            "prompt": [*messages(("user", "x"), ("assistant", "y"))["messages"], A],
            "chosen": B,
            "rejected": C,
        }
    ]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info["train_preference"]["columns"] == {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    assert info["train"]["columns"] == {"messages": "messages"}


def test_pairs_that_prefer_nothing_are_refused(tmp_path: Path) -> None:
    """Two equal answers, once cleaned, and a missing one are refused; the other pairs are kept."""
    pairs = [
        {"prompt": "a", "chosen": "b", "rejected": "b "},
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a", "chosen": "b", "rejected": ["b", "c"]},
        {"prompt": "a", "chosen": "b", "rejected": {"role": "tool", "content": "c"}},
        {"prompt": "a", "chosen": "b", "rejected": "B"},
    ]
    rows = made(tmp_path, {"r.jsonl": jsonl(*pairs)})
    assert [(row["output"], row["rejected"]) for row in rows["train"]] == [("b", "B"), ("b", "c")]
    assert [(line, reason) for line, reason, _ in refused(rows)] == [
        (1, "no-preference"), (2, "empty-answer"), (3, "empty-answer"), (5, "unknown-role")
    ]  # fmt: skip


def test_several_worse_answers_are_several_pairs(tmp_path: Path) -> None:
    """A question with one good and two bad answers is two rows and no conflict, on one side of the split."""
    pairs = [{"prompt": "a", "chosen": "b", "rejected": text} for text in ("c", "d", "c")]
    rows = made(tmp_path, {"r.jsonl": jsonl(*pairs)})
    assert [row["rejected"] for row in rows["train"]] == ["c", "d"]
    assert (len(rows["duplicates"]), rows["conflicts"]) == (1, [])


def test_pairs_and_plain_rows_do_not_mix(tmp_path: Path) -> None:
    """A folder of pairs and of plain rows is refused in one line that says what to do."""
    files = {"a.jsonl": jsonl(PREFERENCES["text"]), "b.csv": "question,answer\na,b\n"}
    with pytest.raises(DataError) as error:
        made(tmp_path, files)
    assert str(error.value) == (
        "some files hold preference pairs and some do not; process them one after the other, into two folders"
    )
