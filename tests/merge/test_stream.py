"""The streaming merge gives PEFT's bytes, refuses what it cannot merge, and stays small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from temper.errors import ModelError, UsageError
from temper.merge import stream

PATTERNS = {
    "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 2},
    "alpha_pattern": {"down_proj": 5, r"0\.self_attn\.\w+": 3},
}


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*"))}


def _same_as_peft(
    tmp_path: Path, base: Path, adapter: Path, dtype: str = "auto", shard: int = 5 * 10**9
) -> dict[str, Any]:
    outcome = stream.merge(base, adapter, tmp_path / "out", dtype, shard)
    cast = "" if dtype == "auto" else dtype
    expected = tiny_models.peft_merged(tmp_path / "peft", base, adapter, cast, f"{shard // 1000}KB")
    ours, theirs = _weights(tmp_path / "out"), _weights(expected)
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert theirs != _weights(base)
    return outcome


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one folder for the bases that several tests share."""
    return tmp_path_factory.mktemp("models")


def _base(models: Path, kind: str, tied: bool, dtype: str, shard: str = "5GB") -> Path:
    folder = models / f"{kind}-{tied}-{dtype}-{shard}"
    return folder if folder.exists() else tiny_models.base(folder, kind, tied, dtype, shard)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, PATTERNS, {**PATTERNS, "use_rslora": True}],
    ids=["lora", "rslora", "patterns", "rslora-patterns"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_are_pefts_files_byte_for_byte(
    models: Path, tmp_path: Path, dtype: str, settings: dict[str, Any]
) -> None:
    """Whatever the scaling and the dtype, the weight file is the one PEFT and save_pretrained write."""
    base = _base(models, "llama", False, dtype)
    outcome = _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base, **settings))
    assert outcome == {
        "dtype": dtype,
        "tensors": 21,
        "merged_tensors": 14,
        "shards": 1,
        "zero_adapter": False,
        "bytes": outcome["bytes"],
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_shards_are_cut_where_save_pretrained_cuts_them(models: Path, tmp_path: Path, kind: str, tied: bool) -> None:
    """From a sharded base, shards and their index are PEFT's byte for byte, tied output layer or not."""
    base = _base(models, kind, tied, "bfloat16", "30KB")
    outcome = _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base), shard=50_000)
    assert outcome["shards"] > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) is not tied


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_in_half_precision_merge_as_in_peft(models: Path, tmp_path: Path, dtype: str, stored: str) -> None:
    """An adapter saved in 16 bits is held in float32 while it is merged, as PEFT holds it."""
    base = _base(models, "qwen2", True, dtype)
    _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base, stored))


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_stored_in_by_out_merge_as_in_peft(
    models: Path, tmp_path: Path, dtype: str, targets: list[str]
) -> None:
    """GPT-2's weights are stored transposed (fan_in_fan_out), square ones too."""
    base = _base(models, "gpt2", True, dtype)
    adapter = tiny_models.adapter(tmp_path / "adapter", base, target_modules=targets, fan_in_fan_out=True)
    _same_as_peft(tmp_path, base, adapter)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
def test_fan_in_fan_out_on_plain_linear_layers_is_ignored_as_in_peft(models: Path, tmp_path: Path) -> None:
    """PEFT overrules fan_in_fan_out where a layer is stored the usual way; so do we."""
    base = _base(models, "llama", False, "float32")
    adapter = tiny_models.adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    _same_as_peft(tmp_path, base, adapter)


@pytest.mark.parametrize(
    ("inner", "outer"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "float16")]
)
def test_another_dtype_is_cast_to_after_merging(models: Path, tmp_path: Path, inner: str, outer: str) -> None:
    """The sum is made in the base's dtype and then cast, as llamafactory-cli export does with infer_dtype."""
    base = _base(models, "qwen2", False, inner)
    outcome = _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base), outer, 80_000)
    assert outcome["dtype"] == outer


def test_the_configs_dtype_wins_over_the_stored_one(models: Path, tmp_path: Path) -> None:
    """A base stored in float32 whose config says bfloat16 loads as bfloat16, and is merged so."""
    base = shutil.copytree(_base(models, "llama", False, "float32"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base))["dtype"] == "bfloat16"


