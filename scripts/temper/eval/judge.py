"""A further model's opinion of two answers, from any server with OpenAI's API; off unless eval.judge_url names one.

Each pair is shown in both orders, since judges favour a place (Zheng et al. 2023, "Judging LLM-as-a-Judge"): an answer
wins only if it does so in both. Questions and answers leave this machine when the judge is elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from temper.eval import asking
from temper.eval.cases import Case
from temper.eval.client import Client, Refused

LONGEST = 16  # tokens of a verdict
SYSTEM = (
    "You compare two answers to one question. The reference answer is right. Reply with one letter: "
    "A if the first answer agrees better with the reference, B if the second does, T if both are equally good or bad."
)
SIDES = {"A": 1.0, "B": 0.0}  # how far the first answer wins


def opinions(
    client: Client,
    cases: Sequence[Case],
    replies: dict[str, dict[str, asking.Reply]],
    path: Path,
    concurrency: int,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Return for each case how far the tuned answer wins: 1, 0.5 for a draw or a judge that contradicts itself, or 0.

    Opinions are kept in `path` as they come. A case that the judge refuses (its prompt is too long) has none.
    """
    known = asking.replies(path)
    left = [case for case in cases if case.id not in known]
    if left:
        say(f"eval    asks the judge {client.model} about {len(left)} pairs of answers")
    with open(path, "a", encoding="utf-8") as kept, ThreadPoolExecutor(concurrency) as workers:
        pairs = [(case, replies["base"][case.id]["answer"], replies["tuned"][case.id]["answer"]) for case in left]
        for case, wins in zip(left, workers.map(lambda pair: _both(client, *pair), pairs), strict=True):
            known[case.id] = {"id": case.id, "wins": wins}
            kept.write(json.dumps(known[case.id]) + "\n")
            kept.flush()
    return {name: opinion["wins"] for name, opinion in known.items() if opinion["wins"] is not None}


def _both(client: Client, case: Case, base: str, tuned: str) -> float | None:
    try:
        first = read(client.answer(_prompt(case, tuned, base), LONGEST).text)
        second = read(client.answer(_prompt(case, base, tuned), LONGEST).text)
    except Refused:
        return None
    return first if first == 1 - second else 0.5


def read(verdict: str) -> float:
    """Return how far the first answer wins by a judge's words: the first A, B or T by itself; without one a draw."""
    found = re.search(r"\b[ABT]\b", verdict)
    return SIDES.get(found[0], 0.5) if found else 0.5


def _prompt(case: Case, one: str, other: str) -> list[dict[str, Any]]:
    parts = {
        "Question": case.messages[-1]["content"],
        "Reference answer": case.row["output"],
        "Answer A": one,
        "Answer B": other,
    }
    text = "\n\n".join(f"{name}:\n{part}" for name, part in parts.items())
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{text}\n\nA, B or T?"}]
