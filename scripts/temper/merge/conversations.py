"""Fixed conversations as both sides tokenise them: LLaMA Factory in training, and the server through its chat template.

Covered: text conversations with and without a system prompt, through LLaMA Factory's own tokenizer loading and template
code. Not covered: tools, images, and truncation by cutoff_len.
"""

from __future__ import annotations

import logging
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.errors import GateError
from temper.merge import served
from temper.merge.served import Message

SHIMS = Path(__file__).resolve().parents[2] / "shims"
TOKENIZER_ARGS = (
    "use_fast_tokenizer",
    "split_special_tokens",
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
)
TEMPLATE_ARGS = (
    "train_on_prompt",
    "mask_history",
    "tool_format",
    "default_system",
    "enable_thinking",
    "preserve_thinking",
)
CODE = "def area(r):\n    # r in metres\n    return 3.14159 * r ** 2\n\n\tprint(area(2))"


def _turns(*contents: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS: dict[str, list[Message]] = {
    "plain": _turns("What are your opening hours?"),
    "system": _turns("Who are you?", system="You answer in one short sentence."),
    "multi-turn": _turns("Hello", "Hello! How can I help?", "Where is my parcel 4711?", "It left today.", "Thanks."),
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
        turns = [*messages[1 if system else 0 :], {"role": "assistant", "content": "-"}]
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
    data_args = DataArguments(template=template, **{key: train_args[key] for key in TEMPLATE_ARGS if key in train_args})
    original = TEMPLATES[template]
    TEMPLATES[template] = deepcopy(original)  # the call writes default_system and more into the shared object
    try:
        return Trainer(tokenizer, get_template_and_fix_tokenizer(tokenizer, data_args), data_args)
    finally:
        TEMPLATES[template] = original


def _shown(tokenizer: Any, ids: list[int], at: int) -> str:
    return f"{tokenizer.decode(ids[at : at + 3])!r} {ids[at : at + 3]}"


def _difference(tokenizer: Any, trained: list[int], sent: list[int], who: str) -> str | None:
    """Say where two id lists part and what each holds there; None when they are equal."""
    if trained == sent:
        return None
    pairs = enumerate(zip(trained, sent, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(trained), len(sent)))
    return (
        f"token {at}: trained on {_shown(tokenizer, trained, at)}, {who} sends {_shown(tokenizer, sent, at)} "
        f"({len(trained)} and {len(sent)} tokens)"
    )


def prompts(merged: Path, tokenizer: Any, messages: list[Message], tgi: bool) -> dict[str, str]:
    """Return the prompt text each kind of server makes of a conversation; Refused when its template raises."""
    found = {"TGI": served.render_as_tgi(merged, messages)} if tgi else {}
    from jinja2 import TemplateError

    try:
        found["transformers"] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise served.Refused(str(error)) from None
    return found


def differences(merged: Path, tokenizer: Any, side: Trainer, tgi: bool = True) -> dict[str, str]:
    """Return each fixed conversation whose ids differ, with the first difference in words.

    A template that refuses a system prompt is no silent fault: the server answers with an error. It is one here only
    when every training row has a system prompt.
    """
    found = {}
    for name, messages in CONVERSATIONS.items():
        trained = side.prompt_ids(messages)
        try:
            texts = prompts(merged, tokenizer, messages, tgi)
        except served.Refused as error:
            if messages[0]["role"] != "system" or side.data_args.default_system:
                found[name] = f"the server refuses it ({error})"
            continue
        for who, text in texts.items():
            sent = tokenizer.encode(text, add_special_tokens=False)
            if different := _difference(tokenizer, trained, sent, who):
                found.setdefault(name, different)
    return found


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer as servers do."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))
