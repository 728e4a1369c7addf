"""Prompt parity: the token ids LLaMA Factory trains on are those the server makes from the same conversation.

Covered: text conversations with and without a system prompt, through LLaMA Factory's own tokenizer loading and template
code. Not covered: tools, images, and truncation by cutoff_len.
"""

from __future__ import annotations

import json
import logging
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.errors import GateError
from temper.merge import served
from temper.merge.outcome import Outcome, attempt, failed, judged, passed
from temper.merge.served import Message

SHIMS = Path(__file__).resolve().parents[2] / "shims"
TOKENIZER_ARGS = ("use_fast_tokenizer", "split_special_tokens", "add_tokens", "add_special_tokens",
                  "new_special_tokens_config")
TEMPLATE_ARGS = ("train_on_prompt", "mask_history", "tool_format", "default_system", "enable_thinking",
                 "preserve_thinking")
AGAIN = "delete the merged folder and merge again"
CODE = "def area(r):\n    # r in metres\n    return 3.14159 * r ** 2\n\n\tprint(area(2))"


def _turns(*contents: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS: dict[str, list[Message]] = {
    "plain": _turns("What are your opening hours?"),
    "system": _turns("Who are you?", system="You answer in one short sentence."),
    "multi-turn": _turns("Hello", "Hello! How can I help?", "Where is my parcel 4711?", "It left on Monday.", "Thanks."),
    "system multi-turn": _turns("Hi", "Yes?", "What is 2 + 2?", system="Be brief.\nBe exact."),
    "Chinese": _turns("请问退货需要几天？", "一般需要七个工作日。", "运费谁承担？（含税）"),
    "code": _turns(f"Explain this:\n```python\n{CODE}\n```"),
    "blanks": _turns("  two blanks before, one blank and two line ends after \n\n"),
    "emoji": _turns("Café 👩‍🚀 naïve ½ 🇨🇳?"),
}


@dataclass(frozen=True)
class Trainer:
    """How LLaMA Factory turns a conversation into ids: its tokenizer, its template object, its data arguments."""

    tokenizer: Any
    template: Any
    data_args: Any

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Return the ids before the answer to the last user message, history included."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = [*messages[1 if system else 0:], {"role": "assistant", "content": "-"}]
        drop = self.data_args.mask_history and not self.template.preserve_thinking
        pairs = self.template.encode_multiturn(self.tokenizer, turns, system, None, drop)
        return [token for pair in pairs for part in pair for token in part][: -len(pairs[-1][1])]

    def end_ids(self) -> list[int]:
        """Return the ids trained on after an answer's text."""
        after: list[Any] = []
        for slot in self.template.format_assistant.slots:
            if isinstance(slot, str) and "{{content}}" in slot:
                after = [slot.split("{{content}}", 1)[1]]
            else:
                after.append(slot)
        after += [{"eos_token"}] if self.template.efficient_eos else []
        return list(self.template._convert_elements_to_ids(self.tokenizer, after))


def _import_llamafactory() -> None:
    """Import LLaMA Factory's template code, quietly; it imports torchaudio, which text training never calls."""
    import importlib.util

    if importlib.util.find_spec("torchaudio") is None:
        sys.path.append(str(SHIMS))
    import llamafactory.data.template
    import llamafactory.model.loader  # noqa: F401

    logging.getLogger("llamafactory").setLevel(logging.ERROR)  # it sets its own level when it is imported


def trainer(folder: Path, template: str, train_args: dict[str, Any]) -> Trainer:
    """Return LLaMA Factory's side for a base model's folder; GateError for a template it does not have."""
    _import_llamafactory()
    from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model.loader import load_tokenizer

    if template not in TEMPLATES:
        raise GateError(f"LLaMA Factory has no template {template}", "set template: in the model file to one it has")
    given = {key: train_args[key] for key in TOKENIZER_ARGS if key in train_args}
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(folder), **given))["tokenizer"]
    data_args = DataArguments(
        template=template, **{key: train_args[key] for key in TEMPLATE_ARGS if key in train_args})
    original = TEMPLATES[template]
    TEMPLATES[template] = deepcopy(original)  # the call writes default_system and more into the shared object
    try:
        return Trainer(tokenizer, get_template_and_fix_tokenizer(tokenizer, data_args), data_args)
    finally:
        TEMPLATES[template] = original


def _shown(tokenizer: Any, ids: list[int], at: int) -> str:
    return f"{tokenizer.decode(ids[at:at + 3])!r} {ids[at:at + 3]}"


def _difference(tokenizer: Any, trained: list[int], sent: list[int], who: str) -> str | None:
    """Say where two id lists part and what each holds there; None when they are equal."""
    if trained == sent:
        return None
    at = next((i for i, (one, other) in enumerate(zip(trained, sent)) if one != other), min(len(trained), len(sent)))
    return (f"token {at}: trained on {_shown(tokenizer, trained, at)}, {who} sends {_shown(tokenizer, sent, at)} "
            f"({len(trained)} and {len(sent)} tokens)")


def _sent(merged: Path, tokenizer: Any, messages: list[Message], tgi: bool) -> dict[str, str]:
    prompts = {"TGI": served.render_as_tgi(merged, messages)} if tgi else {}
    from jinja2 import TemplateError

    try:
        prompts["transformers"] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise served.Refused(str(error)) from None
    return prompts


