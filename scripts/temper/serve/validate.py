"""TGI's checks of a request, in TGI's order and words (router/src/validation.rs), and what is not offered yet.

Not offered yet, and refused as a TGI started without them refuses: best_of above 1 (--max-best-of 1), top_n_tokens
(--max-top-n-tokens 0), grammars (--disable-grammar-support). Tools, watermark and adapter_id have no such switch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from temper.serve import faults
from temper.serve.bodies import ChatRequest, GenerateParameters, Message

# TGI checks room for this many tokens and asks again each time they are used up.
CHUNK = 1024


@dataclass(frozen=True)
class Limits:
    """What the server accepts; published by /info."""

    max_input_tokens: int
    max_total_tokens: int
    max_concurrent_requests: int = 128
    max_best_of: int = 1
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 0
    max_client_batch_size: int = 4


@dataclass(frozen=True)
class Prompt:
    """What the model continues."""

    text: str
    special_tokens: bool  # whether the tokenizer adds its own; never to templated text


@dataclass(frozen=True)
class Valid:
    """A request the model can run."""

    input_ids: list[int]
    max_new_tokens: int
    stop: list[str]
    sampling: bool
    seed: int
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    typical_p: float = 1.0
    prefill: bool = False  # whether log probabilities of the prompt are wanted


def before_streaming(given: GenerateParameters) -> None:
    """Refuse what a stream cannot carry."""
    if (1 if given.best_of is None else given.best_of) != 1:
        raise faults.invalid("`best_of` != 1 is not supported when streaming tokens")
    if given.decoder_input_details:
        raise faults.invalid("`decoder_input_details` == true is not supported when streaming tokens")


def before_generating(given: GenerateParameters, limits: Limits) -> None:
    """Refuse several answers where only one is made."""
    best_of = given.best_of or 1
    if best_of > 1 and limits.max_best_of == 1:
        raise faults.invalid("`best_of` != 1 is not allowed for this endpoint")


def check(given: GenerateParameters, prompt: Prompt, limits: Limits, encode: Callable[[Prompt], list[int]]) -> Valid:
    """Return the request with defaults filled in and its prompt as token ids; Fault for the first check it fails."""
    _check_sampling(given)
    _check_counts(given, limits)
    if not prompt.text:
        raise faults.invalid("`inputs` cannot be empty")
    truncate = given.truncate
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise faults.invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        )
    ids = encode(prompt)
    ids = ids[-truncate:] if truncate else ids
    _check_room(len(ids), given.max_new_tokens, limits)
    _refuse_unsupported(given)
    return _filled(given, ids, limits)


def _check_sampling(given: GenerateParameters) -> None:
    if given.temperature is not None and given.temperature <= 0:
        raise faults.invalid("`temperature` must be strictly positive")
    if given.repetition_penalty is not None and given.repetition_penalty <= 0:
        raise faults.invalid("`repetition_penalty` must be strictly positive")
    if given.frequency_penalty is not None and not -2 <= given.frequency_penalty <= 2:
        raise faults.invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if given.top_p is not None and not 0 < given.top_p < 1:
        raise faults.invalid("`top_p` must be > 0.0 and < 1.0")
    if given.typical_p is not None and not 0 < given.typical_p < 1:
        raise faults.invalid("`typical_p` must be > 0.0 and < 1.0")
    if given.top_k is not None and given.top_k <= 0:
        raise faults.invalid("`top_k` must be strictly positive")


def _check_counts(given: GenerateParameters, limits: Limits) -> None:
    if given.max_new_tokens == 0:
        raise faults.invalid("`max_new_tokens` must be strictly positive")
    if len(given.stop) > limits.max_stop_sequences:
        raise faults.invalid(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(given.stop)}"
        )
    if given.top_n_tokens is not None and given.top_n_tokens > limits.max_top_n_tokens:
        raise faults.invalid(
            f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {given.top_n_tokens}"
        )


def _check_room(length: int, asked: int | None, limits: Limits) -> None:
    new = min(max(limits.max_total_tokens - length, 0) if asked is None else asked, CHUNK)
    if length + new > limits.max_total_tokens:
        raise faults.invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {length} `inputs` tokens and {new} `max_new_tokens`"
        )
    if length > limits.max_input_tokens:
        raise faults.invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {length}")


def _refuse_unsupported(given: GenerateParameters) -> None:
    if given.grammar is not None:
        raise faults.invalid("grammar is not supported")
    if given.watermark:
        raise faults.invalid("`watermark` is not supported by this server")
    if given.adapter_id is not None:
        raise faults.invalid("`adapter_id` is not supported by this server")


def _filled(given: GenerateParameters, ids: list[int], limits: Limits) -> Valid:
    warped = given.temperature not in (None, 1.0) or given.top_k or given.top_p or given.typical_p
    return Valid(
        input_ids=ids,
        max_new_tokens=token_limit(len(ids), given.max_new_tokens, limits),
        stop=given.stop,
        sampling=given.do_sample or bool(warped),
        seed=random.getrandbits(64) if given.seed is None else given.seed,
        temperature=1.0 if given.temperature is None else given.temperature,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        frequency_penalty=given.frequency_penalty or 0.0,
        top_k=given.top_k or 0,
        top_p=given.top_p or 1.0,
        typical_p=given.typical_p or 1.0,
        prefill=given.decoder_input_details,
    )


def token_limit(length: int, asked: int | None, limits: Limits) -> int:
    """Return how many tokens may be made after `length` of prompt.

    TGI goes on after each CHUNK tokens as long as the next chunk has room and prompt and answer so far would be
    accepted as a prompt. Unlike TGI this never makes more than were asked for.
    """
    room = limits.max_total_tokens - length
    wanted = room if asked is None else asked
    made = min(wanted, CHUNK)
    while made < wanted:
        step = min(room - made if asked is None else asked, CHUNK)
        if length + made > limits.max_input_tokens or made + step > room:
            break
        made = min(made + step, wanted)
    return made


def of_chat(chat: ChatRequest, render: Callable[[list[Message]], str]) -> tuple[Prompt, GenerateParameters]:
    """Return a chat request as a prompt and parameters; Fault for tools and for messages the template refuses."""
    if chat.tools is not None:
        if chat.response_format is not None:
            raise faults.tool("Grammar and tools are mutually exclusive")
        if chat.tool_choice != "none":
            raise faults.tool("tools are not supported by this server")
    for message in chat.messages:
        if message.unsupported:
            raise faults.invalid(message.unsupported)
    greedy = chat.temperature == 0
    return Prompt(render(chat.messages), special_tokens=False), GenerateParameters(
        temperature=None if greedy else chat.temperature,
        do_sample=not greedy,
        details=True,
        # TGI's own mapping: OpenAI's -2 to 2 onto a factor of 0 to 4.
        repetition_penalty=None if chat.presence_penalty is None else chat.presence_penalty + 2.0,
        frequency_penalty=chat.frequency_penalty,
        top_p=chat.top_p,
        max_new_tokens=chat.max_tokens,
        stop=chat.stop or [],
        seed=chat.seed,
        top_n_tokens=chat.top_logprobs,
        grammar=chat.response_format,
    )
