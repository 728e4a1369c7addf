#!/usr/bin/env python3
"""Time to first token, inter-token latency and throughput of any TGI- or OpenAI-compatible server, over 1 to 16 users.

    make bench                                                   the server at http://127.0.0.1:8000
    make bench BENCH='--url temper=http://127.0.0.1:8000 --url vllm=http://127.0.0.1:8001'
    make bench BENCH='--url http://127.0.0.1:8000 --users 1,8 --tokens 128 --key-file key'

Each user asks one question after the other, greedy; each question begins with a number that no other run has, so that
no answer comes from a cache. With `--apart 0.5` the users do not ask all at once, as people would not. All servers get
the same questions. A level is measured on all in turn, never on two at a time.
Tokens are those the server counts (without a count see --tokenizer); gaps are between pieces of text, as a reader
sees them.
Writes result.json, requests.jsonl (every time of every request) and plot.svg into build/SCENARIO/PROFILE/bench, where
`make report` finds them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors
from temper.errors import ServeError, UsageError
from temper.paths import BUILD, enter_root

QUESTIONS = (
    "How do I clean the filter of a coffee machine? List every step and say why it matters.",
    "洗衣机脱水时噪音很大，可能是什么原因？请逐一说明检查方法。",
    "My order arrived with a broken lamp. Write a polite letter that asks for a replacement.",
    "请介绍一下空气净化器的工作原理，并说明滤网多久更换一次。",
    "Explain to a new colleague how our returns work, from the first call to the refund.",
    "客户想把订单的收货地址改到另一个城市，请写一段回复，说明流程和费用。",
    "Compare an induction hob with a gas hob for a small kitchen: cost, safety and cleaning.",
    "请写一份电饭煲的使用说明，包括第一次使用前的准备和日常清洁。",
)
LEVELS = (1, 2, 4, 8, 16)
LEAST = 8  # requests at a level; at 8 users and more, two of each


@dataclass(frozen=True)
class Target:
    """A server, and how to talk to it."""

    name: str
    url: str
    api: str
    model: str
    past_end: bool = True  # whether it can be told to go on after an end token


@dataclass
class Reply:
    """One request; times are seconds since its level began."""

    sent: float
    times: list[float] = field(default_factory=list)  # of each piece of text
    text: str = ""
    tokens: int = 0
    counted: str = "server"  # who counted the tokens
    error: str = ""


@dataclass(frozen=True)
class Level:
    """A server under a number of users; seconds throughout."""

    server: str
    users: int
    requests: int
    failed: int
    tokens: int
    seconds: float
    tokens_per_s: float
    first_median: float | None
    first_p95: float | None
    gap_median: float | None
    gap_p95: float | None


async def find(client: httpx.AsyncClient, named: str, api: str, model: str) -> Target:
    """Return the server of `[NAME=]URL`; its API and model are asked for where they are not given. ServeError."""
    name, _, url = named.rpartition("=")
    url = url.rstrip("/")
    info, models = await _json(client, f"{url}/info"), await _json(client, f"{url}/v1/models")
    tgi = "max_total_tokens" in info
    if not tgi and not models.get("data"):
        raise ServeError(f"{url} answers neither /info nor /v1/models", "start a server there, or name another --url")
    listed = [entry["id"] for entry in models.get("data", [])]
    # Every TGI answers to the name "tgi"; another name would be that of an adapter.
    model = model or ("tgi" if tgi else listed[0])
    target = Target(name or url, url, api or ("openai" if listed else "tgi"), model)
    refused = (await once(client, target, QUESTIONS[0], 8, 0)).error.startswith("4")
    return replace(target, past_end=not refused)


async def _json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    try:
        found = (await client.get(url)).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def request(target: Target, question: str, tokens: int) -> tuple[str, dict[str, Any]]:
    """Return a request's path and body: a greedy stream of `tokens` tokens, past the end token where it can."""
    if target.api == "tgi":
        parameters = {"max_new_tokens": tokens, "do_sample": False, "details": True}
        return "/generate_stream", {"inputs": question, "parameters": parameters}
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return "/v1/chat/completions", {**body, "ignore_eos": True} if target.past_end else body


