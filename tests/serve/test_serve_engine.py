"""The engine: many requests at once with the answers that each would have alone, in memory that is set at the start."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serve_model import reference

from temper.serve import load, runner
from temper.serve.engine import Engine, Step
from temper.serve.metrics import Metrics
from temper.serve.validate import Limits, Valid

LIMITS = Limits(300, 400)
PROMPTS = [[2 + (7 * row + 3 * at) % 330 for at in range(9 + 23 * row)] for row in range(8)]
TOKENS = 24


def made(engine: Engine, prompts: Sequence[list[int]], tokens: int = TOKENS) -> list[list[int]]:
    """Return the greedy answers of requests that come at the same time."""
    answers: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        engine.submit(Valid(prompt, tokens, [], False, 0), answer.put)
    return [[step.token.id for step in steps(answer)] for answer in answers]


def steps(answer: queue.SimpleQueue[Any]) -> Iterator[Step]:
    """Yield an answer's steps."""
    while True:
        step = answer.get(timeout=60)
        assert isinstance(step, Step), step
        yield step
        if step.end:
            return


@pytest.fixture(params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    """Give an engine with room for a few requests."""
    engine = Engine(load.load(folder, request.param, 1), LIMITS, 1600, Metrics(LIMITS))
    yield engine
    engine.stop()


def test_together_as_alone(engine: Engine, folder: Path) -> None:
    """Eight requests of different lengths get what transformers makes of each, token for token."""
    assert isinstance(engine.runner, runner.Runner)
    answers = made(engine, PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        wanted, _ = reference(folder, prompt, TOKENS, engine.loaded.dtype)
        assert answer == wanted[: len(answer)] and len(answer) == len(wanted)


def test_a_known_beginning_is_not_computed_again(engine: Engine, folder: Path) -> None:
    """A prompt that begins like an earlier one takes over its keys and values, and the answer stays the same."""
    beginning = PROMPTS[7][:140]
    first, second = [*beginning, 5, 6], [*beginning, 9, 10, 11]
    made(engine, [first], 2)
    place = engine.runner.start(second, len(second))
    assert place and place.length == 128
    engine.runner.finish(place)
    (answer,) = made(engine, [second])
    wanted, _ = reference(folder, second, TOKENS, engine.loaded.dtype)
    assert answer == wanted[: len(answer)] and len(answer) == len(wanted)


def test_batch_variant_makes_all_rows_at_once(folder: Path) -> None:
    """With it no layer goes row by row, in float32 either, where each shape mixes rows; a request alone is exact."""
    engine = Engine(load.load(folder, "float32", 1), LIMITS, 1600, Metrics(LIMITS), variant=True)
    try:
        layers = [layer for layer in engine.loaded.model.modules() if isinstance(layer, runner._Linear)]
        assert layers and not any(layer.mixed for layer in layers)
        (answer,) = made(engine, PROMPTS[:1])
        wanted, _ = reference(folder, PROMPTS[0], TOKENS, "float32")
        assert answer == wanted[: len(answer)]
        assert all(made(engine, PROMPTS))
    finally:
        engine.stop()


@pytest.mark.parametrize("separate", [False, True])
def test_who_finds_no_room_waits(folder: Path, separate: bool) -> None:
    """With room for one request, several are answered one after the other; all room is free again afterwards."""
    loaded = load.load(folder, "float32", 1)
    loaded.model._supports_attention_backend = not separate
    engine = Engine(loaded, LIMITS, LIMITS.max_total_tokens, Metrics(LIMITS))
    try:
        assert isinstance(engine.runner, runner.Separate) is separate
        alone = [made(engine, [prompt], 200)[0] for prompt in PROMPTS[:3]]
        assert made(engine, PROMPTS[:3], 200) == alone
        assert engine.runner.start((), LIMITS.max_total_tokens)
    finally:
        engine.stop()


def test_a_request_that_is_given_up_leaves_its_room(engine: Engine) -> None:
    """A cancelled request makes no further token, and the next one gets its room."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    job = engine.submit(Valid(PROMPTS[0], 390, [], False, 0), answer.put)
    assert isinstance(answer.get(timeout=60), Step)
    job.cancelled = True
    assert len(made(engine, PROMPTS[:4], 5)) == 4
    assert all(place.idle for place in engine.runner.places) if isinstance(engine.runner, runner.Runner) else True
