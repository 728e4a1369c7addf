"""How many tokens a row has: the base model's own tokenizer and chat template, without torch or transformers.

Jinja renders each kind of conversation (its roles) once, with marks for contents; rows then fill in what changes, and
the rest is a number. It renders a row itself when the row holds a word that the template looks for, and every row when
probes show that the template changes contents. So a row's count follows from the row alone, not from those before it.
Not covered: where LLaMA Factory's template for a model says more or less than the model's own.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from temper.errors import DataError

BATCH = 1000  # rows encoded at a time
REMEDY = "fetch the base model again (make model), or choose another one"
ODD = "Aa \"'<&>\\[x]\n\n  \t字"  # what a template that changes contents hardly leaves as it is
MARK = re.compile(f"\ue000([0-9]+){re.escape(ODD)}\ue001")
PROBES = ("a", "7 是的。", "Two blanks  and\n\n\tlines: 12, 345.", "Naïve 👩‍🚀?", "长" * 300 + "x y " * 300 + "z")
USUAL = {"system", "user", "assistant", "role", "content"}  # words that templates compare with roles, not contents

Roles = tuple[str, ...]


class Shape(NamedTuple):
    """One kind of conversation: formats for what its contents change, and the tokens of all else."""

    form: str
    system: str  # counted once for each system prompt; "" without one, or when it stands within another turn
    fixed: int


class Counter:
    """Counts tokens as the base model in a folder sees them; DataError when the folder does not say how."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _tokenizer(folder)
        source, self._named = _source(folder)
        self._template, self._words = _compiled(source, folder)
        special = [token for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        parting = sorted((token.content for token in special if not (token.lstrip or token.rstrip)), key=len)
        self._parting = re.compile("|".join(map(re.escape, reversed(parting))) or "(?!)")
        self._part = parting[0] if parting else ""
        self._ends = tuple(token.content for token in special)
        self._shapes: dict[Roles, Shape | None] = {}
        self._known = functools.lru_cache(256)(self._tokens)

    def count(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the tokens of each row's whole conversation, special tokens included; of a pair, the longer one."""
        counts = [0] * len(rows)
        for start in range(0, len(rows), BATCH):
            owners, texts, more = [], [], []
            for number in range(start, min(start + BATCH, len(rows))):
                for roles, contents in _conversations(rows[number]):
                    text, fixed = self._text(roles, contents)
                    owners.append(number)
                    texts.append(text)
                    more.append(fixed)
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for number, fixed, tokens in zip(owners, more, encoded, strict=True):
                counts[number] = max(counts[number], fixed + len(tokens))
        return counts

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def _text(self, roles: Roles, contents: Sequence[str]) -> tuple[str, int]:
        """Return what is to be encoded for a conversation, and how many tokens it has besides."""
        if roles not in self._shapes:
            self._shapes[roles] = self._shape(roles)
        shape = self._shapes[roles]
        if shape is None or (self._words and any(word in text for word in self._words for text in contents)):
            return self._render(roles, contents), 0
        return self._filled(shape, contents)

    def _filled(self, shape: Shape, contents: Sequence[str]) -> tuple[str, int]:
        system = self._known(shape.system.format(*contents)) if shape.system else 0
        return shape.form.format(*contents), shape.fixed + system

    def _shape(self, roles: Roles) -> Shape | None:
        """Return the shape of conversations with these roles; None when the template does more than insert contents."""
        text = self._render(roles, [f"\ue000{number}{ODD}\ue001" for number in range(len(roles))])
        probes = [[PROBES[(at + turn) % len(PROBES)] for turn in range(len(roles))] for at in range(len(PROBES))]
        wanted = [self._tokens(self._render(roles, contents)) for contents in probes]
        # Special tokens part a text before anything else, so what stands between two of them is counted by itself.
        for pieces, part in ((self._parting.split(text), self._part), ([text], "")):
            system = [piece for piece in pieces if roles[0] == "system" and set(MARK.findall(piece)) == {"0"}]
            rest = [piece for piece in pieces if MARK.search(piece) and piece not in system]
            shape = Shape(_form(rest, part), _form(system, part), 0)
            found = [self._filled(shape, contents) for contents in probes]
            gaps = {count - more - self._tokens(text) for count, (text, more) in zip(wanted, found, strict=True)}
            if len(gaps) == 1:
                return shape._replace(fixed=gaps.pop())
        return None

    def _render(self, roles: Roles, contents: Sequence[str]) -> str:
        """Return a conversation's text; a system prompt that the template refuses stands before the first question."""
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        merged = [{"role": "user", "content": "\n\n".join(contents[:2])}, *turns[2:]]
        text = "\n".join(contents)  # for a template that refuses the conversation altogether
        for messages in [turns, merged] if roles[:2] == ("system", "user") else [turns]:
            try:
                text = self._template.render(messages=messages, **self._named)
                break
            except Exception:  # a template may fail with anything, from its own raise_exception to a TypeError
                continue
        end = self._named.get("eos_token", "")
        if end not in self._ends:
            return text
        # LLaMA Factory puts no blank before this one (Llama 2's own template does), and adds a missing one (GLM-4).
        text = text.replace(f" {end}", end)
        return text if text.rstrip().endswith(self._ends) else text + end


def _form(pieces: Sequence[str], part: str) -> str:
    """Return a format of pieces of a rendered text, each after `part`: a field for each mark."""
    escaped = "".join(part + piece for piece in pieces).replace("{", "{{").replace("}", "}}")
    return MARK.sub(r"{\1}", escaped)


def _conversations(row: Mapping[str, Any]) -> Iterator[tuple[Roles, Sequence[str]]]:
    """Yield the roles and contents of a row's conversation, and of the one with the rejected answer."""
    if "messages" in row:
        turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
    else:
        asked = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
        turns = [("system", row.get("system") or ""), ("user", asked), ("assistant", row["output"])]
    roles, contents = zip(*(turns[1:] if turns[0] == ("system", "") else turns), strict=True)
    yield roles, contents
    if "rejected" in row:
        yield roles, (*contents[:-1], row["rejected"])


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder} has no tokenizer.json", REMEDY)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower one
        raise DataError(f"{path} cannot be read as a tokenizer ({error})", REMEDY) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _source(folder: Path) -> tuple[str, dict[str, str]]:
    """Return a folder's chat template and its named special tokens."""
    path, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        given = {name: value for name, value in config.items() if name.endswith("_token")}
        named = {name: value["content"] if isinstance(value, dict) else value for name, value in given.items()}
        source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
        if isinstance(source, list):
            source = next((each["template"] for each in source if each["name"] == "default"), None)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error})", REMEDY) from None
    if not source:
        raise DataError(f"{folder} has no chat template", REMEDY)
    return str(source), {name: value for name, value in named.items() if isinstance(value, str)}


def _compiled(source: str, folder: Path) -> tuple[Any, list[str]]:
    """Return a chat template as transformers compiles it, and the words that it may look for in contents."""
    import datetime

    import jinja2
    from jinja2 import nodes, sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    day = datetime.datetime(2025, 11, 25)  # any: a row has the same count every day
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=day.strftime)
    environment.filters["tojson"] = tojson
    source = re.sub(r"{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%}", r"{#\1 \2 \3#}", source)  # it prints nothing
    try:
        tree, template = environment.parse(source), environment.from_string(source)
    except jinja2.TemplateError as error:
        raise DataError(f"{folder}: its chat template cannot be read ({error})", REMEDY) from None
    asking = tree.find_all((nodes.Compare, nodes.Call, nodes.Filter))
    words = {text.value for node in asking for text in node.find_all(nodes.Const) if isinstance(text.value, str)}
    return template, sorted(word for word in words - USUAL if word.strip())
