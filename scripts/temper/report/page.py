"""The page that a team decides by: report.html in one language, which needs no script, no network and no other file.

The look is the data report's; the template stands in temper.report.template.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from temper.page import STYLE, clip, written_out
from temper.report import figures, template

EXCERPT, CODE = 600, 2400  # characters of an answer that are shown
METRICS = {
    "score": ("score", "得分"),
    "correct": ("right answers", "答对"),
    "facts": ("facts stated", "事实齐全"),
    "refusal": ("refusals where due", "该拒答时拒答"),
    "numeric": ("numbers right, with unit", "数值与单位正确"),
    "pass_at_1": ("unit tests passed at the first try", "一次通过单元测试"),
    "obeyed": ("instructions obeyed", "遵从指令"),
    "known": ("general questions answered", "常识问题答对"),
    "rouge_l": ("likeness to the row's answer", "与参考回答的相似度"),
    "judge": ("preferred by the judge", "评审偏好"),
    "loss": ("loss of the row's answer", "参考回答的损失"),
    "perplexity": ("perplexity of the row's answer", "参考回答的困惑度"),
    "answer_tokens": ("tokens an answer", "每个回答的 token 数"),
}
SETS = {
    "heldout": ("Rows held out of training", "未参与训练的行"),
    "checks": ("The scenario's own check set", "场景自带的检查集"),
    "retention": ("Retention set (general questions)", "遗忘检查集（通用问题）"),
}
OTHERS = {
    "zh": ("Chinese", "中文"),
    "en": ("English", "英文"),
    "knowledge": ("knowledge", "常识"),
    "language": ("language", "语言"),
    "instruction": ("following instructions", "遵从指令"),
    "passes its unit tests": ("passes its unit tests", "通过它的单元测试"),
    "code that passes the row's unit tests": ("code that passes the unit tests", "能通过单元测试的代码"),
}
PARTS: dict[str, tuple[str, ...]] = {
    "model": ("name", "parameters", "licence"),
    "verdict": ("passed", "gain", "gain_low", "gain_high", "min_gain", "retention_loss", "max_retention_loss", "why"),
    "data": ("read", "rejected", "duplicates", "conflicts", "train", "eval", "tokens"),
    "training": (
        *("seconds", "tokens", "tokens_per_second", "peak_bytes", "energy_joules"),
        *("samples", "epochs", "threads", "device"),
    ),
    "evaluation": ("seconds", "asked"),
    "versions": (),
}
LATENCY = ("median_s", "p95_s", "tokens_per_second")
UNMEASURED = ("not measured", "未测量")


def render(facts: dict[str, Any], language: str) -> str:
    """Return report.html in `language`, "en" or "zh"; equal facts give equal bytes.

    `facts` is what temper.report.facts.gather returns. Needed: scenario, profile, model.name, verdict, sets; whatever
    else is missing or None is shown as not measured.

    - verdict: passed, gain, gain_low, gain_high, min_gain, retention_loss, max_retention_loss, why [text]
    - sets: by name, cases and metrics [name, better, cases, base, tuned, difference, low, high]; better is "higher",
      "lower", or "" for what is only counted
    - groups.retention: [kind, lang, cases, base, tuned]
    - improved, damaged: [id, set, question, expected, base, tuned, base_score, tuned_score, why]
    - loss_curve: [step, loss, eval_loss]
    - data: read, rejected, duplicates, conflicts, train, eval (rows), tokens
    - training: seconds, tokens, tokens_per_second, peak_bytes, energy_joules, samples, epochs, threads, device
    - evaluation: seconds, asked, latency by model {median_s, p95_s, tokens_per_second}
    - bench: [server, users, first_token_s, first_token_p95_s, gap_ms, tokens_per_second] or None
    - provenance: [stage, what, sha256, size (bytes)]; versions, settings: by name
    """
    import jinja2

    def translate(en: str, zh: str, *values: Any) -> str:
        return (zh if language == "zh" else en).format(*values)

    def named(name: str, names: dict[str, tuple[str, str]]) -> str:
        return names[name][language == "zh"]

    none = translate(*UNMEASURED)
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals.update(t=translate, named=named, metrics=METRICS, set_names=SETS, others=OTHERS, unknown=none)
    made.filters.update(clip=clip, excerpt=_excerpt, code=_code, duration=figures.duration)
    made.filters.update(
        num=partial(figures.number, none=none),
        n=lambda value: none if value is None else f"{value:,}" if isinstance(value, int | float) else str(value),
    )
    return made.from_string(template.TEMPLATE).render(**_context(facts), lang=language, style=STYLE) + "\n"


def _context(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts with every part there, None where it is not known, and with what is worked out from them."""
    sets = {name: figures.judged(found["metrics"]) for name, found in facts["sets"].items()}
    kept = {metric["name"]: metric for metric in sets.get("retention") or []}
    groups = (facts.get("groups") or {}).get("retention") or []
    latency = (facts.get("evaluation") or {}).get("latency") or {}
    return {
        **dict.fromkeys(("description", "improved", "damaged")),
        **facts,
        **{part: {**dict.fromkeys(keys), **(facts.get(part) or {})} for part, keys in PARTS.items()},
        **{part: facts.get(part) or [] for part in ("bench", "provenance")},
        "latency": {model: {**dict.fromkeys(LATENCY), **(latency.get(model) or {})} for model in ("base", "tuned")},
        "settings": {key: value for key, value in (facts.get("settings") or {}).items() if value is not None},
        "gate": figures.gate(facts["verdict"]),
        "judged": sets,
        "worse": [(name, metric) for name in sets for metric in sets[name] if metric["outcome"] == "worse"],
        "groups": sorted(groups, key=lambda group: group["tuned"] - group["base"]),
        "kept": kept.get("correct") or kept.get("score"),
        "curve": figures.curve(facts.get("loss_curve") or []),
    }


def _code(text: str) -> bool:
    """Say whether line breaks and indents belong to the text: a fenced block, or indented lines."""
    return bool(re.search(r"```|^(?: {2,}|\t)\S", text, re.MULTILINE))


def _excerpt(text: str) -> str:
    """Return an answer to show: code with its lines, prose on one; what turns or hides text is written out."""
    if not _code(text):
        return clip(text, EXCERPT)
    return written_out(text if len(text) <= CODE else text[:CODE].rstrip() + "…")
