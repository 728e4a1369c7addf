"""What a server reads in a merged folder: chat template, special tokens, the ids that end an answer. No torch.

TGI 3.3.7's router takes the template from chat_template.json, tokenizer_config.json or processor_config.json, in that
order, never from chat_template.jinja, and renders it with minijinja: blocks are not trimmed and null prints as "none".
transformers and vLLM read chat_template.jinja first and trim blocks.
(TGI: router/src/server.rs, router/src/infer/chat_template.rs.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.errors import GateError

Message = dict[str, str]


class Refused(Exception):
    """A chat template that raises an exception for a conversation: the server answers with an error."""


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object file of a folder, {} when it is missing; GateError when it cannot be read."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise GateError(f"{folder / name} is not JSON ({error})", "merge again") from None
    if not isinstance(found, dict):
        raise GateError(f"{folder / name} does not hold a JSON object", "merge again")
    return found


def token_text(value: Any) -> str | None:
    """Return the text of a token that a tokenizer config holds as text or as {"content": …}."""
    return value.get("content") if isinstance(value, dict) else value


def token_ids(folder: Path) -> dict[str, int]:
    """Return every token of tokenizer.json with its id; {} when there is no such file."""
    tokenizer = read(folder, "tokenizer.json")
    vocab = tokenizer.get("model", {}).get("vocab", {})
    ids = dict(vocab) if isinstance(vocab, dict) else {piece[0]: index for index, piece in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def chat_template(folder: Path) -> str | None:
    """Return the template TGI uses, None when there is none where TGI looks."""
    for name in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        found = read(folder, name).get("chat_template")
        if isinstance(found, list):
            found = next((item["template"] for item in found if item.get("name") == "default"), None)
        if found:
            return str(found)
    return None


def _as_set(ids: Any) -> set[int]:
    return set() if ids is None else set(ids) if isinstance(ids, list) else {ids}


def eos_ids(folder: Path, tgi: bool = True, known: dict[str, int] | None = None) -> set[int]:
    """Return the ids that end an answer in every server: TGI's and transformers' sets, intersected.

    transformers takes generation_config.json (config.json when there is none). TGI takes a list there; a single number
    there is ignored, and the tokenizer's eos_token used (server/…/utils/tokens.py). `known`: see `token_ids`.
    """
    generation = read(folder, "generation_config.json")
    given = generation.get("eos_token_id") if generation else read(folder, "config.json").get("eos_token_id")
    in_transformers = _as_set(given)
    if not tgi:
        return in_transformers
    if isinstance(generation.get("eos_token_id"), list):
        return in_transformers
    name = token_text(read(folder, "tokenizer_config.json").get("eos_token"))
    known = token_ids(folder) if known is None else known
    return in_transformers & ({known[name]} if name in known else set())


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols"], finalize=lambda value: "none" if value is None else value
    )

    def raise_exception(message: str) -> None:
        raise Refused(message)

    def strftime_now(pattern: str) -> str:
        import datetime

        return datetime.datetime.now().strftime(pattern)

    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def render_as_tgi(folder: Path, messages: list[Message]) -> str:
    """Return the prompt TGI makes of a conversation that ends with the user.

    Raises Refused when the template raises, GateError when there is none or it is not a template.
    """
    from jinja2 import TemplateError

    template, config = chat_template(folder), read(folder, "tokenizer_config.json")
    if template is None:
        raise GateError(f"{folder}/tokenizer_config.json has no chat_template", "set merge.chat_template: trained")
    for marker in ("{% generation %}", "{% endgeneration %}"):  # TGI drops both, they mark spans for training
        template = template.replace(marker, "")
    try:
        return str(
            _environment()
            .from_string(template)
            .render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                bos_token=token_text(config.get("bos_token")),
                eos_token=token_text(config.get("eos_token")),
            )
        )
    except TemplateError as error:
        raise GateError(
            f"{folder}: its chat template cannot be rendered ({error})", "set merge.chat_template: trained"
        ) from None
