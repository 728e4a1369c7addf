"""What the server does to clients that are slow, strange or not allowed, and what it never tells."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, free_port
from starlette.types import Receive, Scope, Send
from test_serve_launcher import refused, started

from temper.serve.access import AccessLog

KEY = "Key-of-the-strict"
BEARER = {"authorization": f"Bearer {KEY}"}
SHORT = {"inputs": "tick", "parameters": {"max_new_tokens": 2}}
PATIENCE_S = 2


@pytest.fixture(scope="module")
def strict(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run a server with a key, little patience, origins, and without what TGI's switches take away."""
    port, log = free_port(), tmp_path_factory.mktemp("strict") / "log"
    argv = [
        *("--model-id", str(folder), "--port", str(port), "--max-total-tokens", "2000"),
        *("--client-timeout", str(PATIENCE_S), "--max-best-of", "1", "--max-top-n-tokens", "0"),
        *("--cors-allow-origin", "https://a.example, http://b.example:81", "--cors-allow-origin=http://[::1]:5"),
    ]
    variables = {"DISABLE_GRAMMAR_SUPPORT": "true", "CORS_ALLOW_ORIGIN": "https://not.example", "API_KEY": KEY}
    with started(f"http://127.0.0.1:{port}", log, *argv, **variables) as running:
        yield running


def connect(server: Running) -> socket.socket:
    """Open a connection."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """Return what comes before the server closes, and after how many seconds it does."""
    began, read = time.monotonic(), b""
    while piece := connection.recv(65536):
        read += piece
    return read, time.monotonic() - began


def logged(server: Running, name: str) -> dict[str, Any]:
    """Return the log's line for a request, which is written when its answer has been sent."""
    until = time.monotonic() + PATIENCE_S + 10
    while time.monotonic() < until:
        for line in server.log.read_text().splitlines():
            if line.startswith("{") and json.loads(line)["id"] == name:
                return dict(json.loads(line))
        time.sleep(0.1)
    raise AssertionError(f"{name} is not in the log")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not allowed for this endpoint"),
        ({"top_n_tokens": 1}, "`top_n_tokens` must be >= 0 and <= 0. Given: 1"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar is not supported"),
    ],
)
def test_limits_of_the_launcher_hold(strict: Running, given: dict[str, Any], said: str) -> None:
    """What --max-best-of, --max-top-n-tokens and DISABLE_GRAMMAR_SUPPORT take away is refused as TGI refuses it."""
    reply = strict.post("/generate", {"inputs": "tick", "parameters": given}, headers=BEARER)
    assert reply.json() == {"error": f"Input validation error: {said}", "error_type": "validation"}
    assert httpx.get(strict.url + "/info", trust_env=False).json()["max_best_of"] == 1


def test_tools_need_grammars(strict: Running) -> None:
    """Without grammars a chat with tools is refused, one that chooses none of them is not."""
    tool = {"type": "function", "function": {"name": "a", "parameters": {}}}
    chat = {"messages": [{"role": "user", "content": "Who are you?"}], "tools": [tool], "max_tokens": 2}
    reply = strict.post("/v1/chat/completions", chat, headers=BEARER)
    assert reply.json()["error"] == "Input validation error: grammar is not supported"
    assert strict.post("/v1/chat/completions", {**chat, "tool_choice": "none"}, headers=BEARER).status_code == 200


