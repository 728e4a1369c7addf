"""The merge gate accepts a right folder and refuses every kind of wrong one, naming what is wrong and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import tiny_models
from tiny_chat import END, TEMPLATE, Parts, edit, edit_tensor

from temper.errors import GateError
from temper.merge import checkpoint, conversations, gate, golden, logits, parity, served, weight_files, weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import envs

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
PATTERNS = {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 3}}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Make one base, adapter and merged folder; tests change copies only."""
    return tiny_chat.make(tmp_path_factory.mktemp("gate"))


@pytest.fixture
def copied(parts: Parts, tmp_path: Path) -> Parts:
    """Return the same with a merged folder of the test's own."""
    shutil.copytree(parts.merged, tmp_path / "merged")
    return Parts(parts.base, parts.adapter, tmp_path / "merged")


def _files(parts: Parts, tgi: bool = True) -> set[str]:
    """Return the names of the failed checks on files."""
    return {found["name"] for found in checkpoint.check(parts.base, parts.merged, END, tgi) if not found["ok"]}


def _prompts(parts: Parts, template: str = TEMPLATE, tgi: bool = True, **train_args: Any) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in parity.check(parts.base, parts.merged, template, train_args, tgi)}


# --- the whole gate


def test_a_right_folder_passes_with_one_line_per_check(copied: Parts) -> None:
    """A merged folder as the merge makes it passes; the report is JSON, equal each time, and golden.json is written."""
    said: list[str] = []
    extra = [[{"role": "user", "content": "运费谁承担？"}]]
    arguments = (copied.base, copied.adapter, copied.merged, TEMPLATE, END, {"lora_rank": 8, "cutoff_len": 64})
    report = gate.check(*arguments, max_new_tokens=6, prompts=extra, say=said.append)
    first = (copied.merged / "golden.json").read_bytes()
    assert report["ok"] and len(said) == len(report["checks"]) == 14
    assert all(found["ok"] and found["message"] for found in report["checks"])
    assert json.loads(json.dumps(report)) == report
    assert json.loads(first)["prompts"][-1]["messages"] == extra[0]
    assert gate.check(*arguments, max_new_tokens=6, prompts=extra, say=said.append) == report
    assert (copied.merged / "golden.json").read_bytes() == first


def test_every_failed_check_is_in_one_error(copied: Parts) -> None:
    """Three faults give one error with three named checks and their remedies, and no golden prompts."""
    edit(copied.merged, "config.json", lambda config: config.update(rope_theta=10000.0))
    edit(copied.merged, "tokenizer_config.json", lambda config: config.update(chat_template="{{ eos_token }}"))
    (copied.merged / "chat_template.jinja").unlink()
    edit_tensor(copied.merged, lambda tensors: tensors[Q].mul_(1.5))
    with pytest.raises(GateError) as caught:
        gate.check(copied.base, copied.adapter, copied.merged, TEMPLATE, END, {}, say=lambda line: None)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["rope", "prompt parity", "weights"]
    assert all("; " in line for line in lines[1:])
    assert not (copied.merged / "golden.json").exists()


def _command(parts: Parts) -> list[str]:
    return [
        f"--base={parts.base}",
        f"--adapter={parts.adapter}",
        f"--merged={parts.merged}",
        f"--template={TEMPLATE}",
        f"--end_token={END}",
        "--max_new_tokens=4",
    ]


