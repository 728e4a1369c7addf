"""The parts of the server by themselves: sampling, limits, templates, loading, golden comparison."""

from __future__ import annotations

import json
import queue
import shutil
from pathlib import Path
from typing import Any

import pytest
import serve_model
import torch
from transformers import AutoTokenizer
from transformers.generation import logits_process

from temper.errors import ServeError, UsageError
from temper.serve import chat_template, golden, load, sampling, validate
from temper.serve.bodies import Message
from temper.serve.engine import Engine, Step
from temper.serve.faults import Fault
from temper.serve.metrics import Metrics
from temper.serve.stream import Ending
from temper.serve.validate import Limits, Valid

IDS = [3, 3, 5, 9, 3]


def logits(seed: int = 0) -> torch.Tensor:
    """Return made-up scores for 200 tokens."""
    return torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 3


def wanted(**given: Any) -> Valid:
    """Return a request with these settings."""
    return Valid(IDS, 5, [], True, 7, **given)


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ({"temperature": 0.7}, logits_process.TemperatureLogitsWarper(0.7)),
        ({"top_k": 9}, logits_process.TopKLogitsWarper(9)),
        ({"top_p": 0.8}, logits_process.TopPLogitsWarper(0.8)),
        ({"typical_p": 0.6}, logits_process.TypicalLogitsWarper(0.6)),
        ({"repetition_penalty": 1.7}, logits_process.RepetitionPenaltyLogitsProcessor(1.7)),
    ],
)
def test_warping_equals_transformers(given: dict[str, Any], reference: Any) -> None:
    """Each knob gives the scores that transformers' own processor gives, which is what TGI copies."""
    for seed in range(20):
        asked = wanted(**given)
        mine = sampling._warp(sampling._penalise(logits(seed), IDS, asked), asked)
        assert torch.allclose(mine, reference(torch.tensor([IDS]), logits(seed)[None])[0], atol=1e-5)


def test_frequency_penalty_takes_a_tokens_share() -> None:
    """TGI subtracts penalty times count over length; tokens not used stay as they were."""
    change = logits() - sampling._penalise(logits(), IDS, wanted(frequency_penalty=1.5))
    expected = torch.zeros(200)
    expected[3], expected[5], expected[9] = 1.5 * 3 / 5, 1.5 / 5, 1.5 / 5
    assert torch.allclose(change, expected, atol=1e-6)


def test_draws_follow_the_probabilities_and_report_them() -> None:
    """Over many draws a token comes as often as its probability says, and its log probability is that one's."""
    choose, scores = sampling.Chooser(wanted()), torch.tensor([0.0, 1.0, 2.0])
    drawn = [choose([0], scores)[:2] for _ in range(4000)]
    for token, chance in enumerate(scores.softmax(-1).tolist()):
        share = sum(found == token for found, _ in drawn) / len(drawn)
        assert share == pytest.approx(chance, abs=0.03)
        assert all(
            logprob == pytest.approx(float(torch.tensor(chance).log()), abs=1e-5)
            for found, logprob in drawn
            if found == token
        )


@pytest.mark.parametrize(
    ("length", "asked", "longest", "total", "expected"),
    [
        (10, 20, 100, 200, 20),
        (10, None, 100, 200, 190),
        (10, 1500, 4000, 5000, 1500),
        (10, 5000, 4000, 5000, 4096),
        (10, 3000, 500, 5000, 1024),
        (10, None, 4999, 5000, 4990),
        (10, None, 2000, 5000, 2048),
    ],
)
def test_room_is_given_in_steps_of_1024(
    length: int, asked: int | None, longest: int, total: int, expected: int
) -> None:
    """As in TGI an answer goes on while another 1024 tokens have room, and never beyond what was asked for."""
    assert validate.token_limit(length, asked, Limits(longest, total)) == expected


def test_ending_prefers_length_then_eos_then_stop() -> None:
    """The three ends are tested in TGI's order; a stop sequence is plain text at the end of what was said."""
    assert Ending(1, frozenset({7}), ["a"]).push(7, "a") == "length"
    assert Ending(9, frozenset({7}), ["a"]).push(7, "a") == "eos_token"
    assert Ending(9, frozenset({7}), ["a"]).push(8, "a") == "stop_sequence"
    assert Ending(9, frozenset(), ["."]).push(8, "a") is None
    long = Ending(999, frozenset(), ["x" * 300])
    assert [long.push(1, "x" * 50) for _ in range(6)] == [None] * 5 + ["stop_sequence"]


