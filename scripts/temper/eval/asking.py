"""Ask a server every case, a few at a time, and keep each reply at once: a run that was cut off asks nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from temper.eval.cases import Case
from temper.eval.client import Client, Refused

PROGRESS_S = 10  # between two lines of progress
Reply = dict[str, Any]


def replies(path: Path) -> dict[str, Reply]:
    """Return the replies kept in `path` by case; a last line that was cut off is not one."""
    if not path.exists():
        return {}
    kept = path.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    if len(whole) < len(kept):
        path.write_bytes(whole)
    return {reply["id"]: reply for reply in map(json.loads, whole.splitlines())}


def ask(
    client: Client,
    cases: Sequence[Case],
    path: Path,
    settings: dict[str, Any],
    end_token: str,
    say: Callable[[str], None],
) -> dict[str, Reply]:
    """Return a reply to each case, those in `path` without asking; `settings`: concurrency and max_new_tokens.

    A reply is {"id", "answer", "tokens", "finish_reason", "seconds", "nats", "answer_tokens", "error"}; nats and
    answer_tokens are of the right answer, null where it has none or the server does not tell.
    Raises ServeError when the server stops answering.
    """
    known = replies(path)
    left = [case for case in cases if case.id not in known]
    began = shown = time.monotonic()
    with open(path, "a", encoding="utf-8") as kept, ThreadPoolExecutor(settings["concurrency"]) as workers:
        asked = [workers.submit(_one, client, case, settings["max_new_tokens"], end_token) for case in left]
        try:
            for done, future in enumerate(as_completed(asked), 1):
                reply = future.result()
                known[reply["id"]] = reply
                kept.write(json.dumps(reply, ensure_ascii=False) + "\n")
                kept.flush()
                if (now := time.monotonic()) - shown > PROGRESS_S:
                    shown, rest = now, (now - began) / done * (len(left) - done)
                    say(f"eval    {len(known)} of {len(cases)} answered, {rest:.0f} s to go")
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    return {case.id: known[case.id] for case in cases}


def _one(client: Client, case: Case, max_tokens: int, end_token: str) -> Reply:
    reply: Reply = {"id": case.id, "answer": "", "tokens": 0, "finish_reason": "", "seconds": None, "error": ""}
    reply |= {"nats": None, "answer_tokens": None}
    try:
        answer = client.answer(case.messages, max_tokens)
        reply |= {"answer": answer.text, "tokens": answer.tokens, "finish_reason": answer.finish_reason}
        reply["seconds"] = round(answer.seconds, 4)
        if case.row["output"] and (likely := client.likelihood(case.messages, case.row["output"] + end_token)):
            reply |= {"nats": likely.nats, "answer_tokens": likely.tokens}
    except Refused as error:
        reply["error"] = str(error)
    return reply