def test_the_command_only_looks(copied: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints one line per check and returns 0; report and answers go where asked, not into the folder."""
    before = {path.name: path.read_bytes() for path in copied.merged.iterdir()}
    report, answers = tmp_path / "report.json", tmp_path / "answers.json"
    assert gate.run([*_command(copied), f"--report={report}", f"--golden={answers}"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == ["gate    "] * 14
    assert json.loads(report.read_text())["ok"] and len(json.loads(answers.read_text())["prompts"]) == 4
    assert {path.name: path.read_bytes() for path in copied.merged.iterdir()} == before


def test_a_failure_ends_the_command_with_8(copied: Parts) -> None:
    """A failed check is exit code 8, the error names it, and there is no traceback."""
    edit(copied.merged, "config.json", lambda config: config.update(rope_theta=10000.0))
    done = subprocess.run(
        [sys.executable, "-m", "temper.merge.gate", *_command(copied)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 8, done.stderr
    assert "error: " in done.stderr and "rope_theta is 1000000.0" in done.stderr and "Traceback" not in done.stderr
    assert sum(" FAILED " in line for line in done.stdout.splitlines()) == 1


# --- checkpoint parity


def _newer_rope(config: dict[str, Any]) -> None:
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}


CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], set[str]]] = {
    "rope base altered": (lambda c: c.update(rope_theta=10000.0), {"rope"}),
    "rope base in the form of version 5 only": (_newer_rope, {"rope"}),
    "rope bases that disagree": (lambda c: c.update(rope_parameters={"rope_theta": 5.0}), {"rope"}),
    "rope scaling added": (lambda c: c.update(rope_scaling={"rope_type": "linear", "factor": 2.0}), {"rope"}),
    "dtype in the newer key only": (lambda c: c.pop("torch_dtype"), {"dtype"}),
    "dtype of other weights": (lambda c: c.update(torch_dtype="float16", dtype="float16"), {"dtype"}),
    "vocabulary larger than the rows": (lambda c: c.update(vocab_size=321), {"vocabulary"}),
    "vocabulary smaller than the rows": (lambda c: c.update(vocab_size=319), {"vocabulary"}),
    "another number of heads": (lambda c: c.update(num_key_value_heads=4), {"config"}),
    "remote code": (lambda c: c.update(auto_map={"AutoModel": "model.Model"}), {"model type"}),
    "a model type 4.51 lacks": (lambda c: c.update(model_type="glm4"), {"config", "model type"}),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_config_the_server_reads_otherwise_fails(copied: Parts, fault: str) -> None:
    """Each fault in config.json fails its own check, and no other."""
    change, names = CONFIG_FAULTS[fault]
    assert _files(copied) == set()
    edit(copied.merged, "config.json", change)
    assert _files(copied) == names


TOKENIZER_FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], object], set[str]]] = {
    "eos token altered": ("tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"), {"eos"}),
    "eos token unknown": ("tokenizer_config.json", lambda c: c.update(eos_token="</s>"), {"eos"}),
    "eos id altered": ("generation_config.json", lambda c: c.update(eos_token_id=0), {"eos"}),
    "eos id outside": ("generation_config.json", lambda c: c.update(eos_token_id=[1, 999]), {"eos"}),
    "class of version 5": (
        "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="TokenizersBackend"),
        {"tokenizer class"},
    ),
    "no class": ("tokenizer_config.json", lambda c: c.pop("tokenizer_class"), {"tokenizer class"}),
    "special tokens as version 5 lists them": (
        "tokenizer_config.json",
        lambda c: c.update(extra_special_tokens=["<|im_start|>"]),
        {"tokenizer class"},
    ),
    "template in the file TGI does not read": (
        "tokenizer_config.json",
        lambda c: c.pop("chat_template"),
        {"chat template"},
    ),
    "two templates that differ": (
        "tokenizer_config.json",
        lambda c: c.update(chat_template=c["chat_template"] + " "),
        {"chat template"},
    ),
    "a token beyond the vocabulary": (
        "tokenizer.json",
        lambda c: c["added_tokens"].append({**c["added_tokens"][0], "id": 320, "content": "<|new|>"}),
        {"vocabulary"},
    ),
}


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
def test_a_tokenizer_the_server_reads_otherwise_fails(copied: Parts, fault: str) -> None:
    """Each fault in the tokenizer's files fails its own check, and no other."""
    name, change, names = TOKENIZER_FAULTS[fault]
    edit(copied.merged, name, change)
    assert _files(copied) == names


def test_tgi_ignores_a_single_eos_number(copied: Parts) -> None:
    """With one number in generation_config.json TGI stops at the tokenizer's eos_token: both must hold the end."""
    edit(copied.merged, "generation_config.json", lambda config: config.update(eos_token_id=1))
    assert served.eos_ids(copied.merged) == {1}
    edit(copied.merged, "tokenizer_config.json", lambda config: config.update(eos_token="<|endoftext|>"))
    assert served.eos_ids(copied.merged) == set()
    assert served.eos_ids(copied.merged, tgi=False) == {1}
    edit(copied.merged, "generation_config.json", lambda config: config.update(eos_token_id=[1, 0]))
    assert served.eos_ids(copied.merged) == {0, 1}


def test_other_servers_than_tgi_may_know_newer_models(copied: Parts) -> None:
    """With tgi: false a model type that transformers 4.51 lacks is no fault."""
    newer = Parts(copied.merged.parent / "base", copied.adapter, copied.merged)
    shutil.copytree(copied.base, newer.base)
    for folder in (newer.base, newer.merged):
        edit(folder, "config.json", lambda config: config.update(model_type="glm4", head_dim=16))
    assert _files(newer) == {"model type"}
    assert _files(newer, tgi=False) == set()


def _drop_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _index(folder: Path, name: str, file: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: file}}))


