"""The loss curve of a run, as rows and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEPT = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


def write(state: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Write loss.jsonl and loss.png into `out` from the content of trainer_state.json; return the rows."""
    history = state["log_history"]
    rows = [
        {key: item[key] for key in KEPT if key in item} for item in history if "loss" in item or "eval_loss" in item
    ]
    (out / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _plot(rows, out / "loss.png")
    return rows


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for key, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=3 if len(points) < 50 else 0,
                linewidth=1,
                label=label,
            )
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