def test_the_key_is_asked_for_where_tgi_asks(strict: Running) -> None:
    """Texts need it, and tokens of a text; health, limits, metrics and the tokens of a chat do not."""
    for path in (
        *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"),
        *("/invocations", "/vertex", "/tokenize"),
    ):
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Bearer {KEY}x"}):
            reply = strict.post(path, SHORT, headers=headers)
            assert (reply.status_code, reply.content) == (401, b""), path
    assert strict.post("/tokenize", SHORT, headers={"authorization": f"bearer {KEY.upper()}"}).status_code == 200
    assert strict.post("/chat_tokenize", {"messages": []}).status_code == 200
    for path in ("/", "/health", "/ping", "/info", "/metrics", "/v1/models", "/docs/", "/api-doc/openapi.json"):
        assert httpx.get(strict.url + path, trust_env=False).status_code == 200
    document = httpx.get(strict.url + "/api-doc/openapi.json", trust_env=False).json()
    assert document["paths"]["/generate"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/chat_tokenize"]["post"]


def test_only_named_origins_may_ask_from_a_browser(strict: Running, server: Running) -> None:
    """Flags beat the variable; a server without the flag has no such header at all."""

    def allowed(running: Running, origin: str) -> str | None:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        answers = [
            httpx.get(running.url + "/health", headers=asked, trust_env=False),
            httpx.options(running.url + "/generate", headers=asked, trust_env=False),
        ]
        found = {answer.headers.get("access-control-allow-origin") for answer in answers}
        assert len(found) == 1
        return found.pop()

    for origin in ("https://a.example", "http://b.example:81", "http://[::1]:5"):
        assert allowed(strict, origin) == origin
    for origin in ("https://not.example", "http://a.example", "https://a.example.org", "null"):
        assert allowed(strict, origin) is None
    assert allowed(server, "https://a.example") is None
    assert httpx.options(server.url + "/generate", trust_env=False).status_code == 405


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cors-allow-origin", "*"], "'*' is not an origin such as https://chat.example:8443"),
        (["--cors-allow-origin", "https://a,b"], "'b' is not an origin"),
        (["--max-best-of", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_origins_are_named_in_full(argv: list[str], said: str) -> None:
    """There is no word for all origins."""
    code, error = refused("--model-id", "x", *argv)
    assert code == 2 and said in error
    assert "DISABLE_GRAMMAR_SUPPORT: 'maybe'" in refused("--model-id", "x", DISABLE_GRAMMAR_SUPPORT="maybe")[1]


def test_a_head_that_does_not_come_is_not_waited_for(strict: Running) -> None:
    """A connection that stays silent, or sends its head byte by byte, is closed; so is a second request on it."""
    with connect(strict) as silent, connect(strict) as slow:
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 10:
                slow.sendall(b"GET / HTTP/1.1\r\nx: " if time.monotonic() - began < 0.1 else b"a")
                time.sleep(0.2)
        assert PATIENCE_S - 0.5 < time.monotonic() - began < PATIENCE_S + 3
        assert until_closed(silent)[0] == b""
    with connect(strict) as again:
        again.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert again.recv(65536).startswith(b"HTTP/1.1 200 ")
        again.sendall(b"GET /he")
        assert until_closed(again)[1] < PATIENCE_S + 3


def test_a_body_that_does_not_come_is_a_408(strict: Running) -> None:
    """Byte by byte is no way to hold a connection: after the set time there is an answer and the end."""
    with connect(strict) as slow:
        head = "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n"
        slow.sendall(f"{head}Authorization: Bearer {KEY}\r\n\r\n".encode())
        for _ in range(5):
            slow.sendall(b" ")
            time.sleep(0.2)
        read, after = until_closed(slow)
    assert read.startswith(b"HTTP/1.1 408 ") and b"connection: close" in read
    assert read.endswith(b"Failed to buffer the request body: not complete after 2 s")
    assert after < PATIENCE_S + 1


def test_an_answer_that_is_not_taken_is_given_up(strict: Running) -> None:
    """A client that never reads loses its connection, and its place with it."""
    messages = [{"role": "assistant", "content": "tick tock tick tock"}]
    asked = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": 1500, "model": "m" * 100_000}
    body = json.dumps(asked).encode()
    name = "never-reads"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        host, port = strict.url.removeprefix("http://").split(":")
        slow.connect((host, int(port)))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Request-Id: {name}"
        )
        slow.sendall(f"{head}\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        line = logged(strict, name)
    assert line["status"] == 499 and line["ms"] > PATIENCE_S * 900 and line["generated_tokens"] < 1500


def test_an_error_of_the_program_is_told_in_tgis_shape_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    """The client sees no trace of it; the log has its kind and place, not its text, which may hold a prompt."""

    async def broken(_: Scope, __: Receive, ___: Send) -> None:
        raise KeyError("a prompt")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(AccessLog(broken))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return await client.post("/generate", headers={"x-request-id": "sane.1"})

    reply = asyncio.run(ask())
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "sane.1")
    assert reply.json() == {"error": "Internal server error", "error_type": "internal"}
    line = json.loads(capsys.readouterr().err)
    assert line["error"].startswith("KeyError at test_serve_safety.py:") and line["status"] == 500
    assert "prompt" not in json.dumps(line)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "naïve", '"'])
def test_a_strange_request_id_is_replaced(server: Running, given: str) -> None:
    """Only short plain names are taken over into the log and the answer."""
    reply = httpx.get(server.url + "/health", headers=[(b"x-request-id", given.encode())], trust_env=False)
    name = reply.headers["x-request-id"]
    assert len(name) == 32 and name.isalnum() and logged(server, name)["route"] == "/health"
