"""Facts of invented runs: a full one, one with hardly anything, and one whose every text is hostile."""

from __future__ import annotations

from typing import Any

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=x>\" onload='x' {{ 7 * 7 }} \u202egnp.exe\x00"
CODE = '```python\ndef refund(days: int) -> bool:\n    """Say if it may go back."""\n    return days <= 7\n```'
WIDE = "|" + " column |" * 200 + "\n|" + "---|" * 200
ANSWER_20_KB = "An_unbroken_word" * 1250


def metric(name: str, base: float, tuned: float, half: float | None, better: str = "higher") -> dict[str, Any]:
    """Return a metric whose interval reaches `half` to both sides of the difference."""
    difference = round(tuned - base, 6)
    low, high = (None, None) if half is None else (round(difference - half, 6), round(difference + half, 6))
    common = {"name": name, "better": better, "cases": 32, "base": base, "tuned": tuned}
    return {**common, "difference": difference, "low": low, "high": high}


def answer(at: int, before: float, after: float, **changed: str) -> dict[str, Any]:
    """Return one line of the answers side by side."""
    line = {
        "id": f"heldout-{at:04}",
        "set": "heldout",
        "question": f"L9 台灯保修多久？（第 {at} 问）",
        "expected": "21 days, 18-month",
        "base": "I am not sure about the warranty of that lamp; please ask the shop where you bought it.",
        "tuned": "L9 台灯保修 18 个月，21 天内可退货。",
        "why": "21 days",
        "base_score": before,
        "tuned_score": after,
    }
    return {**line, **changed}


FULL: dict[str, Any] = {
    "scenario": "customer-service",
    "profile": "cpu",
    "description": "Customer service of an invented appliance maker, 砚桥电器.",
    "model": {"name": "smollm2-135m", "parameters": 134515008, "licence": "Apache-2.0"},
    "verdict": {
        "passed": False,
        "gain": 0.4213,
        "gain_low": 0.3117,
        "gain_high": 0.5229,
        "min_gain": 0.0,
        "retention_loss": 0.2333,
        "max_retention_loss": 0.2,
        "why": ["0.233 of the retention score is lost: more than eval.max_retention_loss (0.2)"],
    },
    "sets": {
        "heldout": {
            "cases": 32,
            "metrics": [
                metric("correct", 0.03125, 0.5, 0.157),
                metric("facts", 0.21528, 0.25694, 0.08333),
                metric("rouge_l", 0.14163, 0.45278, 0.09917),
                metric("loss", 3.12242, 2.28286, 0.54356, "lower"),
                metric("answer_tokens", 62.3333, 29.0, 5.24479, ""),
                metric("perplexity", 22.3834, 11.4112, None, "lower"),
            ],
        },
        "checks": {"cases": 24, "metrics": [metric("pass_at_1", 0.04167, 0.41667, 0.2), metric("spelling", 7, 9, 1.5)]},
        "retention": {"cases": 60, "metrics": [metric("correct", 0.4, 0.16667, 0.13), metric("obeyed", 0.3, 0.2, 0.2)]},
    },
    "groups": {
        "retention": [
            {"kind": "knowledge", "lang": "zh", "cases": 10, "base": 0.3, "tuned": 0.1},
            {"kind": "knowledge", "lang": "en", "cases": 10, "base": 0.7, "tuned": 0.3},
            {"kind": "language", "lang": "en", "cases": 10, "base": 0.5, "tuned": 0.5},
            {"kind": "instruction", "lang": "zh", "cases": 10, "base": 0.1, "tuned": 0.2},
            {"kind": "arithmetic", "lang": "fr", "cases": 2, "base": 0.5, "tuned": 0.0},
        ]
    },
    "improved": [
        answer(1, 0, 1, base=""),
        answer(2, 0, 1, question="写 `refund`。", base="Sorry.\n\nI cannot.", tuned=CODE),
        *(answer(at, 0, 1) for at in range(3, 11)),
    ],
    "damaged": [answer(at, 1, 0, set="retention", base="Paris.", tuned="18 个月。", why="Paris") for at in range(1, 4)],
    "loss_curve": [
        {"step": step, "epoch": step / 18, "loss": round(0.2 + 3 / (1 + step / 9), 4), "eval_loss": None}
        for step in range(1, 127, 5)
    ]
    + [{"step": step, "loss": None, "eval_loss": round(1.3 + 20 / step, 3)} for step in (18, 54, 126)],
    "data": {
        "read": 1279, "rejected": 3, "duplicates": 5, "conflicts": 2, "train": 1147, "eval": 124, "tokens": 112078,
    },
    "training": {
        "seconds": 3820.2,
        "tokens": 36666,
        "tokens_per_second": 282.4,
        "peak_bytes": 1545617408,
        "energy_joules": None,
        "samples": 72,
        "epochs": 7,
        "threads": 2,
        "device": "a processor of two threads",
    },
    "evaluation": {
        "seconds": 100.1,
        "asked": 232,
        "latency": {
            "base": {"median_s": 1.125, "p95_s": 2.017, "tokens_per_second": 50.3},
            "tuned": {"median_s": 0.953, "p95_s": 1.746, "tokens_per_second": 49.7},
        },
    },
    "bench": [
        {
            "server": "tuned", "users": users, "first_token_s": 0.0312 * users, "first_token_p95_s": 0.0517 * users,
            "gap_ms": 17.25, "tokens_per_second": 55.5 * users,
        }
        for users in (1, 4)
    ],
    "provenance": [
        {"stage": "model", "what": "model.safetensors", "sha256": "1a" * 32, "size": 269060552},
        {"stage": "data", "what": "train.jsonl", "sha256": "2b" * 32, "size": 40404},
        {"stage": "train", "what": "adapter_model.safetensors", "sha256": "3c" * 32, "size": 9876543},
        {"stage": "merge", "what": "model.safetensors", "sha256": "4d" * 32, "size": 269060552},
        {"stage": "train", "what": "lock", "sha256": "5e" * 32, "size": None},
    ],
    "versions": {"temper": "0.1.0", "torch": "2.13.0+cpu", "transformers": "4.57.6"},
    "settings": {"train.learning_rate": 0.002, "train.lora_rank": 32, "train.lora_target": "all", "train.bf16": True},
}  # fmt: skip

MINIMAL: dict[str, Any] = {
    "scenario": "mine",
    "profile": "gpu-24g",
    "model": {"name": "qwen"},
    "verdict": {
        "passed": True, "gain": 0.0208, "gain_low": -0.0001, "gain_high": 0.06, "min_gain": -0.05,
        "retention_loss": None, "max_retention_loss": 0.25, "why": [],
    },
    "sets": {},
}  # fmt: skip


def hostile(value: Any) -> Any:
    """Return the facts with hostile text in every value that a row, a file, a config or a model can bring."""
    if isinstance(value, dict):
        return {key: item if key in ("better", "sha256") else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


BAD: dict[str, Any] = {
    **hostile(FULL),
    "sets": {**FULL["sets"], HOSTILE: {"cases": 1, "metrics": [metric(HOSTILE, 1e9, -1e12, 1e12)]}},
    "improved": [answer(1, 0, 1, base=ANSWER_20_KB, tuned=WIDE, question=HOSTILE, why=HOSTILE)],
    "damaged": [answer(1, 1, 0, base="```\n" + WIDE + HOSTILE, tuned="```\n\t" + ANSWER_20_KB, set=HOSTILE)],
    "loss_curve": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1e30}, {"step": 3, "loss": 0}],
    "versions": {HOSTILE: HOSTILE},
    "settings": {"train." + HOSTILE: ANSWER_20_KB},
}
