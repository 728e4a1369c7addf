"""Which value wins: Temper's default, the scenario, the profile, MODEL, SET; and where each came from."""

from __future__ import annotations

from typing import Any

import pytest
from config_site import SCENARIO, Site, leaves

from temper.config import cached, resolve
from temper.errors import ConfigError


def test_each_layer_wins_over_the_one_before(site: Site) -> None:
    """Default, scenario, profile, the profile's word on this scenario, SET: the later one holds."""
    site.write(
        "profiles",
        "small",
        "# small\ntrain: {lora_rank: 3, lora_alpha: 3, seed: 3}\n"
        "scenarios:\n  mine: {train: {lora_alpha: 4, seed: 4}}\n  other: {train: {seed: 9}}\n",
    )
    more = "train: {lora_rank: 2, lora_alpha: 2, seed: 2, warmup_ratio: 0.2}\n"
    train = site.mine(more, profile="small", overrides="train.seed=5")["train"]
    assert (train["warmup_ratio"], train["lora_rank"], train["lora_alpha"], train["seed"]) == (0.2, 3, 4, 5)
    assert train["cutoff_len"] == resolve.TRAIN_DEFAULTS["cutoff_len"]


def test_the_origin_of_every_value_is_kept(site: Site) -> None:
    """Every key that any layer gave names the file or variable that its value came from."""
    site.write("profiles", "small", "# small\nserve: {port: 8001}\ntrain: {seed: 3}\n")
    config = site.mine(
        "train: {seed: 2, warmup_ratio: 0.2}\nserve: {port: 8002}\n",
        profile="small",
        model="qwen2.5-0.5b",
        overrides="serve.host=0.0.0.0",
    )
    mine, small = "configs/scenarios/mine.yaml", "configs/profiles/small.yaml"
    expected = {"model": "MODEL", "data.path": mine, "train.warmup_ratio": mine, "train.seed": small,
                "serve.port": small, "serve.host": "SET", "train.cutoff_len": "Temper's default"}  # fmt: skip
    assert {key: config["origins"][key] for key in expected} == expected
    given = {f"train.{key}" for key in config["train"]} | {"serve.port", "serve.host", "model", "data.path"}
    assert given <= set(config["origins"])
    assert set(config["origins"]) <= {*leaves({key: config[key] for key in resolve.SECTIONS}), "model"}


def test_model_wins_over_scenario_and_profile(site: Site) -> None:
    """MODEL replaces the base model of the scenario and of the profile, and its file becomes an input."""
    assert site.mine()["model"]["name"] == "smollm2-135m"
    config = site.mine(model="qwen2.5-0.5b")
    assert config["model"]["name"] == "qwen2.5-0.5b"
    assert config["model"]["template"] == "qwen"
    assert config["files"][-1] == "configs/models/qwen2.5-0.5b.yaml"


def test_a_profile_can_name_a_model_for_one_scenario(site: Site) -> None:
    """What a profile says about one scenario holds over what it says about all, the model too."""
    site.write("profiles", "small", "# small\nmodel: smollm2-135m\nscenarios: {mine: {model: qwen2.5-0.5b}}\n")
    assert site.mine(profile="small")["model"]["name"] == "qwen2.5-0.5b"


