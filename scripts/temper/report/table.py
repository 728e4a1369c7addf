"""The table of scenarios in both READMEs, from the reports that are there; a cell without a run says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper import digests
from temper.config import resolve
from temper.errors import UsageError
from temper.paths import BUILD

BEGIN, END = "<!-- make table: begin -->", "<!-- make table: end -->"
PROFILES = ("cpu", "gpu-24g")
WORDS = {
    "README.md": {
        "head": "| scenario | profile | model | training | an answer | right | loss, nats a token | gain (95 %) |",
        "none": "no run yet",
    },
    "README.zh-CN.md": {
        "head": "| 场景 | 配置 | 模型 | 训练 | 回答耗时（中位数） | 答对 | 损失（nat/token） | 提升（95% 区间） |",
        "none": "尚未运行",
    },
}
COLUMNS = 8


def write() -> list[str]:
    """Write the table into both READMEs and return what was done, a line each; UsageError without the marks."""
    said = []
    for name, words in WORDS.items():
        path = Path(name)
        text = path.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text:
            raise UsageError(f"{name}: the table's place is not marked", f"put {BEGIN} and {END} where it belongs")
        table = "\n".join([words["head"], "|---" * COLUMNS + "|", *_rows(words["none"])])
        before, _, rest = text.partition(BEGIN)
        new = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
        if new != text:
            digests.write_atomic(path, new)
        said.append(f"table   {name} {'updated' if new != text else 'is current'}")
    return said


def _rows(none: str) -> list[str]:
    return [_row(scenario, profile, none) for scenario in _shipped() for profile in PROFILES]


def _shipped() -> list[str]:
    """Return the scenarios that ship with the repository, and not the user's own."""
    return [name for name in resolve.names("scenarios") if (Path("data") / name).is_dir()]


def _row(scenario: str, profile: str, none: str) -> str:
    config = resolve.resolve(scenario, profile)
    facts = _facts(BUILD / scenario / profile / "report" / "metrics.json")
    cells = _cells(facts) if facts else [none] * (COLUMNS - 3)
    return f"| {' | '.join([scenario, profile, config['model']['name'], *cells])} |"


def _facts(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _cells(facts: dict[str, Any]) -> list[str]:
    verdict, latency = facts["verdict"], facts["evaluation"]["latency"]["tuned"]
    return [
        f"{facts['training']['seconds']:.0f} s",
        f"{latency['median_s']:.1f} s",
        " → ".join(f"{value:.0%}" for value in _means(facts, "score", "correct")),
        " → ".join(f"{value:.2f}" for value in _means(facts, "loss")) or "–",
        f"{verdict['gain']:+.0%} ({verdict['gain_low']:+.0%} … {verdict['gain_high']:+.0%})",
    ]


def _means(facts: dict[str, Any], *names: str) -> list[float]:
    """Return a metric's means of base and tuned model over the scenario's own questions; nothing where it has none."""
    sets = [facts["sets"][name]["metrics"] for name in ("heldout", "checks") if name in facts["sets"]]
    found = [metric for metrics in sets for metric in metrics if metric["name"] in names]
    cases = sum(metric["cases"] for metric in found)
    return [sum(metric[model] * metric["cases"] for metric in found) / cases for model in ("base", "tuned") if cases]
