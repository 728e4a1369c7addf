"""A merged folder means the same in transformers 4.51.3, 4.57.6 and 5.6.0: each loads it, in a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tests import envs

from temper.errors import ModelError
from temper.merge import make, normalise

LIBRARIES = {"tf451": "4.51.3", "": "4.57.6", "tf5": "5.6.0"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {"dtype": "float32", "rope_scaling": LLAMA3},
    "qwen2": {"dtype": "bfloat16", "tied": True},
    "qwen3": {"dtype": "bfloat16", "head_dim": 32},
    "llama2": {"kind": "llama", "dtype": "bfloat16"},
    "codellama": {"kind": "llama", "dtype": "float16"},
}
TOKENIZERS = {
    "llama": "PreTrainedTokenizerFast",
    "qwen2": "Qwen2TokenizerFast",
    "qwen3": "Qwen2TokenizerFast",
    "llama2": "LlamaTokenizerFast",
    "codellama": "CodeLlamaTokenizerFast",
}
END = {"llama2": "</s>", "codellama": "</s>"}  # of the others' templates: <|im_end|>
# 5.6.0 saves CodeLlama's tokenizer with other leading spaces than it had, which nothing later can know.
MERGED = [(kind, base) for kind in BASES for base in ("", "-new") if (kind, base) != ("codellama", "-new")]

# Load each folder as a server does, and say what was understood: what the library computes with, not what files say.
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

def read(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    prompt = torch.tensor([[(7 * at) % 250 + 3 for at in range(100)]])
    every = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=every, max_new_tokens=24, do_sample=False, pad_token_id=0)
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    said = {"dtype": str(model.dtype), "frequencies": model.model.rotary_emb.inv_freq.tolist(),
            "greedy": model(prompt).logits.argmax(-1).tolist() + out[0, 100:].tolist(),
            "eos": model.generation_config.eos_token_id, "config_eos": model.config.eos_token_id,
            "bos": model.config.bos_token_id, "tied": head.data_ptr() == embedding.data_ptr()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        return {**said, "tokenizer": f"{type(error).__name__}: {error}"}
    chat = [{"role": "user", "content": "how long is the return window?"},
            {"role": "assistant", "content": "退货期限是多久"},
            {"role": "user", "content": "def add(a, b): return a + b"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {**said, "template": text, "ids": ids, "tokenizer_eos": tokenizer.eos_token_id,
            "decoded": tokenizer.decode(ids, skip_special_tokens=True)}

print(json.dumps([transformers.__version__, {folder: read(folder) for folder in sys.argv[1:]}]))
"""

SAVE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

for old, new in zip(sys.argv[1::2], sys.argv[2::2]):
    AutoModelForCausalLM.from_pretrained(old, dtype="auto").save_pretrained(new)
    AutoTokenizer.from_pretrained(old).save_pretrained(new)