def test_the_template_is_read_where_tgi_reads_it(folder: Path, tmp_path: Path) -> None:
    """chat_template.json wins over tokenizer_config.json; a folder with only chat_template.jinja has none."""
    tokenizer, hello = AutoTokenizer.from_pretrained(folder), [Message(role="user", content="a")]
    assert chat_template.read(folder) == serve_model.TEMPLATE
    (tmp_path / "chat_template.jinja").write_text(serve_model.TEMPLATE)
    assert chat_template.read(tmp_path) is None
    with pytest.raises(Fault) as missing:
        chat_template.render(tokenizer, chat_template.read(tmp_path), hello)
    assert (missing.value.status, missing.value.body()) == (
        422,
        {"error": "Template error: template not found", "error_type": "template_error"},
    )
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert chat_template.read(tmp_path) == "yes"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "first"}))
    assert chat_template.read(tmp_path) == "first"


def test_a_template_cannot_reach_beyond_its_inputs(folder: Path) -> None:
    """The folder's template is not trusted: reaching for Python objects is an error, not a result."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(Fault, match="Template error"):
        chat_template.render(
            tokenizer, "{{ messages.__class__.__mro__[1].__subclasses__() }}", [Message(role="user", content="a")]
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_dtype_equals_transformers_in_it(folder: Path, dtype: str) -> None:
    """Greedy tokens are those of transformers.generate in the same dtype."""
    limits = Limits(100, 200)
    engine = Engine(load.load(folder, dtype, 1), limits, 400, Metrics(limits))
    ids = engine.loaded.tokenizer("def add")["input_ids"]
    steps: queue.SimpleQueue[Step | Fault] = queue.SimpleQueue()
    engine.submit(Valid(ids, 30, [], False, 0), steps.put)
    expected, _ = serve_model.reference(folder, ids, 30, dtype)
    made = [steps.get(timeout=30) for _ in expected]
    engine.stop()
    assert [step.token.id for step in made if isinstance(step, Step)] == expected
    assert engine.loaded.dtype == dtype


def test_what_cannot_be_served_is_said_before_anything_is_loaded(folder: Path, tmp_path: Path) -> None:
    """Adapters, pickled weights, float16 and empty folders are refused with a remedy."""
    with pytest.raises(ServeError, match=r"no config\.json"):
        load.load(tmp_path, "auto", 1)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ServeError, match="no safetensors weights"):
        load.load(tmp_path, "auto", 1)
    shutil.copytree(folder, tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text("{}")
    with pytest.raises(ServeError, match="holds an adapter"):
        load.load(tmp_path / "both", "auto", 1)
    with pytest.raises(UsageError, match="use --dtype bfloat16 or --dtype float32"):
        load.load(folder, "float16", 1)
    assert load.chosen_dtype("auto", {"torch_dtype": "bfloat16"}) == "bfloat16"
    assert load.chosen_dtype("auto", {"dtype": "float16"}) == "float32"


def test_remote_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    """A folder that brings its own code is refused, and that code has not run."""
    brought = tmp_path / "brought"
    shutil.copytree(folder, brought)
    config = json.loads((brought / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (brought / "config.json").write_text(json.dumps(config))
    (brought / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ServeError, match="does not load"):
        load.load(brought, "auto", 1)
    assert not (tmp_path / "ran").exists()


def reply(text: str, pieces: list[str], prompt: int = 2) -> dict[str, Any]:
    """Return a chat answer."""
    return {
        "usage": {"prompt_tokens": prompt},
        "choices": [{"message": {"content": text}, "logprobs": {"content": [{"token": piece} for piece in pieces]}}],
    }


def test_golden_answers_may_differ_only_from_a_near_tie_on() -> None:
    """Equal text passes; a difference is forgiven only where the recorded gap was below 0.05, not before it."""
    prompt = {"prompt_ids": [1, 2], "text": "one two three", "margins": [3.0, 2.0, 0.04, 5.0]}
    assert not golden.difference(prompt, reply("one two three", ["one", " two", " three", ""]))
    assert not golden.difference(prompt, reply("one two four", ["one", " two", " four", ""]))
    early = golden.difference(prompt, reply("one 2 three", ["one", " 2", " three", ""]))
    assert early == 'expected "one two three", got "one 2 three" (from character 0)'
    assert golden.difference(prompt, reply("one", ["one"]))
    assert golden.difference(prompt, reply("one two four", ["one", " two", " four", ""]), near_tie=0.01)
    firm = {**prompt, "margins": [3.0, 2.0, 0.05, 5.0]}
    assert golden.difference(firm, reply("one two four", ["one", " two", " four", ""]))
    assert "expected 2 prompt tokens, got 3" in golden.difference(prompt, reply("one two three", [], prompt=3))


def test_golden_text_may_end_in_a_cut_character() -> None:
    """Servers show a character that the limit cut in their own ways; the text before it must agree."""
    prompt = {"prompt_ids": [1, 2], "text": "你好\ufffd", "margins": [3.0, 2.0, 2.0]}
    for shown in ("你好", "你好\ufffd", ""):
        assert not golden.difference(prompt, reply(shown, ["你", "好", ""]))
    assert golden.difference(prompt, reply("", ["你", "们", ""]))