def differences(merged: Path, tokenizer: Any, side: Trainer, tgi: bool = True) -> dict[str, str]:
    """Return each fixed conversation whose ids differ, with the first difference in words.

    A template that refuses a system prompt is no silent fault: the server answers with an error. It is one here only
    when every training row has a system prompt.
    """
    found = {}
    for name, messages in CONVERSATIONS.items():
        trained = side.prompt_ids(messages)
        try:
            prompts = _sent(merged, tokenizer, messages, tgi)
        except served.Refused as error:
            if messages[0]["role"] != "system" or side.data_args.default_system:
                found[name] = f"the server refuses it ({error})"
            continue
        for who, text in prompts.items():
            sent = tokenizer.encode(text, add_special_tokens=False)
            if different := _difference(tokenizer, trained, sent, who):
                found.setdefault(name, different)
    return found


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer as servers do."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def check(base: Path, merged: Path, template: str, train_args: dict[str, Any], end_token: str | None = None,
          tgi: bool = True) -> list[Outcome]:
    """Compare trained and served ids on the fixed conversations, and the end of an answer with the served eos ids."""
    side = trainer(base, template, train_args)
    return [attempt("prompt parity", lambda: _prompts(merged, side, template, train_args, tgi), AGAIN),
            attempt("answer end", lambda: _end(merged, side, end_token, tgi), AGAIN)]


def _prompts(merged: Path, side: Trainer, template: str, train_args: dict[str, Any], tgi: bool) -> Outcome:
    tokenizer = load_tokenizer(merged)
    count = sum(len(side.prompt_ids(messages)) for messages in CONVERSATIONS.values())
    found = differences(merged, tokenizer, side, tgi)
    numbers = {"conversations": len(CONVERSATIONS), "tokens": count, "differ": len(found)}
    if not found:
        return passed("prompt parity", f"{len(CONVERSATIONS)} conversations, {count} tokens: the server sends what was "
                      "trained on", **numbers)
    name, first = next(iter(found.items()))
    others = f" (also: {', '.join(list(found)[1:])})" if len(found) > 1 else ""
    return failed("prompt parity", f"conversation {name!r}{others}, {first}",
                  remedy(merged, tokenizer, template, train_args, tgi), **numbers)


def _end(merged: Path, side: Trainer, end_token: str | None, tgi: bool) -> Outcome:
    trained, eos = side.end_ids(), served.eos_ids(merged, tgi)
    words = side.tokenizer.convert_ids_to_tokens(trained)
    problems = []
    if not trained:
        problems.append("training puts nothing after an answer, so the model never learns to stop")
    elif not eos & set(trained):
        problems.append(f"training ends an answer with {words} {trained}, which is not among the served eos ids "
                        f"{sorted(eos)}: answers would run to the length limit")
    if end_token and end_token not in words:
        problems.append(f"the model's end token {end_token} is not what training ends an answer with, {words}")
    return judged("answer end", problems, "set end_token: and template: in the model file to agree, then merge again",
                  f"answers end with {words[0] if words else ''!r}, served eos ids {sorted(eos)}",
                  trained=trained, eos=sorted(eos))


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
        sent = [tokenizer.encode(text, add_special_tokens=False)
                for text in _sent(merged, tokenizer, plain, tgi).values()]
    except served.Refused:
        return []
    for name, candidate in TEMPLATES.items():
        elements = candidate.encode_oneturn(tokenizer, [*plain, {"role": "assistant", "content": "-"}])[0]
        # A cheap first look with the tokenizer as it is; the whole comparison only for the few that pass.
        if all(ids == elements for ids in sent):
            side = trainer(merged, name, train_args)
            if not differences(merged, tokenizer, side, tgi) and set(side.end_ids()) & served.eos_ids(merged, tgi):
                names.append(name)
    return names


def _written(side: Trainer, lead: str) -> str:
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
    import tempfile

    side, first = trainer(merged, template, train_args), ""
    for lead in ("", " "):
        text = _written(side, lead)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            _copy_tokenizer(merged, copy)
            put_template(copy, text)
            found = differences(copy, load_tokenizer(copy), side, tgi)
        if not found:
            return text
        first = first or "; ".join(f"{name}: {what}" for name, what in found.items())
    raise GateError(f"template {template} cannot be written as a chat template for {merged} ({first})",
                    "set another template: in the model file and train again")


def _copy_tokenizer(merged: Path, copy: Path) -> None:
    import shutil

    for path in merged.iterdir():
        if path.is_file() and path.suffix in (".json", ".model", ".txt") and "index" not in path.name:
            shutil.copy(path, copy)


def put_template(merged: Path, text: str) -> None:
    """Write `text` as the one chat template of a folder, into tokenizer_config.json, where every server looks."""
    config = served.read(merged, "tokenizer_config.json")
    for name in ("chat_template.json", "chat_template.jinja"):
        (merged / name).unlink(missing_ok=True)
    config["chat_template"] = text
    (merged / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_trained_template(merged: Path, template: str, train_args: dict[str, Any] | None = None,
                           tgi: bool = True) -> None:
    """Replace a folder's chat template by the one it was trained with (`merge.chat_template: trained`)."""
    put_template(merged, trained_template(merged, template, train_args or {}, tgi))
