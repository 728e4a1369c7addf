"""The model card: metadata that huggingface_hub reads back, and text that says what the facts say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard
from report_facts import BAD, FULL, MINIMAL

from temper.report.card import card


@pytest.mark.parametrize("facts", [FULL, MINIMAL, BAD], ids=["full", "minimal", "hostile"])
def test_metadata_loads_again(facts: dict[str, Any]) -> None:
    """huggingface_hub reads the metadata back, complains of nothing, and finds every tuned value."""
    read = ModelCard(card(facts), ignore_metadata_errors=False)
    assert read.data.base_model == facts["model"]["name"]
    assert read.data.language == ["zh", "en"]
    assert (read.data.library_name, read.data.pipeline_tag) == ("transformers", "text-generation")
    results = {(one.dataset_split, one.metric_type): one.metric_value for one in read.data.eval_results or []}
    assert results == {
        (name, metric["name"]): metric["tuned"] for name, found in facts["sets"].items() for metric in found["metrics"]
    }
    assert all(one.task_type == "text-generation" for one in read.data.eval_results or [])
    assert "datasets" not in read.data.to_dict()
    rows = {(row["stage"], row["what"]): row["sha256"] for row in facts.get("provenance") or []}
    assert read.data.to_dict().get("data_sha256") == rows.get(("data", "train.jsonl"))


@pytest.mark.parametrize(
    ("licence", "wanted", "name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("MIT", "mit", None),
        ("Llama 2 Community License", "llama2", None),
        ("Qwen Research", "other", "qwen-research"),
        (None, "unknown", None),
    ],
)
def test_licence(licence: str | None, wanted: str, name: str | None) -> None:
    """The licence has the hub's name; one that the hub does not know is other, with its name."""
    data = ModelCard(card({**FULL, "model": {**FULL["model"], "licence": licence}})).data
    assert (data.license, data.license_name) == (wanted, name)


def test_base_model_on_a_hub() -> None:
    """A base model that has a place on a hub is named by it."""
    facts = {**FULL, "model": {**FULL["model"], "repository": "Invented/Model-1B"}}
    assert ModelCard(card(facts)).data.base_model == "Invented/Model-1B"


def test_text() -> None:
    """Sections stand in order; verdict, intervals, damage and digests are the facts'."""
    written = card(FULL)
    assert re.findall("^## (.*)", written, re.MULTILINE) == [
        "What it is", "How to use it", "Results", "What got worse", "Training", "Data", "Provenance", "Licence",
        "Limits",
    ]  # fmt: skip
    assert "**failed**, with a gain in the score of +0.421 (95 % interval +0.312 to +0.523)" in written
    assert "| heldout | correct | 32 | 0.031 | 0.500 | +0.469 | +0.312 to +0.626 | better |" in written
    assert "Score lost on the retention set: 0.233. Surely worse: retention: correct." in written
    assert all(row["sha256"] in written for row in FULL["provenance"])
    assert "make serve SCENARIO=customer-service PROFILE=cpu" in written


def test_missing_and_hostile() -> None:
    """What is missing is not measured; text from elsewhere opens no tag, breaks no table and turns nothing around."""
    assert card(MINIMAL).count("ot measured") > 5
    body = card(BAD).split("\n---\n", 1)[1]
    assert not re.search("<(?!$)[a-z/]", body.split("```")[-1])
    assert not re.search("[\u202a-\u202e\x00]", body)
    table = [line for line in body.splitlines() if line.startswith("| heldout")]
    assert {line.count("|") for line in table} == {9}
