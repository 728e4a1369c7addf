"""The engine: many requests at once with the answers that each would have alone, in memory that is set at the start."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from serve_model import reference

from temper.serve import decoder, load, runner
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
    """With it no layer goes row by row, and beginnings of any length are known; only last bits are other than alone."""
    engine = Engine(load.load(folder, "float32", 1), LIMITS, 1600, Metrics(LIMITS), variant=True)
    try:
        layers = [layer for layer in engine.loaded.model.modules() if isinstance(layer, runner._Linear)]
        assert layers and not any(layer.mixed for layer in layers)
        for prompts in (PROMPTS, [PROMPTS[0], PROMPTS[1], PROMPTS[7]]):  # of like length, and not
            for prompt, answer in zip(prompts, made(engine, prompts), strict=True):
                wanted, _ = reference(folder, prompt, TOKENS, "float32")
                assert answer == wanted[: len(answer)] and len(answer) == len(wanted)
        place = engine.runner.start([*PROMPTS[7][:100], 5, 6], 102)
        assert place and place.length == 100
    finally:
        engine.stop()


@pytest.mark.parametrize("variant", [False, True])
def test_who_is_read_together(folder: Path, variant: bool) -> None:
    """Prompts that wait are read a few at a time with batch_variant, else one by one; a long one always is alone."""
    engine = Engine(load.load(folder, "float32", 1), LIMITS, 1600, Metrics(LIMITS), variant)
    try:
        busy, submitted = threading.Event(), threading.Event()
        engine.submit(Valid([5], 1, [], False, 0), lambda _: (busy.set(), submitted.wait(60)))
        assert busy.wait(60)
        answers = [queue.SimpleQueue[Any]() for _ in PROMPTS]
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            engine.submit(Valid(prompt, 2, [], False, 0), answer.put)
        submitted.set()
        assert all(list(steps(answer)) for answer in answers)
        # Of 9, 32, 55, 78 (174 in all), 101, 124, 147 and 170 tokens: 128 are enough, and above 128 is alone.
        reads = f'tgi_batch_inference_count{{method="prefill"}} {1 + (4 if variant else 8)}'
        assert f"{reads}\n" in engine.metrics.render()
    finally:
        engine.stop()


def test_what_is_not_read_yet_is_not_known(engine: Engine) -> None:
    """A prompt takes over no keys and values of one that has a place and was not read."""
    prompt = [9] * 150
    assert engine.runner.start(prompt, 151).length == engine.runner.start(prompt, 151).length == 0


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [*decoder.TYPES, "gemma", "phi"])
def test_other_models_together_as_alone(kind: str, dtype: str) -> None:
    """What Decoder knows runs by it, other models by their own modules, and both give the tokens of transformers.

    So does batch_variant in float32, where a last bit decides nothing.
    """
    torch.manual_seed(1)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model(
        kind,
        **heads,
        hidden_size=48,
        intermediate_size=80,
        vocab_size=300,
        pad_token_id=0,
        eos_token_id=[],
        sliding_window=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    for name, weights in model.named_parameters():
        if name.endswith("bias"):
            weights.data.normal_()
    prompts = [[2 + (7 * row + 3 * at) % 290 for at in range(9 + 23 * row)] for row in range(5)]
    wanted = [
        model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    run = runner.make(model, 1000)
    assert isinstance(run, runner.Runner) and (run.decoder is not None) == (kind in decoder.TYPES)
    for variant in (False, True) if dtype == "float32" else (False,):
        if variant:
            run.vary()
        places = [run.start(prompt, len(prompt) + 12) for prompt in prompts]
        parts = [(place, prompt[place.length :]) for place, prompt in zip(places, prompts, strict=True)]
        answers = [[int(run.forward([part]).argmax())] for part in parts]
        for _ in range(11):
            rows = run.forward([(place, answer[-1:]) for place, answer in zip(places, answers, strict=True)])
            for answer, token in zip(answers, rows.argmax(-1).tolist(), strict=True):
                answer.append(token)
        assert answers == wanted
        for place in places:
            run.finish(place)
