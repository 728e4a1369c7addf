"""Tools in a chat, as TGI 3.3.7 offers them (router/src/infer/tool_grammar.rs, chat.rs).

The model is held to JSON of the form {"function": {"_name": …, arguments …}}, which becomes a tool call; the tool
"no_tool", there when the choice is "auto", stands for a plain answer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from temper.serve import faults
from temper.serve.bodies import ChatRequest, FunctionDefinition, FunctionName, GrammarType, Tool
from temper.serve.fields import compact

NO_TOOL = "no_tool"
# What the model reads after the list of tools when the request has no `tool_prompt`.
PROMPT = (
    "\nAnswer with JSON that calls the one of these functions that serves the request best, with its arguments as "
    "the request gives them.\n"
)
# Up to the end of the name; blanks and a comma may follow it.
_HEAD = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def offered(chat: ChatRequest) -> list[Tool]:
    """Return the tools the model chooses from, none for a plain answer; Fault for one that is not there."""
    tools, choice = chat.tools, chat.tool_choice
    if tools is None or choice == "none":
        return []
    if isinstance(choice, FunctionName):
        chosen = [tool for tool in tools if tool.function.name == choice.name][:1]
        if not chosen:
            raise faults.tool(f"Tool with name {choice.name} not found")
        return chosen
    return [*tools, _no_tool()] if choice == "auto" else tools


def _no_tool() -> Tool:
    function = FunctionDefinition(
        description="A plain answer, for which no function is called", name=NO_TOOL, arguments={"type": "object"}
    )
    return Tool(type="function", function=function)


def grammar(tools: list[Tool]) -> GrammarType:
    """Return what holds the model to a call of one of the tools."""
    function = {"anyOf": [_schema(tool.function) for tool in tools]}
    return GrammarType(type="json", value={"properties": {"function": function}, "required": ["function"]})


def _schema(function: FunctionDefinition) -> dict[str, Any]:
    given = function.arguments if isinstance(function.arguments, dict) else {}
    properties, required = given.get("properties"), given.get("required")
    return {
        "properties": {"_name": {"const": function.name}} | (properties if isinstance(properties, dict) else {}),
        "required": ["_name", *(required if isinstance(required, list) else [])],
    }


@dataclass(frozen=True)
class Call:
    """A tool call; the arguments are JSON text."""

    name: str
    arguments: str


def parse(text: str) -> Call:
    """Return the call in a complete answer; Fault for an answer that was cut."""
    try:
        function = from_json(text)["function"]
        return Call(function.pop("_name"), compact(function))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = json.dumps(text, ensure_ascii=False)
        raise faults.tool(f"Failed to parse generated text: {error} {shown}") from None


class Pieces:
    """Turns the pieces of a streamed answer into those of a call's arguments.

    `name` is known once enough has come; nothing is said of the rest of the answer, its end token included.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._text, self._from, self._sent, self._complete = "", 0, 0, False

    def push(self, text: str) -> str:
        """Take a piece of the answer and return one of the arguments, "" when there is none."""
        if self._complete:
            return ""
        self._text += text
        if self.name is None and not self._read_name():
            return ""
        self._complete = _is_json(self._text)
        rest = self._text[self._from :].lstrip(" \t\r\n,")
        if self._complete:  # the last brace closes the answer, not the arguments
            rest = rest.rstrip()[:-1]
        piece = ("" if self._sent else "{") + rest[max(self._sent - 1, 0) :]
        self._sent = 1 + len(rest)
        return piece

    def _read_name(self) -> bool:
        if head := _HEAD.match(self._text):
            self.name, self._from = json.loads(head[1]), head.end()
        return head is not None


def _is_json(text: str) -> bool:
    if not text.rstrip().endswith("}"):
        return False
    try:
        from_json(text)
    except ValueError:
        return False
    return True
