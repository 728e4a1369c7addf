"""Prompt parity: the token ids LLaMA Factory trains on are those the server makes from the same conversation.

Where they are not, the remedy is looked for: another of LLaMA Factory's templates, or the trained one written as Jinja.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from temper.errors import GateError
from temper.merge import served
from temper.merge.conversations import CONVERSATIONS, Trainer, differences, load_tokenizer, prompts, trainer
from temper.merge.outcome import Outcome, attempt, failed, judged, passed

AGAIN = "delete the merged folder and merge again"


def check(base: Path, merged: Path, template: str, train_args: dict[str, Any], tgi: bool = True) -> list[Outcome]:
    """Compare trained and served ids on the fixed conversations, and the end of an answer with the served eos ids."""
    side = cache(lambda: trainer(base, template, train_args))
    return [
        attempt("prompt parity", lambda: _prompts(merged, side(), template, train_args, tgi), AGAIN),
        attempt("answer end", lambda: _end(merged, side(), tgi), AGAIN),
    ]


def _prompts(merged: Path, side: Trainer, template: str, train_args: dict[str, Any], tgi: bool) -> Outcome:
    tokenizer = load_tokenizer(merged)
    count = sum(len(side.prompt_ids(messages)) for messages in CONVERSATIONS.values())
    found = differences(merged, tokenizer, side, tgi)
    numbers = {"conversations": len(CONVERSATIONS), "tokens": count, "differ": len(found)}
    if not found:
        return passed(
            "prompt parity",
            f"{len(CONVERSATIONS)} conversations, {count} tokens: the server sends what was trained on",
            **numbers,
        )
    name, first = next(iter(found.items()))
    others = f" (also: {', '.join(list(found)[1:])})" if len(found) > 1 else ""
    return failed(
        "prompt parity",
        f"conversation {name!r}{others}, {first}",
        remedy(merged, tokenizer, template, train_args, tgi),
        **numbers,
    )


def _end(merged: Path, side: Trainer, tgi: bool) -> Outcome:
    trained, eos = side.end_ids(), served.eos_ids(merged, tgi)
    words = side.tokenizer.convert_ids_to_tokens(trained)
    problems = []
    if not trained:
        problems.append("training puts nothing after an answer, so the model never learns to stop")
    elif not eos & set(trained):
        problems.append(
            f"training ends an answer with {words} {trained}, which is not among the served eos ids "
            f"{sorted(eos)}: answers would run to the length limit"
        )
    first = words[0] if words else ""
    return judged(
        "answer end",
        problems,
        f"set end_token: {first or '…'} in the model file, then merge again",
        f"answers end with {first!r}, served eos ids {sorted(eos)}",
        trained=trained,
        eos=sorted(eos),
    )


def remedy(merged: Path, tokenizer: Any, template: str, train_args: dict[str, Any], tgi: bool) -> str:
    """Say which setting makes both sides equal: another LLaMA Factory template, or the trained template written out."""
    names = [name for name in matching_templates(merged, tokenizer, train_args, tgi) if name != template]
    choices = [f"set template: {names[0]} in the model file and train again"] if names else []
    try:
        trained_template(merged, template, train_args, tgi)
        choices.append("set merge.chat_template: trained")
    except GateError:
        pass
    return ", or ".join(choices) or "no setting makes them equal: give the model file a template of its own"


def matching_templates(merged: Path, tokenizer: Any, train_args: dict[str, Any], tgi: bool = True) -> list[str]:
    """Name LLaMA Factory's templates whose ids equal the served ones on every fixed conversation."""
    from llamafactory.data.template import TEMPLATES

    plain, names = CONVERSATIONS["plain"], []
    try:
        sent = [
            tokenizer.encode(text, add_special_tokens=False) for text in prompts(merged, tokenizer, plain, tgi).values()
        ]
    except served.Refused:
        return []
    for name, candidate in TEMPLATES.items():
        # A cheap first look with the tokenizer as it is; the whole comparison only for the few that pass.
        trained = candidate.encode_oneturn(tokenizer, [*plain, {"role": "assistant", "content": "-"}])[0]
        if all(ids == trained for ids in sent):
            side = trainer(merged, name, train_args)
            ends = set(side.end_ids()) & served.eos_ids(merged, tgi)
            if ends and not differences(merged, tokenizer, side, tgi):
                names.append(name)
    return names


def written(side: Trainer, lead: str) -> str:
    """Return the template object as Jinja; `lead` goes before every answer, where pieces are tokenised one by one."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import ReasoningTemplate

    template = deepcopy(side.template)
    thought = template.add_thought() if isinstance(template, ReasoningTemplate) else ""

    def text(slots: list[Any]) -> list[Any]:
        return [slot["token"] if isinstance(slot, dict) else slot for slot in slots]

    before, after = (lead + thought, "") if template.enable_thinking else (lead, thought)
    template.format_user = StringFormatter([*text(template.format_user.slots), *([after] if after else [])])
    template.format_assistant = StringFormatter([*([before] if before else []), *text(template.format_assistant.slots)])
    template.format_system = StringFormatter(text(template.format_system.slots))
    template.format_prefix.slots = text(template.format_prefix.slots)
    return str(template._get_jinja_template(side.tokenizer))


def trained_template(merged: Path, template: str, train_args: dict[str, Any], tgi: bool = True) -> str:
    """Return a chat template that makes exactly the ids of LLaMA Factory's `template`.

    Raises GateError when no Jinja template can: LLaMA Factory tokenises some templates piece by piece.
    """
    side, first = trainer(merged, template, train_args), ""
    for lead in ("", " "):
        text = written(side, lead)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            _copy_tokenizer(merged, copy)
            put_template(copy, text)
            found = differences(copy, load_tokenizer(copy), side, tgi)
        if not found:
            return text
        first = first or "; ".join(f"{name}: {what}" for name, what in found.items())
    raise GateError(
        f"template {template} cannot be written as a chat template for {merged} ({first})",
        "set another template: in the model file and train again",
    )


def _copy_tokenizer(merged: Path, copy: Path) -> None:
    for path in merged.iterdir():
        if path.is_file() and path.suffix in (".json", ".model", ".txt") and "index" not in path.name:
            shutil.copy(path, copy)


def put_template(merged: Path, text: str) -> None:
    """Write `text` as the one chat template of a folder: tokenizer_config.json for TGI, chat_template.jinja besides."""
    config = {**served.read(merged, "tokenizer_config.json"), "chat_template": text}
    (merged / "chat_template.json").unlink(missing_ok=True)
    (merged / "chat_template.jinja").write_text(text, encoding="utf-8")
    (merged / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_trained_template(
    merged: Path, template: str, train_args: dict[str, Any] | None = None, tgi: bool = True
) -> None:
    """Replace a folder's chat template by the one it was trained with (`merge.chat_template: trained`)."""
    put_template(merged, trained_template(merged, template, train_args or {}, tgi))
