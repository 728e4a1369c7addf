"""Tasks of lm-evaluation-harness run against a server give what the harness's own model gives on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.serve.serving import Running

from temper.errors import ConfigError
from temper.eval import harness
from temper.eval.client import Client

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

ROWS = [
    {"q": "Who are you?", "choices": ["I am a small model that", "I am a large dog"], "answer": 0},
    {"q": "Write code.", "choices": ["tick tock tick", "def add(a, b):"], "answer": 1},
    {"q": "你是谁？", "choices": ["我是一个很小的模型", "tick tock"], "answer": 0},
]
ASKED = "<|im_start|>user\\n{{q}}<|im_end|>\\n<|im_start|>assistant\\n"
TASKS = {
    "choose": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    "say": 'output_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
    'generation_kwargs: {until: [" that", "\\n", "。", "!", "?", ";"], max_gen_toks: 60}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    "text": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{q}}"\n'
    "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]",
    "whole": 'output_type: loglikelihood\ndoc_to_target: "{{choices[answer]}}"\n'
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},"
    "{metric: perplexity, aggregation: perplexity, higher_is_better: false}]",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task of each kind that the harness has, on rows beside it."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, body in TASKS.items():
        asked = '""' if name == "text" else f'"{ASKED}"'
        (folder / f"{name}.yaml").write_text(
            f"task: temper_{name}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
            f'test_split: test\ndoc_to_text: {asked}\ntarget_delimiter: ""\n{body}\n',
            encoding="utf-8",
        )
    return folder


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Return each task's metrics without their errors."""
    return {
        f"{task} {name}": float(value)
        for task, values in results.items()
        for name, value in values.items()
        if "," in name and "stderr" not in name and not isinstance(value, str)
    }


def test_every_kind_of_task_gives_the_harness_own_figures(
    server: Running, tiny: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Choices, generated answers, likelihoods and perplexity agree with the harness's Hugging Face model."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    names = [f"temper_{name}" for name in TASKS]
    found = harness.run(Client(server.url, "local"), names, harness.find(names, tasks), 2, None)
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    theirs = {}
    # A server begins every text with the model's first token; of a rolling text the harness itself puts it in front.
    for begins, part in (("True", names[:2] + names[3:]), ("False", names[2:3])):
        model = f"pretrained={tiny},dtype=float32,device=cpu,add_bos_token={begins}"
        manager = TaskManager(include_path=str(tasks))
        theirs |= numbers(evaluator.simple_evaluate("hf", model, part, task_manager=manager)["results"])
    ours = numbers(found["results"])
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 5
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert any("temper_choose: acc" in line for line in harness.table(found))


def test_a_task_that_is_not_there_is_named() -> None:
    """An unknown task is one line that says how to add a folder of tasks."""
    with pytest.raises(ConfigError, match="nonsense: no such task"):
        harness.find(["nonsense"], None)


def test_a_task_whose_data_is_not_on_disk_is_named(
    server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A task of the harness's own whose rows would have to be fetched is refused, and nothing is fetched."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="arc_easy: the data is not on disk"):
        harness.run(Client(server.url, "local"), ["arc_easy"], harness.find(["arc_easy"], None), 1, None)
