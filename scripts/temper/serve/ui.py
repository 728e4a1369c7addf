"""The chat page at /ui: three files under a strict policy, a list of models, and a way to the servers beside this one.

The page may ask only the server it came from. For a second model, as the base model beside the tuned one,
POST /ui/ask/N passes a conversation on to the N-th server that --beside named, on this machine's loopback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.background import BackgroundTask

from temper.serve import reading
from temper.serve.launcher import Peer

FOLDER = Path(__file__).with_name("ui")
FILES = {
    "/ui": ("index.html", "text/html; charset=utf-8"),
    "/ui/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/ui/style.css": ("style.css", "text/css; charset=utf-8"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked for anew each time: another version may be served tomorrow
}
# A whole answer may take minutes to its first byte when it is not streamed.
TIMEOUT = httpx.Timeout(5, read=600)
Endpoint = Callable[[Request], Awaitable[Response]]


class _Conversation(BaseModel):
    """Any JSON object: what it must hold is for the other server to say."""

    model_config = ConfigDict(extra="allow")


def add(app: FastAPI, name: str, peers: Sequence[Peer] = (), guard: Sequence[Depends] = ()) -> None:
    """Register the page; `name` is this server's model, `guard` what a request to a further server must pass."""
    for path, (file, kind) in FILES.items():
        app.add_route(path, _fixed((FOLDER / file).read_bytes(), kind))
    own = [{"name": name, "ask": "v1/chat/completions"}]
    models = [*own, *({"name": peer.name, "ask": f"ui/ask/{at}"} for at, peer in enumerate(peers))]
    app.add_route("/ui/models.json", _fixed(json.dumps(models).encode(), "application/json"))
    if not peers:
        return
    client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=False)  # plain HTTP, past any proxy
    for at, peer in enumerate(peers):
        path = f"/ui/ask/{at}"
        app.add_api_route(path, _relay(client, peer), methods=["POST"], dependencies=guard, include_in_schema=False)


def _fixed(content: bytes, kind: str) -> Endpoint:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "etag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer


def _relay(client: httpx.AsyncClient, peer: Peer) -> Endpoint:
    """Return the route to one server: the conversation and the key go there, the answer comes back as it is made."""

    async def ask(request: Request) -> Response:
        body = await reading.read(request, _Conversation)
        key = {name: value for name, value in request.headers.items() if name == "authorization"}
        asked = client.build_request("POST", f"{peer.url}/v1/chat/completions", json=body.model_dump(), headers=key)
        try:
            answer = await client.send(asked, stream=True)
        except httpx.HTTPError:
            return JSONResponse({"error": _lost(peer), "error_type": "unreachable"}, 502)
        kind = answer.headers.get("content-type")
        return StreamingResponse(
            _pieces(answer, peer), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose)
        )

    return ask


async def _pieces(answer: httpx.Response, peer: Peer) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError:
        yield b"\n\ndata: " + json.dumps({"error": _lost(peer)}).encode() + b"\n\n"


def _lost(peer: Peer) -> str:
    return f"{peer.name} does not answer at {peer.url}"