def read(event: dict[str, Any]) -> tuple[str, int | None]:
    """Return an event's text and, where it has one, the count of all tokens. ServeError for a fault in it."""
    if "error" in event:
        fault = event["error"]
        raise ServeError(str(fault.get("message", fault) if isinstance(fault, dict) else fault))
    if "token" in event:
        text = "" if event["token"]["special"] else event["token"]["text"]
        return text, (event.get("details") or {}).get("generated_tokens")
    text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text, (event.get("usage") or {}).get("completion_tokens")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


async def once(client: httpx.AsyncClient, target: Target, question: str, tokens: int, began: float) -> Reply:
    """Ask one question; a failure is told in the reply."""
    path, body = request(target, question, tokens)
    reply = Reply(time.perf_counter() - began)
    try:
        async with client.stream("POST", target.url + path, json=body) as response:
            if response.is_error:
                raise ServeError(f"{response.status_code}: {(await response.aread()).decode(errors='replace')[:200]}")
            async for event in _events(response):
                text, count = read(event)
                if text:
                    reply.times.append(time.perf_counter() - began)
                reply.text += text
                reply.tokens = count or reply.tokens
        reply.error = "" if reply.times else "no text came"
    except (httpx.HTTPError, ValueError, KeyError, ServeError) as error:
        reply.error = str(error) or type(error).__name__
    return reply


async def level(
    client: httpx.AsyncClient, target: Target, users: int, questions: Iterator[str], tokens: int, apart: float = 0
) -> list[Reply]:
    """Return the replies to users who begin `apart` seconds after one another and ask several questions in turn."""
    rounds = max(2, math.ceil(LEAST / users))
    began, replies = time.perf_counter(), list[Reply]()

    async def user(number: int) -> None:
        await asyncio.sleep(number * apart)
        for _ in range(rounds):
            replies.append(await once(client, target, next(questions), tokens, began))
            _progress(f"{target.name}, users: {users}, requests: {len(replies)} of {users * rounds}")

    await asyncio.gather(*map(user, range(users)))
    _progress("")
    return replies


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def counted(replies: list[Reply], tokenizer: Any) -> list[Reply]:
    """Fill in tokens that the server did not count: those of the answer's text, else its pieces, which may be words."""
    for reply in replies:
        if not reply.tokens:
            reply.counted = "tokenizer" if tokenizer else "pieces"
            ids = tokenizer.encode(reply.text, add_special_tokens=False).ids if tokenizer else reply.times
            reply.tokens = len(ids)
    return replies


def summed(target: Target, users: int, replies: list[Reply]) -> Level:
    """Return a level's figures; failed requests count as such only."""
    good = [reply for reply in replies if not reply.error]
    tokens = sum(reply.tokens for reply in good)
    seconds = max(reply.times[-1] for reply in good) - min(reply.sent for reply in good) if good else 0.0
    first = [reply.times[0] - reply.sent for reply in good]
    gaps = [after - before for reply in good for before, after in itertools.pairwise(reply.times)]
    rate = tokens / seconds if good else 0.0
    failed = len(replies) - len(good)
    return Level(target.name, users, len(replies), failed, tokens, seconds, rate, *_spread(first), *_spread(gaps))


def _spread(values: list[float]) -> tuple[float | None, float | None]:
    return (float(np.median(values)), float(np.percentile(values, 95))) if values else (None, None)


