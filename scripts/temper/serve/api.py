"""The HTTP routes: TGI 3.3.7's /health, /info, /generate, /generate_stream and /v1/chat/completions.

Reads requests, runs them in the engine, words the answers. Covers one answer per request, plain and streamed.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.telemetry import TelemetryConfig
from starlette.types import Receive, Scope, Send

from temper.serve import access, chat_template, faults, reading, replies, validate
from temper.serve.bodies import ChatRequest, GenerateParameters, GenerateRequest, Message
from temper.serve.engine import End, Engine, Step
from temper.serve.faults import Fault, Rejection
from temper.serve.validate import Prompt

KEEP_ALIVE_S = 15.0  # a comment after this long without a token, as TGI sends it
Result = TypeVar("Result")


@dataclass
class Server:
    """What the routes need."""

    engine: Engine
    model_id: str
    api_key: str | None
    # One thread for templates and tokens: they must not hold up the event loop, nor race each other.
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompt"))


def create_app(server: Server) -> FastAPI:
    """Return the application for a loaded, warm engine."""
    # FastAPI can export what it sees when an environment variable says so; prompts are not for that.
    telemetry: TelemetryConfig = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=telemetry)
    app.state.server = server
    key = [Depends(require_key)]
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/info", info, methods=["GET"])
    app.add_api_route("/generate", generate, methods=["POST"], dependencies=key)
    app.add_api_route("/generate_stream", generate_stream, methods=["POST"], dependencies=key)
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"], dependencies=key)
    app.add_exception_handler(Fault, _fault)  # type: ignore[arg-type]
    app.add_exception_handler(Rejection, _rejection)  # type: ignore[arg-type]
    # Unknown paths, wrong methods and wrong keys have empty bodies.
    for status in (401, 404, 405):
        app.add_exception_handler(status, _empty)  # type: ignore[arg-type]
    app.add_middleware(access.AccessLog)
    return app


async def _fault(_: Request, fault: Fault) -> Response:
    return JSONResponse(fault.body(), fault.status)


async def _rejection(_: Request, rejection: Rejection) -> Response:
    return Response(rejection.text, rejection.status, media_type="text/plain")


async def _empty(_: Request, error: HTTPException) -> Response:
    return Response(status_code=error.status_code, headers=error.headers)


def _server(request: Request) -> Server:
    return request.app.state.server


async def require_key(request: Request) -> None:
    """Refuse a request without the key (401); TGI compares the whole header without regard to case."""
    key = _server(request).api_key
    given = request.headers.get("authorization", "")
    if key and not hmac.compare_digest(given.lower().encode(), f"Bearer {key}".lower().encode()):
        raise HTTPException(401)


async def health(request: Request) -> Response:
    """Answer 200 while the model works."""
    loop = asyncio.get_running_loop()
    if not await loop.run_in_executor(None, _server(request).engine.probe):
        raise faults.unhealthy()
    return Response()


async def info(request: Request) -> Response:
    """Describe the model and the limits."""
    server = _server(request)
    return JSONResponse(replies.info(server.model_id, server.engine.limits))


def _compute_type() -> str:
    return os.environ.get("COMPUTE_TYPE", "cpu")


async def _in_pool(server: Server, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(server.pool, work)


async def run(request: Request, prompt: Prompt, given: GenerateParameters) -> AsyncGenerator[Step | None, None]:
    """Yield an answer's steps, and None when none came for KEEP_ALIVE_S; Fault for a request that cannot be run.

    A place in the engine is held from the first step on until the iterator is closed; closing it ends the work.
    """
    server, loop = _server(request), asyncio.get_running_loop()
    steps: asyncio.Queue[Step | Fault] = asyncio.Queue()
    job = None
    server.engine.enter()
    try:
        wanted = await _in_pool(
            server, lambda: validate.check(given, prompt, server.engine.limits, server.engine.encode)
        )
        counts = request.scope["temper"]
        counts.update(prompt_tokens=len(wanted.input_ids), generated_tokens=0)

        def emit(step: Step | Fault) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped, nobody waits
                loop.call_soon_threadsafe(steps.put_nowait, step)

        job = server.engine.submit(wanted, emit)
        while True:
            step = await _next(steps)
            if isinstance(step, Fault):
                raise step
            counts["generated_tokens"] += step is not None
            yield step
            if step and step.end:
                return
    finally:
        if job:
            job.cancelled = True
        server.engine.leave()


async def _next(steps: asyncio.Queue[Step | Fault]) -> Step | Fault | None:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):  # wait_for of Python 3.11 can swallow a cancellation
            return await steps.get()
    except TimeoutError:
        return None


async def _complete(request: Request, prompt: Prompt, given: GenerateParameters) -> tuple[list[Step], End]:
    validate.before_generating(given, _server(request).engine.limits)
    async with aclosing(run(request, prompt, given)) as answer:
        steps = [step async for step in answer if step]
    end = steps[-1].end
    if end is None:
        raise Fault(500, "incomplete_generation", "Incomplete generation")
    return steps, end


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return what `work` gives; cancel it when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Rejection(access.GONE, "")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def generate(request: Request) -> Response:
    """Continue a text."""
    arrived = time.monotonic()
    body = await reading.read(request, GenerateRequest)
    given, prompt = body.parameters, Prompt(body.inputs, special_tokens=True)
    steps, end = await _unless_gone(request, _complete(request, prompt, given))
    before = body.inputs if given.return_full_text else ""
    reply = replies.generated(steps, end, before, given.details or given.decoder_input_details)
    return JSONResponse(reply, headers=replies.headers(_compute_type(), len(body.inputs), arrived, end))


async def generate_stream(request: Request) -> Response:
    """Continue a text, one event per token; any fault is an event too."""
    body = await reading.read(request, GenerateRequest)
    given, prompt = body.parameters, Prompt(body.inputs, special_tokens=True)
    before = body.inputs if given.return_full_text else ""

    async def events() -> AsyncGenerator[bytes, None]:
        index = 0
        try:
            validate.before_streaming(given)
            async with aclosing(run(request, prompt, given)) as answer:
                async for step in answer:
                    index += step is not None
                    yield (
                        replies.event(replies.generated_event(index, step, before, given.details)) if step else b":\n\n"
                    )
        except Fault as fault:
            yield replies.event(fault.body())

    return _stream(events(), len(body.inputs))


class _Stream(StreamingResponse):
    """A stream whose iterator is closed when the client is gone, wherever it stood.

    Starlette leaves that to the garbage collector when the client hangs up while a piece is being sent.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()


