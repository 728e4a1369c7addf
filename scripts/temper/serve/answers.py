"""From a prompt to its answer: a place in the engine, TGI's checks, the tokens; whole, best of several, or streamed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from temper.serve import access, replies, validate
from temper.serve.bodies import GenerateParameters
from temper.serve.engine import Engine, Step
from temper.serve.faults import Fault, Rejection
from temper.serve.grammar import Grammars
from temper.serve.metrics import Metrics
from temper.serve.replies import Answer
from temper.serve.validate import Prompt

KEEP_ALIVE_S = 15.0  # a comment after this long without a token, as TGI sends it
KEEP_ALIVE = b":\n\n"
Result = TypeVar("Result")
Events = AsyncGenerator[bytes, None]


@dataclass
class Server:
    """What the routes need."""

    engine: Engine
    model_id: str
    api_key: str | None
    metrics: Metrics
    origins: Sequence[str] = ()  # of pages that may ask from a browser
    # One thread for templates, tokens and grammars: they must not hold up the event loop, nor race each other.
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompt"))

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.engine.loaded)

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Return what `work` gives, done beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def server_of(request: Request) -> Server:
    """Return the server a request came to."""
    return request.app.state.server


@dataclass(frozen=True)
class Completed:
    """The answer to a request, the headers that go with it, and with best_of the answers that were worse."""

    answer: Answer
    headers: dict[str, str]
    losers: list[Answer] | None


async def complete(request: Request, prompt: Prompt, given: GenerateParameters) -> Completed:
    """Return the answer, of several the one with the highest mean log probability; Fault when there is none."""
    server, arrived = server_of(request), time.monotonic()
    server.metrics.request()
    validate.before_generating(given, server.engine.limits)
    answers = await together(_whole(request, prompt, given) for _ in range(given.best_of or 1))
    best = max(answers, key=Answer.mean_logprob)
    server.metrics.answered(arrived, best.end)
    headers = replies.headers(_compute_type(), len(prompt.text), arrived, best.end)
    losers = [answer for answer in answers if answer is not best]
    return Completed(best, headers, losers if (given.best_of or 1) > 1 else None)


async def stream(request: Request, prompt: Prompt, given: GenerateParameters) -> AsyncGenerator[Step | None, None]:
    """Yield the answer's steps, and None to keep the connection alive; Fault as soon as there is one."""
    metrics, arrived = server_of(request).metrics, time.monotonic()
    metrics.request()
    try:
        validate.before_streaming(given)
    except Fault as fault:
        metrics.failed(fault.kind)
        raise
    async with aclosing(_run(request, prompt, given)) as steps:
        async for step in steps:
            if step and step.end:
                metrics.answered(arrived, step.end)
            yield step


async def _whole(request: Request, prompt: Prompt, given: GenerateParameters) -> Answer:
    async with aclosing(_run(request, prompt, given)) as answer:
        steps = [step async for step in answer if step]
    end = steps[-1].end
    assert end, "only the last step ends _run"
    return Answer(steps, end)


async def _run(request: Request, prompt: Prompt, given: GenerateParameters) -> AsyncGenerator[Step | None, None]:
    """Yield an answer's steps, and None when none came for KEEP_ALIVE_S; Fault for a request that cannot be run.

    A place in the engine is held until the last step is made or the iterator is closed; closing it ends the work.
    """
    server, loop = server_of(request), asyncio.get_running_loop()
    steps: asyncio.Queue[Step | Fault] = asyncio.Queue()

    def emit(step: Step | Fault) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped, nobody waits
            loop.call_soon_threadsafe(steps.put_nowait, step)

    with _failures_counted(server.metrics), _place(server.engine):
        wanted = await server.in_pool(
            lambda: validate.check(given, prompt, server.engine.limits, server.engine.encode, server.grammars)
        )
        server.metrics.accepted(len(wanted.input_ids), wanted.max_new_tokens)
        access.count(request.scope, prompt_tokens=len(wanted.input_ids), generated_tokens=0)
        job = server.engine.submit(wanted, emit)
        try:
            while not (step := await _next(steps)) or not step.end:
                access.count(request.scope, generated_tokens=step is not None)
                yield step
        finally:
            job.cancelled = True
    access.count(request.scope, generated_tokens=1)
    yield step


@contextmanager
def _failures_counted(metrics: Metrics) -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        metrics.failed(fault.kind)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        metrics.failed("dropped")
        raise


@contextmanager
def _place(engine: Engine) -> Iterator[None]:
    engine.enter()
    try:
        yield
    finally:
        engine.leave()


async def _next(steps: asyncio.Queue[Step | Fault]) -> Step | None:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):  # wait_for of Python 3.11 can swallow a cancellation
            step = await steps.get()
    except TimeoutError:
        return None
    if isinstance(step, Fault):
        raise step
    return step


async def together(work: Iterable[Awaitable[Result]]) -> list[Result]:
    """Return what all give; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return what `work` gives; cancel it when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Rejection(access.GONE, "")
        return task.result()
    finally:
        await _end([task, gone])


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def merged(streams: Iterable[Events]) -> Events:
    """Yield the events of several streams as they come."""
    ready: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def pump(events: Events) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    ready.put_nowait(event)
        finally:
            ready.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(events)) for events in streams]
    left = len(tasks)
    try:
        while left:
            event = await ready.get()
            if event is None:
                left -= 1
            else:
                yield event
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


class _Stream(StreamingResponse):
    """A stream whose iterator is closed when the client is gone, wherever it stood.

    Starlette leaves that to the garbage collector when the client hangs up while a piece is being sent.
    """

    def __init__(self, events: Events, headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()


def streaming(events: Events, characters: int) -> StreamingResponse:
    """Return a response that sends events as they come; `characters` of the prompt are told in a header."""
    headers = {
        "x-compute-type": _compute_type(),
        "x-compute-characters": str(characters),
        "x-accel-buffering": "no",
        "cache-control": "no-cache",
        "content-type": "text/event-stream",
    }
    return _Stream(events, headers)


def _compute_type() -> str:
    return os.environ.get("COMPUTE_TYPE", "cpu")
