"""What a plan says of parameters and steps is what PEFT and the trainer do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper.models.spec import Shape
from temper.plan import estimate

SHAPE = Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocab=320, tied=False)
TARGETS = ["all", "q_proj,v_proj", "q_proj, k_proj, down_proj"]
RUNS: list[tuple[int, dict[str, Any]]] = [
    (10, {"per_device_train_batch_size": 4, "num_train_epochs": 3}),
    (10, {"per_device_train_batch_size": 4, "num_train_epochs": 3, "gradient_accumulation_steps": 2}),
    (10, {"num_train_epochs": 2.5}),
    (10, {"per_device_train_batch_size": 4, "max_steps": 7}),
    (1, {"per_device_train_batch_size": 4, "num_train_epochs": 1, "gradient_accumulation_steps": 8}),
    (97, {"per_device_train_batch_size": 2, "num_train_epochs": 4, "gradient_accumulation_steps": 8}),
]

# Runs in a child: the real PEFT on a model of SHAPE, and the real trainer on as many rows as each run has.
REAL = """
import json, sys, tempfile
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

targets, runs = json.loads(sys.argv[1])
config = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     intermediate_size=160, vocab_size=320)

def counted(target):
    wanted = "all-linear" if target == "all" else [name.strip() for name in target.split(",")]
    tuned = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=wanted, task_type="CAUSAL_LM"))
    return tuned.get_nb_trainable_parameters()

def steps(rows, arguments, out):
    arguments = TrainingArguments(output_dir=out, use_cpu=True, report_to="none", **arguments)
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=[{"input_ids": [1], "labels": [1]}] * rows)
    total = trainer.get_total_train_batch_size(arguments)
    return trainer.set_initial_training_values(arguments, trainer.get_train_dataloader(), total)[-1]

with tempfile.TemporaryDirectory() as out:
    print(json.dumps([[counted(target) for target in targets], [steps(*run, out) for run in runs]]))
"""


@pytest.fixture(scope="module")
def real() -> Any:
    """Return PEFT's counts for TARGETS and the trainer's steps for RUNS."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", REAL, json.dumps([TARGETS, RUNS])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_parameters_are_those_of_peft(real: Any) -> None:
    """A shape's parameters, and an adapter's for each target, are counted as PEFT and transformers count them."""
    for target, (trainable, everything) in zip(TARGETS, real[0], strict=True):
        assert estimate.trainable(SHAPE, {"lora_rank": 4, "lora_target": target}) == trainable
        assert SHAPE.parameters() == everything - trainable


def test_steps_are_those_of_the_trainer(real: Any) -> None:
    """Batches, accumulation, part epochs and max_steps give the steps that the trainer announces."""
    assert [estimate.steps(rows, train) for rows, train in RUNS] == real[1]


def test_max_samples_limits_the_rows() -> None:
    """Rows beyond max_samples are not trained on and take no steps."""
    assert estimate.steps(1000, {"per_device_train_batch_size": 4, "num_train_epochs": 3, "max_samples": 10}) == 9


def test_memory_grows_with_what_it_depends_on() -> None:
    """Longer rows, larger batches, float32 and checkpoints kept each need more memory, and 4 bits less."""

    def needed(longest: int = 256, **train: Any) -> float:
        return estimate.training_bytes(SHAPE, {"bf16": True, **train}, SHAPE.parameters(), longest, on_cpu=False)

    plain = needed()
    assert needed(longest=512) > plain
    assert needed(per_device_train_batch_size=16) > plain
    assert needed(disable_gradient_checkpointing=True) > plain
    assert needed(bf16=False) > plain
    assert needed(quantization_bit=4) < plain


def test_the_last_run_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Throughput measured once on this machine is what later estimates rest on; a damaged note is as good as none."""
    monkeypatch.setattr(estimate, "BUILD", tmp_path)
    assert estimate.measured("tiny") is None
    guess, basis = estimate.seconds(10_000, 10**8, "tiny", on_cpu=True, cores=2)
    assert "scaled from a measured" in basis and guess
    assert estimate.seconds(10_000, 10**8, "tiny", on_cpu=False, cores=2)[0] is None
    estimate.remember("tiny", 50)
    estimate.remember("other", 70)
    assert estimate.seconds(10_000, 10**8, "tiny", on_cpu=True, cores=2) == (
        estimate.START_S + 200,
        "50 tokens/s in the last run here",
    )
    next(tmp_path.rglob("throughput.json")).write_text("{half")
    assert estimate.measured("tiny") is None


def test_tokens_are_counted_without_a_tokenizer(tmp_path: Path) -> None:
    """Before the model is there a row's tokens are guessed from its bytes."""
    rows = [{"instruction": "x" * 300, "output": "y" * 300}, {"instruction": "问", "output": "答"}]
    long, short = estimate.token_counts(rows, tmp_path / "tokenizer.json")
    assert 150 < long < 250 and 0 < short < 10


def test_every_turn_of_a_conversation_is_counted(tmp_path: Path) -> None:
    """A row of several turns, as the data stage writes it, has the tokens of all that is said in it."""
    said = [{"role": role, "content": "x" * 300} for role in ("user", "assistant", "user", "assistant")]
    (count,) = estimate.token_counts([{"messages": said}], tmp_path / "tokenizer.json")
    assert 350 < count < 500
