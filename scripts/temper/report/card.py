"""The tuned model's card in the Hugging Face form: README.md with metadata that model hubs read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from temper.page import clip
from temper.report import figures
from temper.report.page import METRICS, SETS

Facts = dict[str, Any]
MODELS = ("base", "tuned")
LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Llama 2 Community License": "llama2"}  # the hub's names
USE = """\
```bash
make serve SCENARIO={scenario} PROFILE={profile}
curl -s http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d '{{
  "messages": [{{"role": "user", "content": "…"}}], "temperature": 0, "max_tokens": 128}}'
```

```python
from huggingface_hub import InferenceClient

client = InferenceClient(base_url="http://127.0.0.1:8000", api_key="none")
answer = client.chat_completion([{{"role": "user", "content": "…"}}], model="tgi", max_tokens=128, temperature=0)
print(answer.choices[0].message.content)
```"""
LIMITS = """\
- It was measured on the questions of one scenario and a small retention set; of anything else nothing is known.
- Scores are of greedy answers; sampling gives others.
- It can state what is wrong with confidence, and has had no safety training beyond the base model's.
- What the base model's licence forbids stays forbidden."""


def card(facts: Facts) -> str:
    """Return README.md for the merged model; `facts` as for temper.report.page.render, the same parts optional.

    model.repository, if there, names the base model on a hub; else its name here stands for it.
    """
    settings = {key: value for key, value in (facts.get("settings") or {}).items() if value is not None}
    parts = {
        "What it is": _about(facts),
        "How to use it": USE.format(scenario=clip(facts["scenario"]), profile=clip(facts["profile"])),
        "Results": _results(facts),
        "What got worse": _worse(facts),
        "Training": _values(facts.get("training"), settings),
        "Data": _digests(facts, ("data",), _values(facts.get("data"))),
        "Provenance": _digests(facts, ("model", "train", "merge", "eval"), _values(facts.get("versions"))),
        "Licence": f"The base model's: {_text(facts['model'].get('licence'))}.",
        "Limits": LIMITS,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    title = f"{_text(facts['scenario'])}, {_text(facts['profile'])}"
    return f"---\n{_metadata(facts)}\n---\n\n# {title}\n\n{body}\n"


def _metadata(facts: Facts) -> str:
    """Return the YAML between the marks, written by huggingface_hub."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = facts["model"].get("licence") or "unknown"
    known = LICENCES.get(licence)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=facts["scenario"],
            dataset_name=f"{facts['scenario']}: {SETS.get(name, (name,))[0]}",
            dataset_split=name,
            metric_type=metric["name"],
            metric_name=METRICS.get(metric["name"], (metric["name"],))[0],
            metric_value=metric["tuned"],
        )
        for name, metric in _metrics(facts)
        if math.isfinite(metric["tuned"])
    ]
    return ModelCardData(
        base_model=facts["model"].get("repository") or facts["model"]["name"],
        language=["zh", "en"],
        license=known or ("other" if licence != "unknown" else licence),
        license_name=None if known or licence == "unknown" else "-".join(licence.lower().split()),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["temper", "fine-tuned", facts["scenario"]],
        model_name=f"{facts['scenario']}-{facts['profile']}",
        eval_results=results or None,
        data_sha256=next((row["sha256"] for row in _files(facts, ("data",)) if row["what"] == "train.jsonl"), None),
    ).to_yaml()


def _files(facts: Facts, stages: Sequence[str]) -> list[dict[str, Any]]:
    return [row for row in facts.get("provenance") or [] if row["stage"] in stages]


def _metrics(facts: Facts) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, found in facts["sets"].items():
        for metric in found["metrics"]:
            yield name, metric


def _text(value: Any) -> str:
    """Return a value for a table or a sentence: on one line, and inert in Markdown."""
    shown = "not measured" if value is None else f"{value:,}" if type(value) in (int, float) else str(value)
    for mark in "\\`|<*[]":
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return clip(shown, 400)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "Not measured."


def _about(facts: Facts) -> str:
    model, verdict = facts["model"], facts["verdict"]
    gain = [figures.number(verdict.get(key), sign=True) for key in ("gain", "gain_low", "gain_high")]
    return (
        f"{_text(facts.get('description') or facts['scenario'])}\n\n"
        f"A fine-tuned {_text(model['name'])} of {_text(model.get('parameters'))} parameters, its adapter merged. "
        f"The gate of its evaluation: **{'passed' if verdict['passed'] else 'failed'}**, "
        f"with a gain in the score of {gain[0]} (95 % interval {gain[1]} to {gain[2]})."
    )


def _results(facts: Facts) -> str:
    rows = [
        [
            _text(name),
            _text(metric["name"]),
            f"{metric['cases']:,}",
            figures.number(metric["base"]),
            figures.number(metric["tuned"]),
            figures.number(metric["difference"], sign=True),
            "not measured"
            if metric["low"] is None
            else f"{figures.number(metric['low'], sign=True)} to {figures.number(metric['high'], sign=True)}",
            figures.outcome(metric).replace("unmeasured", "not measured"),
        ]
        for name, metric in _metrics(facts)
    ]
    return _table(
        ["set", "metric", "questions", "base", "tuned", "difference", "95 % interval", "the tuned model is"], rows
    )


def _worse(facts: Facts) -> str:
    lost = figures.number(facts["verdict"].get("retention_loss"))
    names = [f"{_text(name)}: {_text(one['name'])}" for name, one in _metrics(facts) if figures.outcome(one) == "worse"]
    groups = [
        [_text(one["kind"]), _text(one["lang"]), f"{one['cases']:,}", *(figures.number(one[it]) for it in MODELS)]
        for one in (facts.get("groups") or {}).get("retention") or []
    ]
    return (
        f"Score lost on the retention set: {lost}. Surely worse: {'; '.join(names) or 'nothing measured'}.\n\n"
        + _table(["retention questions", "language", "questions", *MODELS], groups)
    )


def _values(*parts: dict[str, Any] | None) -> str:
    return _table(
        ["what", "value"], [[_text(key), _text(value)] for part in parts for key, value in (part or {}).items()]
    )


def _digests(facts: Facts, stages: Sequence[str], before: str) -> str:
    rows = [[_text(row["stage"]), _text(row["what"]), f"`{row['sha256']}`"] for row in _files(facts, stages)]
    return f"{before}\n\n{_table(['stage', 'what', 'SHA-256'], rows)}"
