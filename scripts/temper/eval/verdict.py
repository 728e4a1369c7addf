"""The gate: whether the tuned model is better by enough, and has forgotten little enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.errors import EvalError, ResultError

Verdict = dict[str, Any]


def measured(result: Path) -> dict[str, Any]:
    """Return what an evaluation found; ResultError when there is none."""
    try:
        return dict(json.loads((result / "metrics.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ResultError(f"{result}: there is no evaluation", "run: make eval") from None


def of(metrics: dict[str, Any], settings: dict[str, Any]) -> Verdict:
    """Return {"passed", "gain", "gain_low", "gain_high", "min_gain", "retention_loss", "max_retention_loss", "why"}.

    `settings` is the eval section. The gain must be above eval.min_gain even at the lower end of its 95 % interval; of
    the retention loss, whose set is small and fixed, the value itself counts.
    """
    gain, loss = metrics["gain"], metrics["retention_loss"]
    why = []
    if gain["low"] <= settings["min_gain"]:
        why.append(
            f"the gain is {gain['value']:+.3f}, surely {gain['low']:+.3f} only: not above eval.min_gain "
            f"({settings['min_gain']:g})"
        )
    if loss and loss["value"] > settings["max_retention_loss"]:
        why.append(
            f"{loss['value']:.3f} of the retention score is lost: more than eval.max_retention_loss "
            f"({settings['max_retention_loss']:g})"
        )
    return {
        "passed": not why,
        "gain": gain["value"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        "min_gain": settings["min_gain"],
        "retention_loss": loss["value"] if loss else None,
        "max_retention_loss": settings["max_retention_loss"],
        "why": why,
    }


def line(verdict: Verdict) -> str:
    """Say the verdict in one line."""
    lost = verdict["retention_loss"]
    kept = "not measured" if lost is None else f"{lost:.3f} of at most {verdict['max_retention_loss']:g}"
    return (
        f"{'passed' if verdict['passed'] else 'FAILED'}: gain {verdict['gain']:+.3f} "
        f"({verdict['gain_low']:+.3f} to {verdict['gain_high']:+.3f}), more than {verdict['min_gain']:g} wanted; "
        f"retention lost {kept}"
    )


def refuse_failed(verdict: Verdict) -> None:
    """Raise EvalError for a model that did not pass."""
    if not verdict["passed"]:
        raise EvalError("; ".join(verdict["why"]), "see make report; other thresholds: SET='eval.min_gain=…'")
