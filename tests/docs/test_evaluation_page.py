"""docs/evaluation.md names settings, columns and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from temper.config.schema import Eval
from temper.report.page import METRICS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_setting_named_is_one_and_the_gate_is_explained() -> None:
    """Each eval.KEY is a key of the section, and both thresholds are on the page."""
    named = set(re.findall(r"\beval\.([a-z_]+)", PAGE))
    assert named <= set(Eval.model_fields)
    assert {"min_gain", "max_retention_loss", "checks", "retention", "judge_url"} <= named


def test_every_file_named_is_there() -> None:
    """Paths of the repository in the text lead somewhere."""
    paths = re.findall(r"`((?:data|scripts|docs)/[\w/.-]+)`", PAGE)
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_metric_of_right_and_wrong_is_explained() -> None:
    """What an answer is scored by stands in the page's table."""
    told = PAGE.partition("## How answers are scored")[2].partition("## The gate")[0]
    assert [name for name in METRICS if name not in told and name not in ("judge", "rouge_l", "answer_tokens")] == []
