"""The stage's body: report.html, metrics.json and the model card, which is put into the merged folder too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper import digests, pipeline, stage
from temper.eval import verdict
from temper.report import card, facts, page


def write(config: dict[str, Any], work: Path) -> dict[str, Any]:
    """Write a scenario's report into `work`; return the stage's result."""
    found = facts.gather(config)
    text = card.card(found)
    (work / "report.html").write_text(page.render(found, config["report"]["language"]), encoding="utf-8")
    (work / "metrics.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / stage.CARD).write_text(text, encoding="utf-8")
    digests.write_atomic(pipeline.folder(config) / "merged" / stage.CARD, text)
    return {"summary": verdict.line(found["verdict"])}