@pytest.mark.parametrize("empty", ["train:\n", "train: {}\n", "train:\n  # lora_rank: 4\nserve:\nask:\n"])
def test_a_section_with_every_key_commented_out_keeps_the_defaults(site: Site, empty: str) -> None:
    """An empty section is as good as none; Temper's defaults stay."""
    config = site.mine(empty, profile="gpu-24g")
    assert {**resolve.TRAIN_DEFAULTS, **config["train"]} == config["train"]
    assert config["serve"]["port"] == 8000


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("train.lora_rank=16 train.learning_rate=2e-4", {"train.lora_rank": 16, "train.learning_rate": "2e-4"}),
        ("  train.bf16=true\tserve.port=8001 ", {"train.bf16": True, "serve.port": 8001}),
        ("train.quantization_bit=null", {"train.quantization_bit": None}),
        ("train.quantization_bit=", {"train.quantization_bit": None}),
        ("data.system='You are the help desk'", {"data.system": "You are the help desk"}),
        ('data.system="You are 小砚"', {"data.system": "You are 小砚"}),
        ("data.system='a = b'", {"data.system": "a = b"}),
        ("ask.show=[one,two]", {"ask.show": ["one", "two"]}),
        ("ask.show='[\"How long?\", 多久？]'", {"ask.show": ["How long?", "多久？"]}),
        ("data.columns='{instruction: q, output: a}'", {"data.columns": {"instruction": "q", "output": "a"}}),
        ("data.path=/rows/my.csv", {"data.path": "/rows/my.csv"}),
        ("data.path='[my rows.csv, more]'", {"data.path": ["my rows.csv", "more"]}),
        ("data.skip=[tokens,near]", {"data.skip": ["tokens", "near"]}),
    ],
)
def test_set_reads_words_as_a_shell_and_values_as_yaml(text: str, values: dict[str, Any]) -> None:
    """Numbers, truth values, null, lists, mappings and quoted blanks in SET come out as they were meant."""
    assert resolve.parse_overrides(text) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lora_rank", "SET: 'train.lora_rank' is not key=value; write for example SET='train.lora_rank=16'"),
        ("=16", "SET: '=16' is not key=value; "),
        ("train.lora_rank = 16", "SET: 'train.lora_rank' is not key=value; "),
        ("data.system='open", "SET: data.system='open: no closing quotation; close the quote"),
        ("ask.show=[one", "SET: ask.show: '[one' is not a YAML value; put it in quotes"),
        ("data.system=@me", "SET: data.system: '@me' is not a YAML value; put it in quotes"),
    ],
)
def test_a_set_of_the_wrong_form_is_one_line(text: str, said: str) -> None:
    """What cannot be read as key=value is refused in one line that shows it and says how to write it."""
    with pytest.raises(ConfigError) as refused:
        resolve.parse_overrides(text)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_a_mapping_in_set_overlays_and_does_not_replace(site: Site) -> None:
    """SET with a mapping changes the keys it names; the section's other keys stay."""
    config = site.mine("train: {lora_rank: 2, seed: 2}\n", profile="gpu-24g", overrides="train='{seed: 7}'")
    assert (config["train"]["lora_rank"], config["train"]["seed"]) == (2, 7)
    assert config["origins"]["train.seed"] == "SET"


def test_null_takes_a_key_away_again(site: Site) -> None:
    """A profile or SET can undo a scenario's key with null; LLaMA Factory then gets no such argument."""
    from pathlib import Path

    from temper.train import settings

    config = site.mine("train: {lora_dropout: 0.5}\n", profile="gpu-24g", overrides="train.lora_dropout=null")
    arguments = settings.resolved(config, Path("base"), Path("data"), Path("out"))
    assert "lora_dropout" not in arguments
    assert arguments["model_name_or_path"] == "base"


def test_the_kept_configuration_is_read_again_only_while_true(site: Site) -> None:
    """A resolved configuration is reused as long as its files stand, and not once one of them has changed."""
    site.write("scenarios", "mine", SCENARIO)
    state = site.root / "state"
    first = cached.resolved(state, "mine", "cpu", "", "")
    assert cached.resolved(state, "mine", "cpu", "", "") == first
    assert cached.resolved(state, "mine", "cpu", "", "train.seed=7")["train"]["seed"] == 7
    site.write("scenarios", "mine", SCENARIO + "train: {seed: 9}\n")
    assert cached.resolved(state, "mine", "cpu", "", "")["train"]["seed"] == 9
    (site.root / "configs/profiles/cpu.yaml").write_text("# slow\ntrain: {seed: 11}\n", encoding="utf-8")
    assert cached.resolved(state, "mine", "cpu", "", "")["train"]["seed"] == 11
    (state / "resolved.json").write_text("{half a fi", encoding="utf-8")
    assert cached.resolved(state, "mine", "cpu", "", "")["train"]["seed"] == 11
    (site.root / "rows.csv").unlink()
    with pytest.raises(ConfigError, match=r"data\.path: rows\.csv: no such file or folder"):
        cached.resolved(state, "mine", "cpu", "", "")


@pytest.mark.parametrize("key", ["path", "eval_path"])
def test_the_kept_configuration_knows_every_path_of_rows(site: Site, key: str) -> None:
    """A kept configuration is not reused once any file or folder of rows that it lists has gone."""
    site.write("scenarios", "mine", SCENARIO)
    (site.root / "more").mkdir()
    asked = (site.root / "state", "mine", "cpu", "", f"data.{key}='[rows.csv, more]'")
    assert cached.resolved(*asked) == cached.resolved(*asked)
    (site.root / "more").rmdir()
    with pytest.raises(ConfigError, match=rf"data\.{key}: more: no such file or folder"):
        cached.resolved(*asked)
