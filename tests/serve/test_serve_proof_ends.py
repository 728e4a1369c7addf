"""How a server ends: killed, it tells its clients and starts again at once; told to stop, it first keeps its word."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, free_port

from temper.serve import control

SHORT = {"inputs": "tick tock", "parameters": {"max_new_tokens": 20}}
CUT = (httpx.NetworkError, httpx.RemoteProtocolError)  # refused, reset, or closed before the end; no timeout
TOKENS = 600
CHAT = {"messages": [{"role": "assistant", "content": "tick tock tick"}], "temperature": 0, "max_tokens": TOKENS}
LONG = {
    "/generate_stream": {"inputs": "tick tock", "parameters": {"max_new_tokens": TOKENS, "details": True}},
    "/v1/chat/completions": {**CHAT, "stream": True},
}


def ask(url: str, body: Any) -> httpx.Response:
    """Send a text and wait for the answer."""
    return httpx.post(url + "/generate", json=body, timeout=60, trust_env=False)


@contextlib.contextmanager
def streams(url: str) -> Iterator[dict[str, Iterator[str]]]:
    """Open a long stream of each kind and read its first event; give the lines that are left."""
    with contextlib.ExitStack() as stack:
        found = {}
        for path, body in LONG.items():
            answer = stack.enter_context(httpx.stream("POST", url + path, json=body, timeout=60, trust_env=False))
            found[path] = answer.iter_lines()
            assert next(found[path]).startswith("data: ")
        yield found


def refused(url: str) -> bool:
    """Return whether nobody answers there."""
    try:
        httpx.get(url + "/health", trust_env=False)
    except CUT:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so, at most 10 s."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_until_told(url: str, line: str) -> None:
    """Wait until the metrics say so."""
    wait_for(lambda: f"{line}\n" in httpx.get(url + "/metrics", trust_env=False).text)


def test_after_a_kill_clients_know_and_the_next_start_is_as_the_first(folder: Path, tmp_path: Path) -> None:
    """Streams and a waiting request end with an error, not as if complete; neither start nor stop is in trouble."""
    port, state = free_port(), tmp_path / "state"

    def start() -> str:
        return control.start(folder, state, ["--max-total-tokens", "2000"], "one", None, port=port)

    def kill() -> None:
        os.kill(control.status(state)["pid"], signal.SIGKILL)
        wait_for(lambda: not control.status(state)["running"])

    try:
        url = start()
        answer = ask(url, SHORT).json()
        with streams(url) as opened, ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(ask, url, {**SHORT, "parameters": {"max_new_tokens": 1900}})
            wait_until_told(url, f"tgi_batch_current_size {len(opened) + 1}")
            kill()
            assert refused(url)
            ends: list[Callable[[], Any]] = [waiting.result, *(partial(list, lines) for lines in opened.values())]
            for end in ends:
                with pytest.raises(CUT):
                    end()
            assert start() == url and ask(url, SHORT).json() == answer
        kill()
        assert control.stop(state) is False
    finally:
        control.stop(state)


def test_a_server_told_to_stop_ends_its_streams_and_lets_nobody_in(own: Callable[..., Running]) -> None:
    """After SIGTERM streams go on to their last event; connections, new and idle, are refused; the exit code is 0."""
    server = own("--max-total-tokens", "2000", "--graceful-termination-timeout", "60")
    with httpx.Client(base_url=server.url, trust_env=False) as idle, streams(server.url) as opened:
        assert idle.get("/health").status_code == 200
        server.process.terminate()
        wait_for(lambda: refused(server.url))
        with pytest.raises(CUT):
            idle.get("/health")
        assert server.process.poll() is None  # the streams are not over
        text, chat = (list(filter(None, lines)) for lines in opened.values())
    assert json.loads(text[-1][6:])["details"]["generated_tokens"] == len(text) + 1 == TOKENS
    assert chat[-1] == "data: [DONE]" and json.loads(chat[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(5) == 0


def test_a_server_told_to_stop_answers_those_who_wait_too(own: Callable[..., Running]) -> None:
    """As in TGI, a request that was let in is answered, also one that still waits for room when SIGTERM comes."""
    server = own("--max-total-tokens", "400", "--max-batch-total-tokens", "400", "-g", "60")  # room for one
    with ThreadPoolExecutor(4) as pool:
        asked = {"inputs": "tick tock", "parameters": {"max_new_tokens": 390, "details": True}}
        answers = [pool.submit(ask, server.url, asked) for _ in range(4)]
        wait_until_told(server.url, "tgi_queue_size 3")
        server.process.terminate()
        wait_for(lambda: refused(server.url))
        found = [answer.result().json()["details"]["generated_tokens"] for answer in answers]
    assert found == [390] * 4 and server.process.wait(5) == 0
