"""TGI's checks of a request, in TGI's order and words (router/src/validation.rs)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from temper.serve import faults
from temper.serve.bodies import GenerateParameters, GrammarType

if TYPE_CHECKING:
    from llguidance import LLMatcher

# TGI checks room for this many tokens and asks again each time they are used up.
CHUNK = 1024


@dataclass(frozen=True)
class Limits:
    """What the server accepts; published by /info."""

    max_input_tokens: int
    max_total_tokens: int
    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    grammars: bool = True


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
    top: int = 0  # how many of the likeliest tokens are wanted
    watermark: bool = False
    grammar: LLMatcher | None = None  # at its start


def before_streaming(given: GenerateParameters) -> None:
    """Refuse what a stream cannot carry."""
    if (1 if given.best_of is None else given.best_of) != 1:
        raise faults.invalid("`best_of` != 1 is not supported when streaming tokens")
    if given.decoder_input_details:
        raise faults.invalid("`decoder_input_details` == true is not supported when streaming tokens")


def before_generating(given: GenerateParameters, limits: Limits) -> None:
    """Refuse more answers to choose from than there may be; 0 means 1."""
    best_of = given.best_of or 1
    if best_of > 1 and limits.max_best_of == 1:
        raise faults.invalid("`best_of` != 1 is not allowed for this endpoint")
    if best_of > limits.max_best_of:
        raise faults.invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")


def check(
    given: GenerateParameters,
    prompt: Prompt,
    limits: Limits,
    encode: Callable[[Prompt], list[int]],
    matcher: Callable[[GrammarType], LLMatcher],
) -> Valid:
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
    if given.grammar is not None and not limits.grammars:
        raise faults.invalid("grammar is not supported")
    return _filled(given, ids, limits, None if given.grammar is None else matcher(given.grammar))


def _check_sampling(given: GenerateParameters) -> None:
    warped = (given.temperature, given.top_k, given.top_p, given.typical_p)
    if (given.best_of or 1) > 1 and not given.do_sample and warped == (None,) * 4:
        raise faults.invalid("you must use sampling when `best_of` is > 1")
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
    if given.seed is not None and (given.best_of or 1) > 1:
        raise faults.invalid("`seed` must not be set when `best_of` > 1")
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


def _filled(given: GenerateParameters, ids: list[int], limits: Limits, grammar: LLMatcher | None) -> Valid:
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
        top=given.top_n_tokens or 0,
        watermark=given.watermark,
        grammar=grammar,
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