WEIGHT_FAULTS: dict[str, Callable[[Path], object]] = {
    "truncated": _drop_bytes,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a pickle": lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
    "an adapter left over": lambda folder: shutil.copy(
        folder / "model.safetensors", folder / "adapter_model.safetensors"
    ),
    "a name TGI skips": lambda folder: (folder / "model.safetensors").rename(folder / "training.safetensors"),
    "an index with a tensor that is not there": lambda folder: _index(folder, "ghost.weight", "model.safetensors"),
    "an index with a file that is not there": lambda folder: _index(folder, Q, "model-00002.safetensors"),
    "a tensor missing": lambda folder: edit_tensor(folder, lambda tensors: tensors.pop(Q)),
    "a tensor too many": lambda folder: edit_tensor(folder, lambda t: t.update({"extra.weight": t[NORM].clone()})),
    "a tensor of another shape": lambda folder: edit_tensor(folder, lambda t: t.update({Q: t[Q][:-1].clone()})),
    "a tensor of another dtype": lambda folder: edit_tensor(folder, lambda t: t.update({Q: t[Q].float()})),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_damaged_weight_files_fail(copied: Parts, fault: str) -> None:
    """Files that a server would skip, refuse or read as something else fail; tensors must be the base model's."""
    WEIGHT_FAULTS[fault](copied.merged)
    assert _files(copied) == {"weight files"}


SAVE = """
import json, sys
import torch, transformers
base, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model.save_pretrained(out)
transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)
print(json.dumps({"version": transformers.__version__, "theta": model.config.rope_parameters["rope_theta"]}))
"""


def test_a_folder_saved_by_transformers_5_fails(parts: Parts, tmp_path: Path) -> None:
    """What transformers 5.6.0's own save_pretrained writes is refused for each thing that 4.51 would misread."""
    said = envs.run("tf5", SAVE, parts.merged, tmp_path / "saved")
    assert said == {"version": "5.6.0", "theta": 1000000.0}
    assert {"rope", "dtype", "chat template"} <= _files(Parts(parts.base, parts.adapter, tmp_path / "saved"))


NAMES = """
import json, transformers
from transformers.models.auto import modeling_auto, tokenization_auto
classes = {name for pair in tokenization_auto.TOKENIZER_MAPPING_NAMES.values() for name in pair if name}
print(json.dumps({"version": transformers.__version__, "types": list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
                  "classes": [*classes, "PreTrainedTokenizerFast"]}))
"""


def test_the_list_of_what_transformers_4_51_knows_is_true() -> None:
    """Every listed model type and tokenizer class is in a real 4.51.3; GLM-4-0414 came after the 4.51.0 inside TGI."""
    real, listed = envs.run("tf451", NAMES), json.loads(checkpoint.KNOWN.read_text(encoding="utf-8"))
    assert real["version"] == "4.51.3"
    assert set(real["types"]) - set(listed["model_types"]) == {"glm4"}
    assert set(listed["model_types"]) <= set(real["types"])
    assert {"Qwen2TokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"} <= set(listed["tokenizer_classes"])
    assert "TokenizersBackend" not in real["classes"]


READ = """
import json, sys, transformers
folder = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(folder)
said = {"theta": config.rope_theta, "dtype": str(config.torch_dtype)}
try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said |= {"eos": tokenizer.eos_token, "tokenizer": type(tokenizer).__name__}
except Exception as error:
    said["refused"] = type(error).__name__
print(json.dumps(said))
"""


def test_what_the_gate_says_of_4_51_is_what_4_51_does(copied: Parts) -> None:
    """A real 4.51.3 reads the accepted folder right, and misreads or refuses what the gate fails."""
    right = {"theta": 1000000.0, "dtype": "torch.bfloat16", "eos": END, "tokenizer": "PreTrainedTokenizerFast"}
    assert envs.run("tf451", READ, copied.merged) == right
    edit(copied.merged, "config.json", lambda config: (_newer_rope(config), config.pop("torch_dtype")))
    edit(copied.merged, "tokenizer_config.json", lambda config: config.update(extra_special_tokens=["<|im_start|>"]))
    wrong = envs.run("tf451", READ, copied.merged)
    assert (wrong["theta"], wrong["dtype"], wrong["refused"]) == (10000.0, "None", "AttributeError")
    assert _files(copied) == {"rope", "dtype", "tokenizer class"}


# --- prompt parity


def _template(parts: Parts, text: str) -> None:
    parity.put_template(parts.merged, text)


def test_a_changed_template_shows_the_first_difference_and_the_remedy(copied: Parts) -> None:
    """One changed word is shown with its position and both sides' text; the remedy named then makes it pass."""
    right = served.chat_template(copied.merged)
    assert right and _prompts(copied)["prompt parity"]["ok"]
    _template(copied, right.replace("'assistant\\n'", "'assistant\\n\\n'").replace("assistant\n", "assistant:\n"))
    found = _prompts(copied)["prompt parity"]
    assert not found["ok"] and found["numbers"]["differ"] == len(conversations.CONVERSATIONS)
    assert "token " in found["message"] and "':\\n'" in found["message"]
    assert "merge.chat_template: trained" in found["remedy"]
    parity.write_trained_template(copied.merged, TEMPLATE)
    assert _prompts(copied)["prompt parity"]["ok"]
    assert _files(copied) == set()


def test_the_template_the_remedy_names_is_equal(copied: Parts) -> None:
    """Trained with a hidden default system prompt the server does not send: the named template has none and passes."""
    found = _prompts(copied, "smollm2")["prompt parity"]
    assert not found["ok"] and "trained on 'sys'" in found["message"]
    named = found["remedy"].split("set template: ")[1].split(" ")[0]
    assert named != "smollm2" and _prompts(copied, named)["prompt parity"]["ok"]
    parity.write_trained_template(copied.merged, "smollm2")
    assert _prompts(copied, "smollm2")["prompt parity"]["ok"]


@pytest.mark.parametrize("thinking", [True, False])
def test_a_hybrid_model_trained_without_thinking_is_prompted_so(copied: Parts, thinking: bool) -> None:
    """LLaMA Factory's enable_thinking changes the ids; the trained template makes the server send the same."""
    assert not _prompts(copied, "qwen3", enable_thinking=thinking)["prompt parity"]["ok"]
    parity.write_trained_template(copied.merged, "qwen3", {"enable_thinking": thinking})
    assert _prompts(copied, "qwen3", enable_thinking=thinking)["prompt parity"]["ok"]
    assert not _prompts(copied, "qwen3", enable_thinking=not thinking)["prompt parity"]["ok"]


def test_pieces_that_are_encoded_alone_keep_their_blank(copied: Parts) -> None:
    """LLaMA Factory encodes Llama 2's answers alone, which puts a blank first: the written template does so too."""
    tiny_chat.pieces(copied.merged, [one["content"] for each in conversations.CONVERSATIONS.values() for one in each])
    llama = Parts(copied.merged, copied.adapter, copied.merged)
    parity.put_template(llama.merged, parity.written(conversations.trainer(llama.base, "llama2", {}), ""))
    assert not _prompts(llama, "llama2")["prompt parity"]["ok"]
    parity.write_trained_template(llama.merged, "llama2")
    assert all(found["ok"] for found in _prompts(llama, "llama2").values())
    assert "' ' + content" in str(served.chat_template(llama.merged))


def test_default_system_counts_and_leaves_no_trace(copied: Parts) -> None:
    """The training run's default_system changes what is trained, for that run alone."""
    assert not _prompts(copied, default_system="You are Ada.")["prompt parity"]["ok"]
    assert _prompts(copied)["prompt parity"]["ok"]


def test_a_template_that_only_tgi_renders_otherwise_fails(copied: Parts) -> None:
    """TGI does not trim blocks: line ends after {% … %} reach its prompt, not transformers'."""
    text = served.chat_template(copied.merged)
    assert text
    _template(copied, text.replace("%}", "%}\n"))
    found = _prompts(copied)["prompt parity"]
    assert not found["ok"] and "TGI sends" in found["message"]
    assert _prompts(copied, tgi=False)["prompt parity"]["ok"]


def test_a_refused_system_prompt_is_a_fault_only_if_trained(copied: Parts) -> None:
    """A template without a system role answers with an error, which is not silent; it fails if all rows have one."""
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    _template(copied, refusal + str(served.chat_template(copied.merged)))
    assert _prompts(copied)["prompt parity"]["ok"]
    found = _prompts(copied, default_system="Be brief.")["prompt parity"]
    assert "no system role" in found["message"] or "also: system" in found["message"]


def test_an_answer_end_the_server_does_not_stop_at_fails(copied: Parts) -> None:
    """Training ends answers with <|im_end|>: a server that stops elsewhere would run on to the length limit."""
    assert _prompts(copied)["answer end"]["ok"]
    edit(copied.merged, "generation_config.json", lambda config: config.update(eos_token_id=[0]))
    found = _prompts(copied)["answer end"]
    assert not found["ok"] and END in found["message"] and "[0]" in found["message"]
    assert not _prompts(copied, "empty")["prompt parity"]["ok"]


def test_an_unknown_template_is_named(copied: Parts) -> None:
    """A template LLaMA Factory does not have is a failed check with a remedy, not a KeyError."""
    found = _prompts(copied, "nonsense")["prompt parity"]
    assert found["message"] == "LLaMA Factory has no template nonsense" and "template:" in found["remedy"]


# --- weight parity


def _tensors(parts: Parts) -> dict[str, Any]:
    return weights.check_tensors(parts.base, parts.adapter, parts.merged)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("settings", [{}, PATTERNS], ids=["lora", "rslora-patterns"])
def test_a_real_merge_is_within_rounding(tmp_path: Path, dtype: str, settings: dict[str, Any]) -> None:
    """The bound holds for the merge's own output in every dtype, and is not slack: bfloat16 comes near it."""
    found = _tensors(tiny_chat.make(tmp_path, dtype, **settings))
    assert found["ok"] and found["numbers"]["adapted"] == 14
    assert found["numbers"]["worst_of_bound"] > 0.5 or dtype != "bfloat16"


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an adapted tensor perturbed": (lambda t: t[Q][3, 5].add_(0.05), Q),
    "an adapted tensor scaled": (lambda t: t[Q].mul_(1.02), Q),
    "a tensor that is not adapted": (lambda t: t[NORM][7].add_(0.05), f"{NORM} is not adapted"),
    "NaN": (lambda t: t[Q][0, 0].fill_(float("nan")), f"{Q} holds NaN"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_one_wrong_element_is_noticed(copied: Parts, fault: str) -> None:
    """One element beyond rounding fails, and its tensor is named."""
    change, words = WRONG[fault]
    edit_tensor(copied.merged, change)
    found = _tensors(copied)
    assert not found["ok"] and words in found["message"]


def test_a_large_model_is_compared_by_rows(copied: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size limit rows of every tensor are compared, base + adapter is not loaded, and no tensor is missed."""
    monkeypatch.setattr(weights, "WHOLE_BYTES", 0)
    monkeypatch.setattr(weights, "SAMPLE_ROWS", 16)
    found = _tensors(copied)
    assert found["ok"] and found["numbers"]["rows"] == 16
    assert found["numbers"]["elements"] < weight_files.parameters(weight_files.tensors(copied.merged)) / 2
    folders = copied.base, copied.adapter, copied.merged
    report, answers = gate.examine(*folders, TEMPLATE, END, {}, 4, say=lambda line: None)
    assert report["ok"] and "logits" not in {found["name"] for found in report["checks"]}
    assert answers and answers["dtype"] == "bfloat16"
    from safetensors.torch import load_file

    before = load_file(copied.base / "model.safetensors")
    edit_tensor(copied.merged, lambda tensors: tensors.update({Q: before[Q]}))
    assert Q in _tensors(copied)["message"]


def test_a_zeroed_adapter_and_an_unmerged_base_are_noticed(copied: Parts, tmp_path: Path) -> None:
    """lora_B of zeros says the adapter was never trained; base weights under the name of merged ones say so too."""
    zero = tiny_models.adapter(tmp_path / "zero", copied.base, zero=True)
    shutil.copy(copied.base / "model.safetensors", copied.merged)
    assert "never trained" in weights.check_tensors(copied.base, zero, copied.merged)["message"]
    assert "are the base model's" in _tensors(copied)["message"]
    sequences = [[5, 9, 200, 31, 7, 66, 120, 44]] * 2
    mine = logits.compute(logits.load_model(copied.merged), sequences)
    assert "never trained" in logits.check(copied.base, zero, mine, sequences, "bfloat16")["message"]
    assert not logits.check(copied.base, copied.adapter, mine, sequences, "bfloat16")["ok"]


def test_logits_prove_what_is_more_than_lora(parts: Parts, tmp_path: Path) -> None:
    """A DoRA adapter is left to the logits: PEFT's own merge agrees with it, another adapter's merge does not."""
    dora = tiny_models.adapter(tmp_path / "dora", parts.base, use_dora=True)
    right = tiny_models.peft_merged(tmp_path / "right", parts.base, dora)
    assert weights.check_tensors(parts.base, dora, right)["numbers"] == {"way": "logits"}
    sequences = [[5, 9, 200, 31, 7, 66, 120, 44], [17, 230, 8, 90, 150, 33, 21, 310]]
    for folder, ok in ((right, True), (parts.merged, False)):
        mine = logits.compute(logits.load_model(folder), sequences)
        assert logits.check(parts.base, dora, mine, sequences, "bfloat16")["ok"] is ok


# --- golden prompts


def test_golden_answers_are_those_of_generate(parts: Parts) -> None:
    """Batched answers equal transformers' greedy generate, prompt by prompt; a margin is first minus second logit."""
    import torch

    model, tokenizer = logits.load_model(parts.merged), conversations.load_tokenizer(parts.merged)
    model.generation_config.repetition_penalty = 1.3  # TGI reads no penalty from generation_config.json
    prompts = [list(messages) for messages in golden.DEFAULT]
    found = golden.record(model, tokenizer, prompts, 12)
    assert found == golden.record(model, tokenizer, prompts, 12) and found["dtype"] == "float32"
    assert (
        golden.record(model, tokenizer, prompts[:1], 12)["prompts"][0]["completion_ids"]
        == found["prompts"][0]["completion_ids"]
    )
    for messages, answer in zip(prompts, found["prompts"], strict=True):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert answer["messages"] == messages and answer["prompt_ids"] == ids
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            do_sample=False,
            max_new_tokens=12,
            repetition_penalty=1.0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert answer["completion_ids"] == out.sequences[0, len(ids) :].tolist()
        tops = [scores[0].topk(2).values for scores in out.logits]
        assert answer["margins"] == pytest.approx([float(top[0] - top[1]) for top in tops], abs=2e-3)
        assert answer["text"] == tokenizer.decode(answer["completion_ids"], skip_special_tokens=True)


def test_a_golden_answer_ends_with_the_eos(parts: Parts) -> None:
    """An answer stops at the first eos, which is counted and not in the text; the others go on."""
    model, tokenizer = logits.load_model(parts.merged), conversations.load_tokenizer(parts.merged)
    prompts = [list(messages) for messages in golden.DEFAULT]
    free = golden.record(model, tokenizer, prompts, 10, eos=set())["prompts"]
    assert [len(answer["completion_ids"]) for answer in free] == [10] * 4
    stop = free[0]["completion_ids"][3]
    ended = golden.record(model, tokenizer, prompts, 10, eos={stop})["prompts"]
    for before, after in zip(free, ended, strict=True):
        ids = before["completion_ids"]
        assert after["completion_ids"] == (ids[: ids.index(stop) + 1] if stop in ids else ids)


def test_bfloat16_chooses_otherwise_only_near_ties(parts: Parts) -> None:
    """Computed in bfloat16, another token comes first only where the recorded margin is below near_tie."""
    import torch

    tokenizer = conversations.load_tokenizer(parts.merged)
    prompts = [list(messages) for messages in golden.DEFAULT]
    found = golden.record(logits.load_model(parts.merged), tokenizer, prompts, 48, eos=set())
    rounded, near = logits.load_model(parts.merged, "bfloat16"), found["near_tie"]["bfloat16"]
    others = []
    for answer in found["prompts"]:
        asked, chosen = answer["prompt_ids"], answer["completion_ids"]
        scores = logits.compute(rounded, [asked + chosen])[0, len(asked) - 1 : -1]
        own = scores[torch.arange(len(chosen)), torch.tensor(chosen)]
        lost = (scores.amax(-1) > own).tolist()
        others += [margin for margin, other in zip(answer["margins"], lost, strict=True) if other]
    assert others and max(others) < near < 1
