"""The chat template, found where TGI looks for it and applied to messages.

TGI 3.3.7 reads chat_template.json, then tokenizer_config.json, then processor_config.json; a folder with only
chat_template.jinja has no template there, so it has none here either.
Blocks are trimmed as transformers does it when it trains; TGI does not trim them, so a template whose result depends
on that is a matter for the gate, not for this server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from temper.serve import faults, tools
from temper.serve.bodies import Message, Tool
from temper.serve.fields import compact


def read(folder: Path) -> str | None:
    """Return the folder's chat template, or None."""
    for name in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        found = _of_file(folder / name)
        if found:
            return found
    return None


def _of_file(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(value, list):
        value = next((item.get("template") for item in value if item.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def render(
    tokenizer: Any,
    template: str | None,
    messages: Sequence[Message],
    offered: Sequence[Tool] = (),
    tool_prompt: str | None = None,
) -> str:
    """Return the prompt for `messages`, ready for an answer; a last assistant message is continued.

    Tools go to a template that asks for them, else into the last message; `tool_prompt` follows there in any case.
    Raises Fault (422, template_error) without a template and for messages that it refuses.
    """
    if template is None:
        raise faults.template("template not found")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    listed = [tool.as_json() for tool in offered]
    try:
        if listed and messages and not messages[-1].calls:
            shown = "" if _asks_for_tools(template) else f"{compact(listed)}\n"
            turns[-1]["content"] += f"\n---\n{shown}{tool_prompt or tools.PROMPT}"
        text = _apply(tokenizer, template, turns, listed)
    except Exception as error:  # a template may fail with anything, from its own raise_exception to a TypeError
        raise faults.template(_reason(error)) from None
    if turns and turns[-1]["role"] == "assistant":
        text = _continued(text, turns[-1]["content"])
    return text


@functools.cache
def _asks_for_tools(template: str) -> bool:
    import jinja2.meta

    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    return "tools" in jinja2.meta.find_undeclared_variables(parsed)


def _apply(tokenizer: Any, template: str, turns: list[dict[str, str]], listed: list[dict[str, Any]]) -> str:
    """Render in transformers' sandbox; a template may not reach beyond its inputs."""
    several = tokenizer.apply_chat_template(  # in a list of one: it fails on a conversation without messages
        [turns], tools=listed or None, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return str(several[0])


def _continued(text: str, content: str) -> str:
    at = text.rfind(content)
    return text if at < 0 else text[: at + len(content)].rstrip()


def _reason(error: Exception) -> str:
    """Word an error as TGI's template engine does: kind, detail, line."""
    import jinja2

    kind = "invalid operation"
    if isinstance(error, jinja2.UndefinedError):
        kind = "undefined value"
    elif isinstance(error, jinja2.TemplateError):  # raise_exception in a template is a syntax error in TGI
        kind = "syntax error"
    return f"{kind}: {error} (in <string>:{_line(error.__traceback__)})"


def _line(trace: TracebackType | None) -> int:
    line = 1
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
