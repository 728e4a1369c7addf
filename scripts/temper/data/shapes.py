"""The shapes rows come in, and the one form they leave in: what was asked, answered, and under which system prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temper.data import rows
from temper.data.reasons import Rejected
from temper.errors import DataError

# Names that are understood without being told, most telling first.
PAIRS = (
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("input", "output"),
    ("问题", "答案"),
    ("问题", "回答"),
    ("问", "答"),
)
ASKED = ("instruction", "prompt", "question", "query", "input", "问题", "问")
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
SHOWN = 30  # columns that a message lists
FLAGS = "set data.columns (--instruction_col, --output_col)"


@dataclass
class Talk:
    """One row before it is written: earlier turns, the last question with its material, and its answer."""

    question: str
    answer: str
    material: str = ""
    system: str = ""
    history: Sequence[tuple[str, str]] = ()
    rejected: str | None = None  # the worse answer of a preference pair


@dataclass(frozen=True)
class Shape:
    """How a file's rows are read: its kind, and which column holds what."""

    kind: str  # columns, alpaca, sharegpt, messages or preference
    columns: dict[str, str]  # of FIELDS, or messages, chosen, rejected; to the file's own names

    def used(self) -> frozenset[str]:
        """Return the names of the columns that are learnt from."""
        return frozenset(self.columns.values())


def recognise(there: Sequence[str], wanted: Mapping[str, str | None], where: str) -> Shape:
    """Return the shape of a file with the columns `there`; DataError that lists them when none fits.

    `wanted` names columns of FIELDS; what it leaves out is found by name.
    """
    given = {key: name for key, name in wanted.items() if name}
    if missing := [f"{key} column {name!r}" for key, name in given.items() if name not in there]:
        raise no_column(where, missing, there)
    names = dict.fromkeys(there)
    optional = {key: key for key in ("input", "system", "history") if key in names} | given
    if "instruction" in given or "output" in given:
        pair = {key: given.get(key, key) for key in ("instruction", "output")}
        if missing := [f"{key} column {name!r}" for key, name in pair.items() if name not in names]:
            raise no_column(where, missing, there)
        return Shape("columns", pair | given)
    for kind, key in (("messages", "messages"), ("sharegpt", "conversations"), ("sharegpt", "conversation")):
        if key in names:
            pairs = {"chosen": "chosen", "rejected": "rejected"} if {"chosen", "rejected"} <= names.keys() else {}
            return Shape(kind, {"messages": key, **pairs, **{k: v for k, v in optional.items() if k == "system"}})
    if {"chosen", "rejected"} <= names.keys():
        asked = next((name for name in ASKED if name in names), None)
        rest = {key: name for key, name in optional.items() if name != asked}
        return Shape(
            "preference",
            {**({"instruction": asked} if asked else {}), "chosen": "chosen", "rejected": "rejected", **rest},
        )
    for asked, answered in PAIRS:
        if asked in names and answered in names:
            if asked == "input":
                optional.pop("input", None)
            return Shape(
                "alpaca" if asked == "instruction" else "columns",
                {"instruction": asked, "output": answered, **optional},
            )
    if len(names) == 2:
        asked, answered = names
        return Shape("columns", {"instruction": asked, "output": answered})
    raise no_column(where, ["instruction column 'instruction'", "output column 'output'"], there)


def no_column(where: str, missing: Iterable[str], there: Iterable[str]) -> DataError:
    """Return the error for columns that are not there."""
    names = [" ".join(name.split())[:60] for name in there]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    columns = f"the columns are: {', '.join(names[:SHOWN])}{more}"
    return DataError(f"{where}: there is no {' and no '.join(missing)}", f"{columns}; {FLAGS}")


def read(fields: Mapping[str, Any], shape: Shape) -> Talk:
    """Return a row's conversation as it stands in the file; Rejected when it is none."""
    columns = shape.columns

    def get(key: str) -> Any:
        return fields.get(columns[key]) if key in columns else None

    system = rows.text_of(get("system"), "system prompt")
    if "messages" in columns or (shape.kind == "preference" and isinstance(get("chosen"), list)):
        return _from_messages(fields, shape, system)
    talk = Talk(
        rows.text_of(get("instruction"), "question"),
        "",
        rows.text_of(get("input"), "input"),
        system,
        _history(get("history")),
    )
    if shape.kind == "preference":
        talk.answer, talk.rejected = (_said(get(key), f"{key} answer") for key in ("chosen", "rejected"))
    else:
        talk.answer = rows.text_of(get("output"), "answer")
    return talk


def _decoded(value: Any, what: str) -> list[Any]:
    """Return a list, also one that a table holds as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise Rejected("wrong-type", f"the {what} is text that is no JSON list") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise Rejected("wrong-type", f"the {what} is no list")
    return value


def _history(value: Any) -> list[tuple[str, str]]:
    turns = []
    for turn in _decoded(value, "history"):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise Rejected("wrong-type", "the history is no list of [question, answer]")
        turns.append((rows.text_of(turn[0], "question"), rows.text_of(turn[1], "answer")))
    return turns


def _message(item: Any) -> tuple[str, str]:
    if not isinstance(item, Mapping):
        raise Rejected("wrong-type", "a message is no object")
    role, content = (item.get("role", item.get("from")), item.get("content", item.get("value")))
    if not isinstance(role, str) or role not in ROLES:
        raise Rejected("unknown-role", f"the role {str(role)[:40]!r} is not trained on")
    return ROLES[role], rows.text_of(content, "message")


def _said(value: Any, what: str) -> str:
    """Return an answer that is text, one message, or a list whose last message it is."""
    value = value[-1] if isinstance(value, list) and value else value
    return _message(value)[1] if isinstance(value, Mapping) else rows.text_of(value, what)


def _from_messages(fields: Mapping[str, Any], shape: Shape, system: str) -> Talk:
    columns = shape.columns
    key = columns.get("messages", "chosen")
    before = fields.get(columns.get("instruction", "")) if key == "chosen" and "instruction" in columns else None
    said = [_message(item) for item in [*(before if isinstance(before, list) else []), *_decoded(fields.get(key), key)]]
    pair = "rejected" in columns
    if pair and key != "chosen":  # the conversation so far, and two ways to go on
        said.append(("assistant", _said(fields.get("chosen"), "chosen answer")))
    if said and said[0][0] == "system":
        system = said.pop(0)[1] or system
    if not said:
        raise Rejected("empty-question", "there are no messages")
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise Rejected(
            "role-order", f"the roles are {', '.join(role for role, _ in said[:6])}{', …' * (len(said) > 6)}"
        )
    texts = [content for _, content in said]
    turns = list(zip(texts[::2], texts[1::2], strict=True))
    rejected = _said(fields.get("rejected"), "rejected answer") if pair else None
    return Talk(turns[-1][0], turns[-1][1], "", system, turns[:-1], rejected)
