#!/usr/bin/env python3
"""Ask a served model: python client.py "your question" [--stream]. Needs Python 3.9 or later and nothing else."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

URL = "http://127.0.0.1:8000"
TRIES = 5  # for a server that is busy (429) or not ready (503)


def ask(question: str, url: str = URL, **options: Any) -> str:
    """Return the answer; `options` go into the request (max_tokens, temperature, seed, stop …)."""
    with _post(url, {**_body(question), **options}) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def stream(question: str, url: str = URL, **options: Any) -> Iterator[str]:
    """Yield the answer piece by piece."""
    with _post(url, {**_body(question), **options, "stream": True}) as response:
        for line in response:
            data = line.decode().strip()
            if not data.startswith("data:") or data == "data: [DONE]":
                continue
            event = json.loads(data[5:])
            if "error" in event:
                raise RuntimeError(event["error"].get("message", event["error"]))
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


def _body(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0}


def _post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if os.environ.get("TEMPER_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['TEMPER_API_KEY']}"
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), headers)
    # A proxy cannot reach this machine's own addresses.
    local = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    for attempt in range(TRIES):
        try:
            return opener.open(request, timeout=600)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or attempt == TRIES - 1:
                raise RuntimeError(f"{url} answered {error.code}: {error.read().decode('utf-8', 'replace')}") from None
            wait = error.headers.get("Retry-After", "")
            time.sleep(int(wait) if wait.isdigit() else 2**attempt / 2)
    raise AssertionError


def main() -> None:
    """Read the command line, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--url", default=URL, help="of the server (default: %(default)s)")
    parser.add_argument("--stream", action="store_true", help="print the answer while it is made")
    parser.add_argument("--max_tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    given = parser.parse_args()
    options = {"max_tokens": given.max_tokens, "temperature": given.temperature}
    pieces = (
        stream(given.question, given.url, **options) if given.stream else [ask(given.question, given.url, **options)]
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