def test_a_tied_output_layer_that_is_stored_is_left_out(models: Path, tmp_path: Path) -> None:
    """Some bases store a copy of tied embeddings; loading ignores it, and so does the merged model."""
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(_base(models, "qwen2", True, "float32"), tmp_path / "base")
    held = load_file(base / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, base / "model.safetensors", {"format": "pt"})
    _same_as_peft(tmp_path, base, tiny_models.adapter(tmp_path / "adapter", base))


def test_merging_twice_gives_the_same_bytes_over_what_was_there(models: Path, tmp_path: Path) -> None:
    """A second merge into the same folder replaces shards that were cut otherwise."""
    base = _base(models, "llama", False, "bfloat16")
    adapter = tiny_models.adapter(tmp_path / "adapter", base)
    stream.merge(base, adapter, tmp_path / "out", max_shard_bytes=50_000)
    many = _weights(tmp_path / "out")
    stream.merge(base, adapter, tmp_path / "out")
    assert list(_weights(tmp_path / "out")) == ["model.safetensors"]
    stream.merge(base, adapter, tmp_path / "out", max_shard_bytes=50_000)
    assert _weights(tmp_path / "out") == many


def test_progress_counts_every_byte(models: Path, tmp_path: Path) -> None:
    """Progress rises to the number of bytes of the whole model."""
    base, seen = _base(models, "llama", False, "bfloat16"), []
    adapter = tiny_models.adapter(tmp_path / "adapter", base)
    outcome = stream.merge(base, adapter, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (outcome["bytes"], outcome["bytes"])


def test_an_adapter_that_changes_nothing_is_noticed(models: Path, tmp_path: Path) -> None:
    """When every B is zero the merged model is the base, and the outcome says so."""
    base = _base(models, "llama", False, "float32")
    outcome = stream.merge(base, tiny_models.adapter(tmp_path / "adapter", base, zero=True), tmp_path / "out")
    assert outcome["zero_adapter"] is True
    assert _weights(tmp_path / "out") == _weights(base)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "whole modules trained"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"trainable_token_indices": [3, 4]}, "trained token embeddings"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, about tied layers and stored embeddings
def test_what_streaming_does_not_cover_is_named_and_not_merged(
    models: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    """An adapter that is more than LoRA on linear layers is refused with the reason, before anything is written."""
    base = _base(models, "qwen2", True, "float32")
    adapter = tiny_models.adapter(tmp_path / "adapter", base, **settings)
    assert reason in stream.covers(adapter, base)
    with pytest.raises(ModelError, match=reason):
        stream.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _broken(path: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path)


def _renamed(held: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("layers.1", "layers.7"): value for name, value in held.items()}


def _cut(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:, :-8].contiguous() if "q_proj.lora_A" in name else value for name, value in held.items()}


def _unpaired(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if "0.self_attn.q_proj.lora_B" not in name}


