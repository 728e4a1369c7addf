"""Two hundred clients for two minutes, many of whom hang up: nobody gets another's answer, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import serve_model
from serving import Running
from test_serve_proof_ends import wait_until_told

CLIENTS, SECONDS, WARM_S = 200, 120, 20
GROWTH = 8 * 2**20  # bytes that the process may gain after WARM_S; measured: less than 0.4 MiB in 11,000 answers
CHAT = "/v1/chat/completions"
Ways = tuple[tuple[str, Any], tuple[str, Any]]  # whole and streamed: a path and a body


def questions(server: Running) -> list[tuple[str, Ways]]:
    """Return greedy answers, no two alike, each given while nobody else asks, and the two ways to ask for it."""
    found = {}
    for question, answer in serve_model.ANSWERS.items():
        for begun in (answer[:cut] for cut in range(2, len(answer), 2)):
            text = {"inputs": question + begun, "parameters": {"max_new_tokens": 40}}
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": begun}]
            chat = {"messages": messages, "temperature": 0, "max_tokens": 40}
            for ways in (
                (("/generate", text), ("/generate_stream", text)),
                ((CHAT, chat), (CHAT, {**chat, "stream": True})),
            ):
                found[said([server.post(*ways[0]).content])] = ways
    return list(found.items())


def said(lines: list[bytes]) -> str:
    """Return the text of an answer, whole or streamed."""
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines if b"{" in line]
    if "choices" not in events[0]:
        return str(events[-1]["generated_text"])
    choices = [event["choices"][0] for event in events]
    return "".join((choice.get("delta") or choice["message"])["content"] for choice in choices)


def memory(server: Running) -> int:
    """Return the server's own memory, bytes; what it shares with other processes depends on them."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


async def crowd(server: Running, asked: list[tuple[str, Ways]]) -> tuple[Counter[str], int]:
    """Let all clients ask until the time is over; return how they fared and what memory the server gained."""
    tally, until, dice = Counter[str](), time.monotonic() + SECONDS, random.Random(0)

    async def client(http: aiohttp.ClientSession) -> None:
        while time.monotonic() < until:
            expected, ways = dice.choice(asked)
            path, body = dice.choice(ways)
            patience = dice.uniform(0, 5) if dice.random() < 0.3 else None
            lines: list[bytes] = []
            try:
                async with asyncio.timeout(patience or 60), http.post(server.url + path, json=body) as response:
                    assert response.status == 200
                    async for line in response.content:
                        lines.append(line)
                        if patience and len(lines) > 4 * patience:
                            raise TimeoutError
            except TimeoutError:
                assert patience, "not answered"
                tally["hung up within the answer" if lines else "hung up before it"] += 1
            else:
                assert said(lines) == expected, (path, body)
                tally["answered"] += 1

    forever, unlimited = aiohttp.ClientTimeout(None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=unlimited, timeout=forever) as http, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(http))
        await asyncio.sleep(WARM_S)
        before = memory(server)
        await asyncio.sleep(until - time.monotonic())
        gained = memory(server) - before
    return tally, gained


@pytest.mark.slow
def test_two_hundred_clients_get_their_own_answers(own: Callable[..., Running]) -> None:
    """Each gets the very answer asked for while others hang up; memory stays; then the server is idle and answers."""
    server = own("--max-total-tokens", "256", "--max-concurrent-requests", "256")
    asked = questions(server)
    tally, gained = asyncio.run(crowd(server, asked))
    assert len(tally) == 3 and min(tally.values()) > CLIENTS, tally
    assert gained < GROWTH
    wait_until_told(server.url, "tgi_queue_size 0")
    wait_until_told(server.url, "tgi_batch_current_size 0")
    (expected, (whole, _)), began = asked[0], time.monotonic()
    assert said([server.post(*whole).content]) == expected and time.monotonic() - began < 2
    assert '"error"' not in server.log.read_text()