def _stream(events: AsyncGenerator[bytes, None], characters: int) -> Response:
    headers = {
        "x-compute-type": _compute_type(),
        "x-compute-characters": str(characters),
        "x-accel-buffering": "no",
        "cache-control": "no-cache",
        "content-type": "text/event-stream",
    }
    return _Stream(events, headers)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    arrived, server = time.monotonic(), _server(request)
    body = await reading.read(request, ChatRequest)

    def render(messages: list[Message]) -> str:
        return chat_template.render(server.engine.loaded.tokenizer, server.engine.loaded.chat_template, messages)

    prompt, given = await _in_pool(server, lambda: validate.of_chat(body, render))
    model = server.model_id if body.model in (None, "tgi") else body.model
    if body.stream:
        return _stream(_chat_events(request, body, prompt, given, str(model)), len(prompt.text))
    steps, end = await _unless_gone(request, _complete(request, prompt, given))
    reply = replies.chat(str(model), steps, end, bool(body.logprobs))
    return JSONResponse(reply, headers=replies.headers(_compute_type(), len(prompt.text), arrived, end))


async def _chat_events(
    request: Request, body: ChatRequest, prompt: Prompt, given: GenerateParameters, model: str
) -> AsyncGenerator[bytes, None]:
    try:
        validate.before_streaming(given)
        async with aclosing(run(request, prompt, given)) as answer:
            async for step in answer:
                if step is None:
                    yield b":\n\n"
                    continue
                for each in replies.chat_events(model, step, bool(body.logprobs), body.stream_options.include_usage):
                    yield replies.event(each)
    except Fault as fault:
        yield replies.event(fault.chat_event())
    yield b"data: [DONE]\n\n"