def table(levels: Sequence[Level]) -> str:
    """Return the figures as Markdown; ratios are to the first server under as many users."""
    lines = [
        "| users | server | first token s: median | p95 | gap ms: median | p95 | tokens/s | ratio | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in levels:
        against = next(other for other in levels if other.users == one.users)
        cells = [
            one.users,
            one.server,
            *(_number(value, 1, 3) for value in (one.first_median, one.first_p95)),
            *(_number(value, 1000, 1) for value in (one.gap_median, one.gap_p95)),
            f"{one.tokens_per_s:.1f}",
            f"{one.tokens_per_s / against.tokens_per_s:.2f}" if against.tokens_per_s else "-",
            f"{one.failed} of {one.requests}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _number(value: float | None, unit: int, digits: int) -> str:
    return "-" if value is None else f"{value * unit:.{digits}f}"


def plot(levels: Sequence[Level], file: Path) -> None:
    """Draw first token, gap and throughput over users, a line for each server."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (("first token, s", "first_median"), ("gap between tokens, s", "gap_median"), ("tokens/s", "tokens_per_s"))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    users = sorted({one.users for one in levels})
    for axis, (title, value) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(one.server for one in levels):
            own = [one for one in levels if one.server == name and getattr(one, value) is not None]
            axis.plot([one.users for one in own], [getattr(one, value) for one in own], "o-", label=name)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="users", xlim=(users[0] / 1.2, users[-1] * 1.2), ylim=(0, None))
        axis.set_xticks(users, [str(count) for count in users])
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file)


async def measure(given: argparse.Namespace, raw: Path) -> tuple[list[Target], list[Level]]:
    """Warm each server up, measure every level on each, and note every request in `raw`."""
    key = {"authorization": f"Bearer {_key(given.key_file)}"} if given.key_file else {}
    limits = httpx.Limits(max_connections=None)
    levels = []
    async with httpx.AsyncClient(headers=key, timeout=given.timeout, limits=limits, trust_env=False) as client:
        targets = [await find(client, url, given.api, given.model) for url in given.url]
        first = random.randrange(100_000, 900_000)
        questions = {target: _questions(first) for target in targets}
        for target in targets:
            print(f"{target.name}: {target.url}, API {target.api}, model {target.model}", file=sys.stderr)
            await level(client, target, 2, questions[target], 8)
        with open(raw, "w", encoding="utf-8") as out:
            for users, target in itertools.product(given.users, targets):
                found = await level(client, target, users, questions[target], given.tokens, given.apart)
                replies = counted(found, given.tokenizer)
                levels.append(summed(target, users, replies))
                for reply in replies:
                    out.write(json.dumps({"server": target.name, "users": users, **asdict(reply)}) + "\n")
                _tell(levels[-1], replies)
    return targets, levels


def _questions(first: int) -> Iterator[str]:
    """Yield questions without end, each with a number that no server has seen in this run or before."""
    return (f"{number}. {question}" for number, question in enumerate(itertools.cycle(QUESTIONS), first))


def _tell(done: Level, replies: list[Reply]) -> None:
    print(f"{done.server}, users: {done.users}, {done.tokens_per_s:.1f} tokens/s", file=sys.stderr)
    if any(reply.counted == "pieces" for reply in replies if not reply.error):
        print("  the server counts no tokens; pieces of text are counted: name --tokenizer", file=sys.stderr)
    if first := next((reply.error for reply in replies if reply.error), ""):
        print(f"  {done.failed} of {done.requests} requests failed; the first: {first}", file=sys.stderr)


def _key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"--key-file {file} cannot be read ({error})", "write the key into that file") from None


def _tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"there is no {file}")
    return Tokenizer.from_file(str(file))


def _users(text: str) -> list[int]:
    found = sorted({int(word) for word in text.split(",")})
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{found[0]} is less than one user")
    return found


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--url", action="append", metavar="[NAME=]URL", help="repeat to compare (default: http://127.0.0.1:8000)")
    add("--api", choices=("tgi", "openai"), default="", help="default: openai where there is /v1/models")
    add("--model", default="", help="name to ask for (default: tgi, else the first of /v1/models)")
    add("--key-file", type=Path, metavar="FILE", help="file with the API key")
    add("--tokenizer", type=_tokenizer, metavar="DIR", help="model folder, to count for a server that does not")
    add("--users", type=_users, default=list(LEVELS), metavar="N,N…", help="default: 1,2,4,8,16")
    add("--tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    add("--apart", type=float, default=0, metavar="SECONDS", help="between two users' first questions (default: 0)")
    add("--timeout", type=float, default=600, help="seconds without a byte (default: %(default)s)")
    add("--out", type=Path, default=BUILD / "bench-serve", metavar="DIR", help="default: %(default)s")
    given = parser.parse_args()
    given.url = given.url or ["http://127.0.0.1:8000"]
    return given


def run() -> int:
    """Measure, print the table, write the files; 1 when a server answered nothing."""
    enter_root()
    given = options()
    given.out.mkdir(parents=True, exist_ok=True)
    targets, levels = asyncio.run(measure(given, given.out / "requests.jsonl"))
    result = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tokens": given.tokens,
        "servers": [asdict(target) for target in targets],
        "levels": [asdict(one) for one in levels],
    }
    (given.out / "result.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    plot(levels, given.out / "plot.svg")
    print(f"{table(levels)}\n\nwritten: {given.out}/result.json, requests.jsonl, plot.svg")
    return int(any(not any(one.tokens for one in levels if one.server == target.name) for target in targets))


if __name__ == "__main__":
    errors.main(run)
