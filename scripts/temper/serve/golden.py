"""Replay recorded prompts against a running server and compare the answers: any server with a chat endpoint.

golden.json, written by the merge stage: {"max_new_tokens": N, "near_tie": {dtype: logits}, "prompts": [{"messages",
"prompt_ids", "completion_ids", "text", "margins"}]}; `text` is the completion without special tokens, and margins[i]
the logit gap between first and second choice for completion token i.
Covers the length of the prompt (the template and special tokens) and the greedy answer. Does not cover sampling.
Standard library only.
"""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from temper.errors import GateError, ResultError
from temper.serve import direct
from temper.serve.load import EIGHT_BITS

NEAR_TIE = 0.05  # logits: below this gap other kernels may well choose the other token
UNFINISHED = "\ufffd"  # shown for a character that the token limit cut
# Measured on SmolLM2-135M in 8 bits: margins move 2.5 times as far as in bfloat16 (by up to 1.18, against 0.48).
ROUGHER = {EIGHT_BITS: ("bfloat16", 2.5)}
SHOWN = 60  # characters of a text in a message


class Agreement(NamedTuple):
    """How many recorded prompts were replayed, and how many answers were word for word those recorded."""

    prompts: int
    exact: int

    def __str__(self) -> str:
        part = "" if self.exact == self.prompts else f", {self.exact} of them word for word"
        return f"{self.prompts} golden prompts agree{part}"


def read(path: Path) -> dict[str, Any]:
    """Return the recorded prompts; ResultError when there are none or they cannot be read."""
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        if golden["prompts"] and golden["max_new_tokens"] > 0:
            return dict(golden)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} cannot be read ({type(error).__name__}: {error})", "run: make merge") from None
    raise ResultError(f"{path} holds no prompts", "run: make merge")


def replay(
    url: str,
    golden: dict[str, Any],
    api_key: str | None = None,
    model: str = "tgi",
    dtype: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Agreement:
    """Ask the server at `url` every recorded prompt; GateError names the first whose answer differs.

    `dtype` is what the server computes in: how near a tie must be to be broken either way depends on it.
    """
    like, factor = ROUGHER.get(dtype, (dtype, 1.0))
    prompts, near_tie, exact = golden["prompts"], factor * golden.get("near_tie", {}).get(like, NEAR_TIE), 0
    for number, prompt in enumerate(prompts, 1):
        say(f"golden prompt {number} of {len(prompts)}")
        reply = _ask(url, prompt["messages"], golden["max_new_tokens"], api_key, model)
        if problem := difference(prompt, reply, near_tie):
            raise GateError(
                f"golden prompt {number} ({_show(prompt['messages'][-1]['content'])}): {problem}",
                "the server does not run the model as it was merged; run: make verify",
            )
        exact += reply["choices"][0]["message"]["content"] == prompt["text"]
    return Agreement(len(prompts), exact)


def _ask(url: str, messages: list[Any], tokens: int, api_key: str | None, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "logprobs": True}
    try:
        return dict(direct.post(f"{url}/v1/chat/completions", body, api_key, 600))
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")
        raise GateError(f"{url} answered a golden prompt with {error.code}: {_show(said)}", "run: make logs") from None
    except (OSError, ValueError) as error:
        raise GateError(f"{url} did not answer a golden prompt ({error})", "run: make logs") from None


def difference(prompt: dict[str, Any], reply: dict[str, Any], near_tie: float = NEAR_TIE) -> str:
    """Say how an answer differs from the recorded one; "" where it does not, or only from a near tie on."""
    counted, known = reply["usage"]["prompt_tokens"], len(prompt["prompt_ids"])
    if counted != known:
        return f"expected {known} prompt tokens, got {counted}: the server fills in another chat template"
    choice = reply["choices"][0]
    pieces = [token["token"] for token in (choice.get("logprobs") or {}).get("content") or []]
    expected, got = prompt["text"], choice["message"]["content"]
    if expected.endswith(UNFINISHED):  # servers differ in what they show of a cut character, TGI shows nothing at all
        expected, got = expected.rstrip(UNFINISHED), got.rstrip(UNFINISHED) or "".join(pieces).rstrip(UNFINISHED)
    if expected == got:
        return ""
    tie = next((at for at, gap in enumerate(prompt["margins"]) if gap < near_tie), None)
    # Pieces of text stand for the tokens before the tie: they must be the beginning of what was recorded.
    if tie is not None and len(pieces) >= tie and expected.startswith("".join(pieces[:tie])):
        return ""
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    start = max(0, at - SHOWN // 2)
    return f"expected {_show(expected[start:])}, got {_show(got[start:])} (from character {start})"


def _show(text: Any) -> str:
    text = str(text)
    return json.dumps(text if len(text) <= SHOWN else text[:SHOWN] + "…", ensure_ascii=False)
