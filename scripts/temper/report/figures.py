"""How numbers are written, what an interval says, and where the marks of a chart are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

SHARES = ("score", "correct", "facts", "refusal", "numeric", "pass_at_1", "obeyed", "known", "rouge_l", "judge")
POINTS = 400  # of a curve; a picture shows no more


def number(value: float | None, against: float = 0, none: str = "not measured", sign: bool = False) -> str:
    """Return a number with three decimals, and with more where three would make it equal to `against` or to 0."""
    if value is None:
        return none
    if not abs(value) < 1e6:
        return f"{value:{'+' if sign else ''}.3g}"
    places = 1 if abs(value) >= 1000 else 3
    while places < 9 and value not in (0, against) and round(value, places) in (0, round(against, places)):
        places += 1
    return f"{value + 0.0:{'+' if sign and value else ''},.{places}f}"  # + 0.0: no minus before zero


def outcome(metric: dict[str, Any]) -> str:
    """Return better or worse where the 95 % interval of the difference leaves 0 out, else undecided.

    counted: the metric says neither good nor bad; unmeasured: it has no interval.
    """
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None or not math.isfinite(low + high):
        return "unmeasured"
    if not metric.get("better"):
        return "counted"
    if low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == (metric["better"] == "higher") else "worse"


def judged(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics with `outcome`, and the interval's `bar`: start, width and middle in percent, 50 being zero.

    Shares have one scale within a set, so that their bars compare; any other metric has its own.
    """
    found = [{**metric, "outcome": outcome(metric), "bar": None} for metric in metrics]
    measured = [metric for metric in found if metric["outcome"] != "unmeasured"]
    common = max((_reach(metric) for metric in measured if metric["name"] in SHARES), default=0)
    for metric in measured:
        scale = 48 / ((common if metric["name"] in SHARES else _reach(metric)) or 1)
        start, end, middle = (50 + scale * metric[key] for key in ("low", "high", "difference"))
        metric["bar"] = {"x": round(start, 2), "width": round(end - start, 2), "middle": round(middle, 2)}
    return found


def _reach(metric: dict[str, Any]) -> float:
    return max(abs(metric[key]) for key in ("low", "high", "difference"))


def gate(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gate's two limits: what counts, the number shown, the number compared, the limit and whether it held.

    The lower end of the gain's interval must be above its limit (temper.eval.verdict); `held` is None unmeasured.
    """
    low, least = verdict.get("gain_low"), verdict.get("min_gain")
    lost, most = verdict.get("retention_loss"), verdict.get("max_retention_loss")
    return [
        {
            "name": "gain",
            "value": verdict.get("gain"),
            "compared": low,
            "limit": least,
            "held": None if low is None or least is None else low > least,
        },
        {
            "name": "retention_loss",
            "value": lost,
            "compared": lost,
            "limit": most,
            "held": None if lost is None or most is None else lost <= most,
        },
    ]


def curve(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the lines of a loss curve in thousandths of the picture, and ticks in percent; None without any loss.

    Both axes start at 0. A loss that is not a number, of a run that diverged, is left out.
    """
    lines = {}
    for key in ("loss", "eval_loss"):
        known = [(point["step"], point[key]) for point in points if _known(point.get(key)) and _known(point["step"])]
        kept = known[:: math.ceil(len(known) / POINTS) or 1]
        lines[key] = [*kept, *(known[-1:] if known[-1:] != kept[-1:] else [])]
    every = [*lines["loss"], *lines["eval_loss"]]
    if not every:
        return None
    right, top = (max(values) or 1 for values in zip(*every, strict=True))
    heights = _ticks(top)
    top = heights[-1]
    return {
        "lines": {
            key: {
                "path": [(round(1000 * x / right, 1), round(1000 - 1000 * y / top, 1)) for x, y in line],
                "first": line[0],
                "last": line[-1],
            }
            for key, line in lines.items()
            if line
        },
        "x": [(round(100 * tick / right, 2), f"{tick:g}") for tick in _ticks(right) if tick <= right],
        "y": [(round(100 - 100 * tick / top, 2), f"{tick:g}") for tick in heights],
    }


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _ticks(top: float, most: int = 5) -> list[float]:
    """Return at most so many steps of 1, 2 or 5 times a power of ten, from 0 up to `top` or just above."""
    ten = 10.0 ** math.floor(math.log10(top / most))
    step = next(factor * ten for factor in (1, 2, 5, 10) if top / (factor * ten) <= most)
    return [at * step for at in range(math.ceil(top / step - 1e-9) + 1)]


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