def _with(value: float) -> Any:
    def change(held: dict[str, Any]) -> dict[str, Any]:
        held[min(held)][0, 0] = value
        return held

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed, r"layers\.7\.\S+, which the base model does not have; merge it into the base it was trained on"),
        (_cut, r"q_proj have shapes .* the base's weight \[64, 64\]"),
        (_unpaired, r"only one LoRA factor of model\.layers\.0\.self_attn\.q_proj"),
        (_with(float("nan")), r"NaN or infinite values in \S+; train again"),
        (_with(float("inf")), r"NaN or infinite values in \S+; train again"),
    ],
    ids=["no-such-layer", "shape", "unpaired", "nan", "inf"],
)
def test_an_adapter_that_does_not_fit_or_is_broken_is_refused(
    models: Path, tmp_path: Path, change: Any, said: str
) -> None:
    """A factor that matches no weight, has another shape or no pair, or holds NaN, ends in one line with a remedy."""
    base = _base(models, "llama", False, "float32")
    adapter = tiny_models.adapter(tmp_path / "adapter", base)
    _broken(adapter / "adapter_model.safetensors", change)
    with pytest.raises(ModelError, match=said):
        stream.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bases_that_cannot_be_read_are_refused(models: Path, tmp_path: Path) -> None:
    """Pickle weights, a missing or truncated shard, and quantized weights are each named, with what to do."""
    whole = _base(models, "llama", False, "bfloat16", "30KB")
    adapter = tiny_models.adapter(tmp_path / "adapter", whole)

    def refused(name: str, said: str, change: Any) -> None:
        base = shutil.copytree(whole, tmp_path / name)
        change(base)
        with pytest.raises(ModelError, match=said):
            stream.merge(base, adapter, tmp_path / "out")

    def only_pickle(base: Path) -> None:
        for path in base.glob("model*"):
            path.unlink()
        (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")

    def truncated(base: Path) -> None:
        shard = min(base.glob("model-00002*"))
        shard.write_bytes(shard.read_bytes()[:-1])

    def quantized(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))

    refused("pickle", r"pickle weights only \(pytorch_model\.bin\).*; take a revision", only_pickle)
    refused("missing", r"model-00002\S+ is missing; fetch", lambda base: min(base.glob("model-00002*")).unlink())
    refused("truncated", r"has \d+ bytes, its header says \d+; delete it", truncated)
    refused("garbage", r"is not a safetensors file", lambda base: min(base.glob("model-00002*")).write_bytes(b"x" * 99))
    refused("quantized", r"is quantized.*; take the model's original", quantized)


def test_a_base_is_never_written_over(models: Path, tmp_path: Path) -> None:
    """Merging into the base's own folder is refused and leaves it as it was."""
    base = shutil.copytree(_base(models, "llama", False, "float32"), tmp_path / "base")
    before, adapter = _weights(base), tiny_models.adapter(tmp_path / "adapter", base)
    with pytest.raises(UsageError, match="own folder"):
        stream.merge(base, adapter, base)
    assert _weights(base) == before


def test_an_unknown_dtype_is_refused(models: Path, tmp_path: Path) -> None:
    """A dtype that does not exist is a usage error that lists those that do."""
    base = _base(models, "llama", False, "float32")
    with pytest.raises(UsageError, match="int3; choose auto, float32"):
        stream.merge(base, tiny_models.adapter(tmp_path / "adapter", base), tmp_path / "out", "int3")


def test_the_command_line_merges_and_fails_in_one_line(models: Path, tmp_path: Path) -> None:
    """`python -m temper.merge` says what it made; an adapter that does not fit is one line and exit code 5."""
    base = tiny_models.tokenizer(shutil.copytree(_base(models, "llama", False, "bfloat16"), tmp_path / "base"))
    adapter = tiny_models.adapter(tmp_path / "adapter", base)
    argv = [sys.executable, "-m", "temper.merge", f"--base={base}", f"--adapter={adapter}", f"--out={tmp_path / 'out'}"]
    env = {**os.environ, "PYTHONPATH": str(Path(stream.__file__).parents[2])}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "14 of 21 tensors changed, bfloat16" in done.stdout and "by streaming" in done.stdout
    _broken(adapter / "adapter_model.safetensors", _renamed)
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 5 and done.stdout == ""
    assert done.stderr.startswith("error: the adapter changes model.layers.7") and done.stderr.count("\n") == 1


def test_memory_is_that_of_a_few_tensors_not_of_a_model(tmp_path: Path) -> None:
    """Merging a model of 269 MB takes less than 60 MB above what importing PyTorch takes."""
    from bench import merge as bench

    bench.write_base(tmp_path / "base", bench.SMALL, 3)
    bench.write_adapter(tmp_path / "adapter", bench.SMALL)
    env = {**os.environ, "PYTHONPATH": str(Path(stream.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "temper.merge", f"--base={tmp_path / 'base'}", f"--adapter={tmp_path / 'adapter'}"]
    merging = bench.measured([*argv, f"--out={tmp_path / 'out'}"], env, tmp_path / "log")
    bare = bench.measured([sys.executable, "-c", "import torch"], env, tmp_path / "log")
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) > 260e6
    assert merging["peak"] - bare["peak"] < 60e6
