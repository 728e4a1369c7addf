"""Every route of TGI 3.3.7's router for text: what it reads and answers. The application and its document follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from temper.serve import bodies, chat, completions, faults, generate, replies, shapes
from temper.serve.answers import server_of


async def health(request: Request) -> Response:
    """Answer 200 while the model works."""
    loop = asyncio.get_running_loop()
    if not await loop.run_in_executor(None, server_of(request).engine.probe):
        raise faults.unhealthy()
    return Response()


async def root(request: Request) -> Response:
    """Answer as /health does; send a browser to the chat page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/ui", 307)
    return await health(request)


async def info(request: Request) -> Response:
    """Describe the model and the limits."""
    server = server_of(request)
    return JSONResponse(replies.info(server.model_id, server.engine.limits))


async def models(request: Request) -> Response:
    """Name the model that is served."""
    return JSONResponse(replies.models(server_of(request).model_id))


async def metrics(request: Request) -> Response:
    """Return what has been counted, for Prometheus."""
    return Response(server_of(request).metrics.render(), media_type="text/plain")


@dataclass(frozen=True)
class Route:
    """A route; `reply` is the type of its JSON (str: text, None: nothing), `event` that of a streamed piece."""

    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    body: Any = None  # None: a GET
    reply: Any = None
    event: Any = None
    keyed: bool = True
    generates: bool = True


def _get(path: str, endpoint: Callable[[Request], Awaitable[Response]], reply: Any = None) -> Route:
    return Route(path, endpoint, reply=reply, keyed=False, generates=False)


TEXT_EVENT = shapes.StreamResponse | shapes.ErrorResponse
CHAT_EVENT = shapes.ChatCompletionChunk | shapes.OpenaiErrorEvent
COMPLETION_EVENT = shapes.Chunk | shapes.CompletionFinal | shapes.OpenaiErrorEvent
INVOCATION = list[shapes.GenerateResponse] | shapes.ChatCompletion | shapes.CompletionFinal
ROUTES = (
    Route("/", generate.compat_generate, bodies.CompatGenerateRequest, list[shapes.GenerateResponse], TEXT_EVENT),
    Route("/generate", generate.generate, bodies.GenerateRequest, shapes.GenerateResponse),
    Route("/generate_stream", generate.generate_stream, bodies.GenerateRequest, event=TEXT_EVENT),
    Route("/v1/chat/completions", chat.chat_completions, bodies.ChatRequest, shapes.ChatCompletion, CHAT_EVENT),
    Route(
        "/v1/completions",
        completions.completions,
        bodies.CompletionRequest,
        shapes.CompletionFinal,
        COMPLETION_EVENT,
    ),
    Route(
        "/invocations",
        generate.invocations,
        bodies.SagemakerRequest,
        INVOCATION,
        TEXT_EVENT | CHAT_EVENT | COMPLETION_EVENT,
    ),
    Route("/vertex", generate.vertex, bodies.VertexRequest, shapes.VertexResponse),
    Route("/tokenize", generate.tokenize, bodies.GenerateRequest, list[shapes.SimpleToken], generates=False),
    Route(
        "/chat_tokenize",
        generate.chat_tokenize,
        bodies.ChatRequest,
        shapes.ChatTokenizeResponse,
        keyed=False,
        generates=False,
    ),
    _get("/", root),
    _get("/health", health),
    _get("/ping", health),
    _get("/info", info, shapes.Info),
    _get("/v1/models", models, shapes.ModelsInfo),
    _get("/metrics", metrics, str),
)
