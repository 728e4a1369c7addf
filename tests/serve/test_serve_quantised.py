"""The engine for weights in 8 bits: it runs what transformers runs, as near as 8 bits are, and refuses the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
from serving import Running

from temper.errors import GateError, ServeError, UsageError
from temper.serve import gguf_file, golden, launcher, llama_cpp

IDS = [7 * at % 300 + 3 for at in range(90)]
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases, own head": ("llama", {"attention_bias": True, "tie_word_embeddings": False}),
    "llama 3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 5000.0}),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def logits(folder: Path, change: dict[str, Any] | None = None) -> Any:
    """Return what transformers makes of IDS in float32, [tokens, vocabulary], under a changed configuration."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **(change or {}))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


def apart(one: Any, other: Any) -> float:
    """Return the mean Kullback-Leibler divergence of two predictions, nats a token."""
    one, other = one.log_softmax(-1), other.log_softmax(-1)
    return float((one.exp() * (one - other)).sum(-1).mean())


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder with a model of random weights, large enough that every part of it counts."""
    import torch
    import transformers

    kind, more = MODELS[request.param]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **more})
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weights in made.named_parameters():
            weights.mul_(4) if weights.ndim == 2 else weights.add_(torch.randn_like(weights) * 0.3)
            assert weights.abs().max() > 0, name
    made.save_pretrained(tmp_path)
    return tmp_path


def test_it_predicts_what_transformers_predicts(model: Path) -> None:
    """Each kind of model gives transformers' logits, with an error that 8 bits explain; one detail changed does not."""
    run = llama_cpp.Quantised(llama_cpp.Model(model, 1), 2, 128)
    slot = run.start((), len(IDS))
    assert slot
    made = run.forward([(slot, IDS)], every=True)
    wanted = logits(model)
    near = apart(wanted, made)
    assert near < 0.01, near
    assert apart(wanted, logits(model, {"rope_theta": 100.0})) > 4 * near
    assert apart(wanted, logits(model, {"rms_norm_eps": 0.5})) > 4 * near


def test_requests_together_and_a_known_beginning_change_nothing(folder: Path) -> None:
    """Several slots at once, prompts in pieces and a beginning taken over give the logits of one plain pass."""
    import torch

    run, ids = llama_cpp.Quantised(llama_cpp.Model(folder, 1), 3, 600), [*IDS, *IDS, *IDS, *IDS]  # more than one piece
    first = run.start(ids, 500)
    assert first
    (alone,) = run.forward([(first, ids)])
    run.finish(first)
    again = run.start([*ids[:300], 5], 400)
    others = [run.start(prompt, 100) for prompt in (IDS, IDS[::-1])]
    assert again is first and again.length == 300 and all(others)
    assert run.start(IDS, 100) is None
    parts = [(again, ids[300:]), *zip(others, (IDS, IDS[::-1]), strict=True)]
    together = run.forward(parts)  # type: ignore[arg-type]
    assert apart(alone, together[0]) < 1e-3
    every = run.forward([(others[0], IDS[:20])], every=True)  # type: ignore[list-item]
    assert every.shape[0] == 20 and torch.isfinite(every).all()


def test_a_failed_pass_leaves_nothing_behind(folder: Path) -> None:
    """What llama.cpp refuses is an error of that request; its slot takes nothing over afterwards."""
    run = llama_cpp.Quantised(llama_cpp.Model(folder, 1), 1, 300)
    slot = run.start(IDS, 200)
    assert slot
    (before,) = run.forward([(slot, IDS)])
    with pytest.raises(RuntimeError, match="llama_decode"):
        run.forward([(slot, [999])])
    run.finish(slot)
    slot = run.start(IDS, 200)
    assert slot and slot.length == 0
    assert apart(before, run.forward([(slot, IDS)])[0]) < 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma3_text"}, "model type gemma3_text"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type yarn"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope type dynamic"),
        ({"sliding_window": 4096}, "a sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "a sliding window"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"partial_rotary_factor": 0.5}, "a rotary embedding for a part"),
        ({"intermediate_size": 100}, "no multiple of 32"),
    ],
)
def test_what_would_come_out_wrong_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """A model that llama.cpp would run otherwise is named with the reason, before anything is written."""
    known = json.loads((folder / "config.json").read_text())
    assert gguf_file.unfit(known) == ""
    (tmp_path / "config.json").write_text(json.dumps({**known, **change}))
    with pytest.raises(ServeError, match=said):
        llama_cpp.Model(tmp_path, 1)


def test_the_server_answers_by_heart_and_in_full(own: Callable[..., Running], folder: Path) -> None:
    """Over HTTP: the answers, golden prompts, details, grammars and the token outside; memory for two together."""
    url = own("--quantize", "q8_0", "--max-total-tokens", "400", "--max-batch-total-tokens", "800").url
    recorded = serve_model.golden(folder)
    assert golden.replay(url, recorded, dtype="q8_0") == (3, 3)
    asked = {"inputs": "def add", "parameters": {"max_new_tokens": 4, "details": True, "decoder_input_details": True}}
    details = httpx.post(f"{url}/generate", json=asked).json()["details"]
    assert details["generated_tokens"] == 4 and len(details["prefill"]) > 2
    assert all(token["logprob"] < 0 for token in [*details["prefill"][1:], *details["tokens"]])
    ruled = {"grammar": {"type": "regex", "value": "[0-9]{3}"}, "max_new_tokens": 20}
    answer = httpx.post(f"{url}/generate", json={"inputs": "a", "parameters": ruled}).json()["generated_text"]
    assert len(answer) == 3 and answer.isdigit()
    broken = httpx.post(f"{url}/generate", json={"inputs": serve_model.OUTSIDE, "parameters": {"max_new_tokens": 2}})
    assert (broken.status_code, broken.json()["error_type"]) == (424, "generation")
    assert golden.replay(url, recorded, dtype="q8_0") == (3, 3)


def test_the_gate_is_wider_for_eight_bits_and_still_a_gate(server: Running, folder: Path) -> None:
    """An answer may turn at a margin that 8 bits can move, and at no wider one."""
    recorded = {**serve_model.golden(folder), "near_tie": {"bfloat16": 0.1}}
    prompt = recorded["prompts"][0]
    prompt["text"] = prompt["text"][:10] + "X" + prompt["text"][11:]
    for margin, dtype, fits in ((0.2, "q8_0", True), (0.2, "bfloat16", False), (0.3, "q8_0", False)):
        prompt["margins"] = [margin, *[9.0] * 20]
        if fits:
            assert (
                str(golden.replay(server.url, recorded, dtype=dtype))
                == "3 golden prompts agree, 2 of them word for word"
            )
        else:
            with pytest.raises(GateError, match="golden prompt 1"):
                golden.replay(server.url, recorded, dtype=dtype)


def test_the_option() -> None:
    """Ours counts, TGI's kinds are passed over with a word, a dtype beside it or an unknown kind is refused."""
    model = ["--model-id", "m"]
    assert launcher.read([*model, "--quantize", "q8_0"]).quantize == "q8_0"
    given = launcher.read([*model, "--quantize", "awq", "--dtype", "bfloat16"])
    assert given.quantize is None and "--quantize awq is for a GPU" in given.warnings[0]
    with pytest.raises(UsageError, match="exclude each other"):
        launcher.read([*model, "--quantize", "q8_0", "--dtype", "float32"])
    with pytest.raises(UsageError, match="'q9' is not q8_0, nor one of TGI's kinds"):
        launcher.read([*model, "--quantize", "q9"])
