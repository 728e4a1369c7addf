"""What report.json says of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from temper.data.near import THRESHOLD
from temper.data.reasons import REASONS

CHANGES = ("unicode", "line_ends", "full_width_space", "html", "blanks")
BARS = 24  # of the histogram of tokens


def _statistics(counts: Counter[int], cutoff: int) -> dict[str, Any] | None:
    """Return what the lengths of one side come to, in tokens."""
    rows = sum(counts.values())
    if not rows:
        return None
    total = sum(tokens * count for tokens, count in counts.items())
    return {
        "rows": rows,
        "sum": total,
        "mean": round(total / rows, 1),
        "median": _quantile(counts, 0.5),
        "p95": _quantile(counts, 0.95),
        "max": max(counts),
        "truncated": sum(count for tokens, count in counts.items() if tokens > cutoff),
    }


def _quantile(counts: Counter[int], share: float) -> int:
    left = share * sum(counts.values())
    for tokens in sorted(counts):
        left -= counts[tokens]
        if left <= 0:
            return tokens
    return max(counts)


def _tokens(run: Any) -> dict[str, Any] | None:
    options = run.options
    if not (options.model and options.does("tokens")):
        return None
    sides: tuple[Counter[int], Counter[int]] = run.total.tokens
    both = sides[0] + sides[1]
    width = max(1, -(-max(_quantile(both, 0.999), 1) // BARS)) if both else 1
    width = next(
        step for step in (1, 2, 4, 8, 16, 25, 50, 100, 200, 250, 500, 1000, 2500, 5000, 10**9) if step >= width
    )
    bars: dict[int, list[int]] = {}
    last = -(-_quantile(both, 0.999) // width) * width if both else width
    for side, counts in enumerate(sides):
        for tokens, count in counts.items():
            bound = -(-max(tokens, 1) // width) * width if tokens <= last else max(both)
            bars.setdefault(bound, [0, 0])[side] += count
    return {
        "model": options.model_name or options.model.name,
        "cutoff_len": options.cutoff_len,
        "train": _statistics(sides[0], options.cutoff_len),
        "eval": _statistics(sides[1], options.cutoff_len),
        "histogram": [[bound, *bars.get(bound, [0, 0])] for bound in sorted({*bars, *range(width, last + 1, width)})],
        "longest": [{"tokens": tokens, "question": text, "split": side} for tokens, text, side in run.total.longest],
    }


def _characters(counts: Counter[int]) -> list[list[int]]:
    return [[2**bits - 1, counts[bits]] for bits in range(1, max(counts, default=0) + 1)]


def build(run: Any) -> dict[str, Any]:
    """Return the report of a finished run."""
    account, options = run.account, run.options
    reasons = [
        {
            "reason": code,
            "text": REASONS[code].text,
            "remedy": REASONS[code].remedy,
            "count": count,
            "first": [{"file": file, "line": line} for file, line in account.places[code]],
        }
        for code, count in sorted(account.reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    personal = {
        "action": options.personal,
        "rows": run.personal_rows,
        "kinds": dict(sorted(run.personal.items())),
        "examples": run.personal_examples,
    }
    return {
        "read": account.read,
        "train": account.counts["train"],
        "eval": account.counts["eval"],
        "duplicates": account.duplicates,
        "rejected": account.rejected,
        "duplicates_by": {kind: account.counts[kind] for kind in ("exact", "near", "across_split")},
        "max_rejected": options.max_rejected,
        "files": run.files,
        "reasons": reasons,
        "normalised": {key: run.changes[key] for key in CHANGES} if options.does("normalise") else None,
        "personal_data": personal if options.does("personal") else None,
        "conflicts": {
            "questions": run.total.conflicts,
            "examples": run.total.conflict_examples,
        },
        "near_duplicates": {"threshold": THRESHOLD, "examples": run.near_examples} if options.does("near") else None,
        "split": {"eval_share": options.eval_share, "given": any(table.held_out for table in run.tables)},
        "characters": {what: _characters(counts) for what, counts in run.total.lengths.items()},
        "tokens": _tokens(run),
        "examples": run.total.examples,
    }
