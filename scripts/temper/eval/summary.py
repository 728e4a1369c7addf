"""From the replies of two models to one table: means, paired intervals, and what got worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from temper.eval import answers, intervals, scoring
from temper.eval.asking import Reply
from temper.eval.cases import SETS, Case

MODELS = ("base", "tuned")
LOWER = ("loss", "perplexity")  # better when lower; further ones are only counted, such as answer_tokens
COUNTED = ("answer_tokens",)
Scores = list[dict[str, Any]]


def score(
    cases: Sequence[Case],
    replies: dict[str, dict[str, Reply]],
    opinions: dict[str, float],
    say: Callable[[str], None],
) -> Scores:
    """Return a line for each case: what was asked and is right, and each model's answer, scores and lacks.

    `opinions` are a judge's, by case: how far the tuned answer wins.
    """
    found = []
    for number, case in enumerate(cases, 1):
        columns = case.row["columns"]
        line = {
            "id": case.id,
            "set": case.set,
            "row": str(columns.get("id") or ""),
            "question": case.messages[-1]["content"],
            "expected": answers.expected(case.row),
            "output": case.row["output"],
            "lang": str(columns.get("lang") or ""),
            "kind": str(columns.get("kind") or columns.get("topic") or ""),
        }
        line |= {model: _judged(case, replies[model][case.id]) for model in MODELS}
        if (wins := opinions.get(case.id)) is not None:
            line["base"]["scores"]["judge"], line["tuned"]["scores"]["judge"] = 1 - wins, wins
        found.append(line)
        if number % 100 == 0:
            say(f"eval    {number} of {len(cases)} scored")
    return found


def _judged(case: Case, reply: Reply) -> dict[str, Any]:
    scored = scoring.score(case, reply["answer"])
    values = dict(scored.values)
    if not reply["error"]:
        values["answer_tokens"] = float(reply["tokens"])
    if reply["answer_tokens"]:
        values["loss"] = reply["nats"] / reply["answer_tokens"]
    return {
        "answer": reply["answer"],
        "finish_reason": reply["finish_reason"],
        "scores": {name: round(value, 6) for name, value in values.items()},
        "lacks": [reply["error"]] if reply["error"] else scored.lacks,
        "nats": reply["nats"],
        "tokens": reply["answer_tokens"],
    }


def metrics(scores: Scores) -> dict[str, Any]:
    """Return {"sets": {set: {"cases", "metrics": […]}}, "groups": {"retention": […]}, "gain", "retention_loss"}.

    A metric is {"name", "better", "cases", "base", "tuned", "difference", "low", "high"}, over the cases that have it
    from both models; low and high bound 95 % of the paired bootstrap. `gain` is that of `score` over the rows held out
    and the checks together, `retention_loss` what the retention set lost; each {"value", "low", "high", "cases"}.
    """
    sets = {name: [line for line in scores if line["set"] == name] for name in SETS}
    return {
        "sets": {name: {"cases": len(lines), "metrics": _table(lines)} for name, lines in sets.items() if lines},
        "groups": {"retention": list(_groups(sets["retention"]))},
        "gain": _change(sets["heldout"] + sets["checks"], 1),
        "retention_loss": _change([line for line in sets["retention"] if "correct" in line["base"]["scores"]], -1),
    }


def figures(found: dict[str, Any]) -> dict[str, float]:
    """Return what metrics() found as plain numbers by name, for experiment trackers."""
    values = {
        f"eval/{name}/{metric['name']}/{model}": float(metric[model])
        for name, part in found["sets"].items()
        for metric in part["metrics"]
        for model in MODELS
    }
    summed = {f"eval/{name}": found[name]["value"] for name in ("gain", "retention_loss") if found[name]}
    return {**values, **summed}


def _pairs(lines: Scores, name: str) -> tuple[list[float], list[float]]:
    both = [line for line in lines if all(name in line[model]["scores"] for model in MODELS)]
    base, tuned = ([line[model]["scores"][name] for line in both] for model in MODELS)
    return base, tuned


def _change(lines: Scores, sign: int) -> dict[str, Any] | None:
    base, tuned = _pairs(lines, "score")
    if not base:
        return None
    found = intervals.paired(base, tuned)
    low, high = sorted((sign * found.low, sign * found.high))
    return {
        "value": round(sign * found.difference, 6) + 0.0,  # never -0.0
        "low": round(low, 6),
        "high": round(high, 6),
        "cases": len(base),
    }


def _table(lines: Scores) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for line in lines for name in line["base"]["scores"])
    if all("correct" in line["base"]["scores"] for line in lines):
        names.pop("score", None)  # the same
    found = [row for name in sorted(names, key=_place) if (row := _metric(lines, name))]
    return [*found, *_perplexity(lines)]


def _place(name: str) -> int:
    return ("score", "correct").index(name) if name in ("score", "correct") else 9 if name in COUNTED else 5


def _metric(lines: Scores, name: str) -> dict[str, Any] | None:
    base, tuned = _pairs(lines, name)
    if not base:
        return None
    found = intervals.paired(base, tuned)
    return {
        "name": name,
        "better": "lower" if name in LOWER else "" if name in COUNTED else "higher",
        "cases": len(base),
        "base": _mean(base),
        "tuned": _mean(tuned),
        "difference": round(found.difference, 6),
        "low": round(found.low, 6),
        "high": round(found.high, 6),
    }


def _perplexity(lines: Scores) -> Iterable[dict[str, Any]]:
    """Give the perplexity of the right answers: exp of nats per token over all of them."""
    known = [line for line in lines if all(line[model]["tokens"] for model in MODELS)]
    if not known:
        return
    base, tuned = (
        math.exp(sum(line[model]["nats"] for line in known) / sum(line[model]["tokens"] for line in known))
        for model in MODELS
    )
    row = {"name": "perplexity", "better": "lower", "cases": len(known), "low": None, "high": None}
    yield row | {"base": round(base, 4), "tuned": round(tuned, 4), "difference": round(tuned - base, 4)}


def _groups(lines: Scores) -> Iterable[dict[str, Any]]:
    for kind, lang in sorted({(line["kind"], line["lang"]) for line in lines}):
        base, tuned = _pairs([line for line in lines if (line["kind"], line["lang"]) == (kind, lang)], "correct")
        if base:
            yield {"kind": kind, "lang": lang, "cases": len(base), "base": _mean(base), "tuned": _mean(tuned)}


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 6)


def latency(replies: Iterable[Reply]) -> dict[str, float] | None:
    """Return median and 95th percentile of the seconds an answer took, and tokens per second of one request."""
    import numpy

    asked = [reply for reply in replies if reply["seconds"]]
    if not asked:
        return None
    seconds = [reply["seconds"] for reply in asked]
    median, late = numpy.percentile(seconds, [50, 95])
    rate = sum(reply["tokens"] for reply in asked) / sum(seconds)
    return {"median_s": round(float(median), 3), "p95_s": round(float(late), 3), "tokens_per_second": round(rate, 1)}