print("null")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make, for each kind: bases written by 4.57.6 and by 5.6.0 (-new), both merged, and the latter only normalised."""
    root = tmp_path_factory.mktemp("seam")
    for kind, settings in BASES.items():
        tiny_models.base(root / kind, **{"kind": kind, **settings})
        tiny_models.tokenizer(root / kind, TOKENIZERS[kind])
        tiny_models.adapter(root / f"{kind}-adapter", root / kind, target_modules=["q_proj", "v_proj", "up_proj"])
    envs.run("tf5", SAVE, *(path for kind in BASES for path in (root / kind, root / f"{kind}-new")))
    for kind in BASES:
        for base in (kind, f"{kind}-new"):
            make(root / base, root / f"{kind}-adapter", root / f"{base}-merged", end_token=END.get(kind, "<|im_end|>"))
        out = root / f"{kind}-new-normalised"
        out.mkdir()
        shutil.copy(root / f"{kind}-new/model.safetensors", out)
        normalise.normalise(root / f"{kind}-new", out)
    return root


@pytest.fixture(scope="module")
def understood(root: Path) -> dict[str, dict[str, Any]]:
    """Return what each library understands of each folder: {version: {folder's name: …}}."""
    folders = sorted(path for path in root.iterdir() if not path.name.endswith("-adapter"))
    found = {}
    for library, version in LIBRARIES.items():
        said, read = envs.run(library, READ, *folders)
        assert said == version
        found[version] = {Path(folder).name: what for folder, what in read.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "written_by"), MERGED)
def test_a_merged_folder_reads_the_same_in_all_three_libraries(
    understood: dict[str, Any], root: Path, kind: str, written_by: str
) -> None:
    """Whichever library wrote the base: the same greedy tokens, rotary frequencies, dtype, template, ids and ends."""
    four, middle, five = (understood[version][f"{kind}{written_by}-merged"] for version in LIBRARIES.values())
    assert four == middle == five
    base = understood["4.57.6"][kind]
    for key in ("frequencies", "dtype", "template", "ids", "bos", "tied", "decoded"):
        assert four[key] == base[key], key
    assert four["eos"] == four["config_eos"] == [2, 1]
    assert four["greedy"] != base["greedy"]  # the adapter did something


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, base in MERGED if base])
def test_the_bases_writer_makes_no_difference(understood: dict[str, Any], root: Path, kind: str) -> None:
    """From the base as 4.57 and as 5.6 wrote it comes the same model, weights byte for byte."""
    one, other = (understood["4.51.3"][f"{name}-merged"] for name in (kind, f"{kind}-new"))
    assert one == other
    one, other = (root / f"{name}-merged/model.safetensors" for name in (kind, f"{kind}-new"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_without_normalising_4_51_misreads_what_5_6_saves(understood: dict[str, Any], root: Path, kind: str) -> None:
    """The failure is real: another rotary base, so other tokens, and no tokenizer; normalised, it is gone."""
    right, wrong = (understood[version][f"{kind}-new"] for version in ("5.6.0", "4.51.3"))
    assert wrong["frequencies"] != right["frequencies"] and wrong["greedy"] != right["greedy"]
    assert wrong["frequencies"][1] == pytest.approx(10_000 ** (-1 / len(wrong["frequencies"])))
    # A class 4.51 does not have, or extra_special_tokens as a list, which 4.51 takes for a mapping.
    assert ("TokenizersBackend does not exist" if kind == "llama" else "'list' object has no") in wrong["tokenizer"]
    assert understood["4.51.3"][f"{kind}-new-normalised"] == right


def _written(root: Path, tmp_path: Path, kind: str, **given: Any) -> dict[str, Any]:
    out = shutil.copytree(root / f"{kind}-merged", tmp_path / "out", dirs_exist_ok=True)
    normalise.normalise(root / kind, out, **given)
    return {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_files_hold_both_forms_and_nothing_of_this_machine(root: Path, tmp_path: Path) -> None:
    """Rope and dtype are there under both names; paths, remote code and leftovers of quantization are not."""
    base = shutil.copytree(root / "llama-new", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    leftovers = {"_name_or_path": "/home/ann/base", "auto_map": {"AutoModel": "code.Model"}, "quantization_config": {}}
    (base / "config.json").write_text(json.dumps({**config, **leftovers}))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    leftovers = {"name_or_path": "/home/ann", "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **leftovers}))
    for name in ("code.py", "training_args.bin", "adapter_config.json", "adapter_model.safetensors", "README.md"):
        (base / name).write_text("x")
    out = shutil.copytree(root / "llama-merged", tmp_path / "out")
    normalise.normalise(base, out)
    files = {path.name: path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"}
    assert sorted(files) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not any("/home/ann" in text or "auto_map" in text or "quantization" in text for text in files.values())
    made = json.loads(files["config.json"])
    assert (made["rope_theta"], made["torch_dtype"], made["dtype"]) == (1_000_000.0, "float32", "float32")
    assert made["rope_parameters"]["rope_theta"] == 1_000_000.0 and made["rope_scaling"] == LLAMA3
    template = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert template == files["chat_template.jinja"] == tiny_models.TEMPLATE


def test_writing_twice_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Nothing written depends on when or where it was written."""
    out = shutil.copytree(root / "qwen2-new-merged", tmp_path / "elsewhere" / "out")
    normalise.normalise(root / "qwen2-new", out, "<|im_end|>")
    for path in out.iterdir():
        assert path.read_bytes() == (root / "qwen2-new-merged" / path.name).read_bytes(), path.name


def test_the_end_token_is_added_to_what_the_base_stops_at(root: Path, tmp_path: Path) -> None:
    """The template's end of turn comes first, the base's own ends stay; without one nothing changes."""
    assert _written(root, tmp_path, "qwen2", end_token="<|im_end|>")["generation_config.json"]["eos_token_id"] == [2, 1]
    assert _written(root, tmp_path, "qwen2", end_token="<|im_start|>")["config.json"]["eos_token_id"] == 1
    assert _written(root, tmp_path, "qwen2")["config.json"]["eos_token_id"] == 1


def test_an_unknown_end_token_is_refused(root: Path, tmp_path: Path) -> None:
    """A token that the tokenizer does not have cannot end a turn."""
    with pytest.raises(ModelError, match=r"no token <\|eot_id\|>"):
        _written(root, tmp_path, "qwen2", end_token="<|eot_id|>")


def test_another_chat_template_replaces_the_bases(root: Path, tmp_path: Path) -> None:
    """A template given by the caller is written in both places."""
    files = _written(root, tmp_path, "qwen2", chat_template="{{ messages }}")
    assert files["tokenizer_config.json"]["chat_template"] == "{{ messages }}"
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_a_tokenizer_without_tokenizer_json_gets_one(root: Path, tmp_path: Path) -> None:
    """TGI's router needs tokenizer.json; from vocab.json and merges.txt it is made, and gives the same ids."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    base = shutil.copytree(root / "qwen2", tmp_path / "base")
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    (base / "vocab.json").write_text(json.dumps(model["vocab"]))
    (base / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (base / "tokenizer.json").unlink()
    out = shutil.copytree(root / "qwen2-merged", tmp_path / "out")
    normalise.normalise(base, out, "<|im_end|>")
    text = "<|im_start|>user\nhow long? 退货期限<|im_end|>"
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert made.encode(text).ids == AutoTokenizer.from_pretrained(root / "qwen2")(text)["input_ids"]


def test_a_rotary_base_left_to_the_library_is_written_out(root: Path, tmp_path: Path) -> None:
    """A config without rope_theta, as Llama 2's was, gets the value its class takes."""
    base = shutil.copytree(root / "llama2", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["rope_theta"]
    (base / "config.json").write_text(json.dumps(config))
    out = shutil.copytree(root / "llama2-merged", tmp_path / "out")
    normalise.normalise(base, out)
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 10000.0


def test_rotary_bases_by_layer_that_4_has_no_words_for_are_refused(root: Path, tmp_path: Path) -> None:
    """One rotary embedding per kind of layer, in transformers 5's form only, cannot be written for 4."""
    base = shutil.copytree(root / "llama-new", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    nested = {"full_attention": config["rope_parameters"], "sliding_attention": {"rope_theta": 10000.0}}
    (base / "config.json").write_text(json.dumps({**config, "rope_parameters": nested}))
    with pytest.raises(ModelError, match=r"per kind of layer.*; take the model's revision"):
        normalise.normalise(base, shutil.copytree(root / "llama-merged", tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT says so of untied models too
def test_dora_and_a_trained_output_layer_are_exported_by_llama_factory(root: Path, tmp_path: Path) -> None:
    """What streaming does not cover goes through llamafactory-cli export by itself: PEFT's weights, our files."""
    base, targets = root / "qwen3", ["q_proj", "v_proj"]
    adapter = tiny_models.adapter(
        tmp_path / "adapter", base, use_dora=True, modules_to_save=["lm_head"], target_modules=targets
    )
    result = make(base, adapter, tmp_path / "out", template="qwen", end_token="<|im_end|>")
    assert (result["how"], result["why"], result["dtype"]) == ("export", "it has DoRA", "bfloat16")
    expected = tiny_models.peft_merged(tmp_path / "peft", base, adapter)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    merged = {path.name for path in (root / "qwen3-merged").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == merged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out", "peft"]
    for name in merged - {"model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (root / "qwen3-merged" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_with_new_tokens_brings_its_vocabulary(root: Path, tmp_path: Path) -> None:
    """Tokens added in training are in the merged tokenizer, and the configuration has as many rows as the weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(root / "qwen3", dtype="auto")
    model.resize_token_embeddings(384, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    added = {"resize_vocab": True, "add_tokens": ",".join(f"<new{at}>" for at in range(70))}
    result = make(root / "qwen3", tmp_path / "adapter", tmp_path / "out", template="qwen", arguments=added)
    assert result["merged_tensors"] == 4  # q_proj of two layers, embeddings, output layer
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.get_input_embeddings().weight.shape[0] == merged.config.vocab_size == 384
    assert "<new69>" in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


def test_what_needs_an_export_says_so_when_no_template_is_named(root: Path, tmp_path: Path) -> None:
    """llamafactory-cli export cannot run without a template; the error names the reason and the option."""
    adapter = tiny_models.adapter(tmp_path / "adapter", root / "qwen2", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"DoRA.*--template"):
        make(root / "qwen2", adapter, tmp_path / "out")
