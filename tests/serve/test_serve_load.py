"""Several clients at once: places are limited and given back, and nobody waits for a client that does not read."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import serve_model
from serving import ENDLESS, LIMIT, Running, admitted, busy
from transformers import AutoTokenizer

SHORT = {"inputs": "tick", "parameters": {"max_new_tokens": 2}}


def test_one_request_too_many_is_429_and_hanging_up_frees_places(server: Running) -> None:
    """The request beyond the limit is refused at once, in a stream as an event; closed streams make room."""
    said = {"error": "Model is overloaded", "error_type": "overloaded"}
    with busy(server, LIMIT):
        refused = server.post("/generate", SHORT)
        assert (refused.status_code, refused.json()) == (429, said)
        assert json.loads(server.post("/generate_stream", SHORT).text[6:]) == said
        chat = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True})
        assert '"message":"Model is overloaded"' in chat.text
        assert httpx.get(server.url + "/health", trust_env=False).status_code == 200
    with busy(server, LIMIT):
        pass


def test_hanging_up_while_the_server_waits_to_send_frees_the_place(server: Running) -> None:
    """A client that never read, and whose stream the server therefore holds back, gives its place back at once."""
    host, port = server.url.removeprefix("http://").split(":")
    # The model's name is in every event: with a long one a few events fill the buffers on the way.
    body = json.dumps(
        {
            "messages": [{"role": "assistant", "content": "tick tock tick tock"}],
            "stream": True,
            "temperature": 0,
            "max_tokens": 1500,
            "model": "m" * 100_000,
        }
    )
    with contextlib.ExitStack() as stack:
        for _ in range(LIMIT):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect((host, int(port)))
            slow.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
        time.sleep(1)
        assert server.post("/generate", SHORT).status_code == 429  # all are still held
    with busy(server, LIMIT):
        pass


def test_hanging_up_on_a_plain_answer_frees_its_place(server: Running) -> None:
    """A client that stops waiting for /generate ends the work."""

    def give_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/generate", json=ENDLESS, timeout=0.3, trust_env=False)

    with ThreadPoolExecutor(LIMIT) as pool:
        for done in [pool.submit(give_up) for _ in range(LIMIT)]:
            done.result()
    with busy(server, LIMIT):
        pass


def test_a_client_that_does_not_read_holds_up_nobody(server: Running) -> None:
    """Others are answered while one stream is left unread, and that one is complete when it is read."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": "tick tock", "parameters": {"max_new_tokens": 600}}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.settimeout(30)
        slow.connect((host, int(port)))
        slow.sendall(
            b"POST /generate_stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        for _ in range(5):
            assert admitted(server, SHORT).status_code == 200
        read = b""
        while chunk := slow.recv(4096):
            read += chunk
    assert read.count(b'"index":') == 600 and b'"index":600,' in read


def test_answers_do_not_depend_on_what_else_runs(server: Running, folder: Path) -> None:
    """Greedy tokens are transformers' own while other requests, greedy and sampled, take turns with them."""
    ids = AutoTokenizer.from_pretrained(folder)("def add")["input_ids"]
    expected, _ = serve_model.reference(folder, ids, 30)
    greedy = {"inputs": "def add", "parameters": {"max_new_tokens": 30, "details": True}}
    sampled = {"inputs": "tick", "parameters": {"max_new_tokens": 50, "do_sample": True, "temperature": 3.0}}
    with ThreadPoolExecutor(LIMIT) as pool:
        replies = list(pool.map(lambda body: admitted(server, body), [greedy, sampled, greedy, sampled]))
    assert [reply.status_code for reply in replies] == [200] * LIMIT, [reply.text for reply in replies]
    for reply in replies[::2]:
        assert [token["id"] for token in reply.json()["details"]["tokens"]] == expected
