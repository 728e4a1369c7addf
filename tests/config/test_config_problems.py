"""A wrong configuration is refused before anything starts, all problems at once, each with its remedy."""

from __future__ import annotations

import pytest
from config_site import Site

from temper.config import resolve
from temper.errors import ConfigError

MINE = "configs/scenarios/mine.yaml"


def test_all_problems_come_in_one_report(site: Site) -> None:
    """Typos, types, bounds, a missing file and a length the model cannot hold are all named, key by key."""
    (site.root / "rows.csv").unlink()
    report = site.refusal(
        "  eval_share: 2\n"
        "train: {lrate: 0.001, lora_rank: many, cutoff_len: 9000, template: qwen}\n"
        "serve: {port: 99999}\n"
        "ask: {temprature: 0}\n",
        profile="gpu-24g",
    ).splitlines()
    assert report[0] == f"{MINE}: 8 problems"
    assert sorted(line.split(":")[0].strip() for line in report[1:]) == [
        "ask.temprature", "data.eval_share", "data.path", "serve.port",
        "train.cutoff_len", "train.lora_rank", "train.lrate", "train.template",
    ]  # fmt: skip
    assert all(line.startswith("  ") for line in report[1:])
    assert "  train.lrate: unknown key; did you mean train.learning_rate?" in report
    assert "  ask.temprature: unknown key; did you mean ask.temperature?" in report
    assert "  serve.port: 99999 should be less than or equal to 65535" in report
    assert "  data.path: rows.csv: no such file or folder; give a path that exists" in report
    assert "  train.cutoff_len: 9000 is more than smollm2-135m's 8192 positions; lower it" in report


def test_every_path_of_rows_must_be_there(site: Site) -> None:
    """Files, folders and lists of them are taken; each that is missing is named, of the rows to evaluate on too."""
    (site.root / "more").mkdir()
    for value, path in (("more", "more"), ("[rows.csv,more]", ["rows.csv", "more"])):
        data = site.mine(overrides=f"data.path={value} data.eval_path={value}")["data"]
        assert data["path"] == data["eval_path"] == path
    missing = "no such file or folder; give a path that exists"
    assert site.refusal(overrides="data.path=[rows.csv,no.csv,none] data.eval_path=held.csv").splitlines() == [
        "SET: 3 problems",
        f"  data.path: no.csv: {missing}",
        f"  data.path: none: {missing}",
        f"  data.eval_path: held.csv: {missing}",
    ]


@pytest.mark.parametrize("value", ["7", "", "[]", "[rows.csv,7]"])
def test_what_is_no_path_of_rows_is_one_problem(site: Site, value: str) -> None:
    """A number, nothing, an empty list, a number in a list: one line, under the key and the layer it comes from."""
    report = site.refusal(overrides=f"data.path={value}").splitlines()
    assert report[0] == "SET: 1 problem"
    assert report[1].startswith(("  data.path: ", "  data.path.1: "))


def test_columns_need_not_be_named(site: Site) -> None:
    """Without data.columns, or with some of them, the rest is left to be found by name."""
    site.write("scenarios", "plain", "model: smollm2-135m\ndata: {path: rows.csv}\n")
    data = resolve.resolve("plain", "cpu")["data"]
    assert data["columns"] == dict.fromkeys(("instruction", "input", "output", "system", "history"))
    assert data["encoding"] == "auto"
    assert resolve.resolve("plain", "cpu", "", "data.columns.system=role")["data"]["columns"]["system"] == "role"


def test_each_problem_stands_under_the_file_it_comes_from(site: Site) -> None:
    """Scenario, profile and SET each get a heading with their own count."""
    site.write("profiles", "big", "# a profile\ngpu: true\ntrain: {bf61: true}\n")
    report = site.refusal(
        "train: {lora_rnk: 4}\n", profile="big", overrides="serve.prot=1 ask.temperature=9"
    ).splitlines()
    assert report == [
        "SET: 2 problems",
        "  serve.prot: unknown key; did you mean serve.port?",
        "  ask.temperature: 9 should be less than or equal to 2",
        f"{MINE}: 1 problem",
        "  train.lora_rnk: unknown key; did you mean train.lora_rank?",
        "configs/profiles/big.yaml: 1 problem",
        "  train.bf61: unknown key; did you mean train.bf16?",
    ]


def test_an_unknown_model_does_not_hide_other_problems(site: Site) -> None:
    """A model that does not exist is reported together with the scenario's own problems."""
    report = site.refusal("train: {lrate: 1}\n", model="smollm2-135")
    assert "train.lrate: unknown key" in report
    assert "there is no model named smollm2-135; did you mean smollm2-135m?" in report


@pytest.mark.parametrize(
    ("more", "key", "suggestion"),
    [
        ("tarin: {}\n", "tarin", "train"),
        ("  colums: {}\n", "data.colums", "data.columns"),
        ("  columns: {instruction: question, outptu: answer}\n", "data.columns.outptu", "data.columns.output"),
        ("serve: {max_input_token: 9}\n", "serve.max_input_token", "serve.max_input_tokens"),
        ("merge: {shard: 1}\n", "merge.shard", "merge.shard_gb"),
        ("train: {lrate: 1}\n", "train.lrate", "train.learning_rate"),
        ("train: {lr: 1}\n", "train.lr", "train.learning_rate"),
        ("train: {epochs: 1}\n", "train.epochs", "train.num_train_epochs"),
        ("train: {batch_size: 1}\n", "train.batch_size", "train.per_device_train_batch_size"),
        ("train: {max_len: 1}\n", "train.max_len", "train.cutoff_len"),
        ("train: {lora_target_modules: all}\n", "train.lora_target_modules", "train.lora_target"),
        ("train: {warm_up_ratio: 1}\n", "train.warm_up_ratio", "train.warmup_ratio"),
    ],
)  # fmt: skip
def test_an_unknown_key_gets_a_suggestion(site: Site, more: str, key: str, suggestion: str) -> None:
    """A mistyped key, of Temper or of LLaMA Factory, is answered with the right one."""
    assert f"  {key}: unknown key; did you mean {suggestion}?" in site.refusal(more)


def test_a_key_like_no_other_names_what_there_is(site: Site) -> None:
    """Where nothing is near, the report lists the section's keys, or says where LLaMA Factory's are."""
    report = site.refusal("merge: {zzzz: 1}\ntrain: {zzzz: 1}\n")
    assert "merge.zzzz: unknown key; known: dtype, shard_gb, chat_template" in report
    assert "train.zzzz: unknown key; see the arguments of llamafactory-cli train" in report


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("serve: {port: http}\n", "serve.port: 'http' should be a valid integer"),
        ("serve: 8000\n", "serve: 8000 should be a valid dictionary"),
        ("ask: {show: one}\n", "ask.show: 'one' should be a valid list"),
        ("merge: {dtype: int8}\n", "merge.dtype: 'int8' should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("train: {lora_rank: 1.5}\n", "train.lora_rank: 1.5: must be a whole number"),
        ("train: {lora_rank: true}\n", "train.lora_rank: True: must be a whole number"),
        ("train: {bf16: 'yes'}\n", "train.bf16: 'yes': must be true or false"),
        ("train: {learning_rate: fast}\n", "train.learning_rate: 'fast': must be a number"),
        ("train: {lora_target: [q_proj]}\n", "train.lora_target: ['q_proj']: must be text"),
        ("train: {finetuning_type: laura}\n", "train.finetuning_type: 'laura': must be one of lora, oft, freeze, full"),
        ("train: [lora]\n", "train: ['lora'] should be a valid dictionary"),
        ("  personal: hide\n", "data.personal: 'hide' should be 'report', 'mask' or 'drop'"),
        ("  engine: spark\n", "data.engine: 'spark' should be 'local' or 'ray'"),
        ("  workers: all\n", "data.workers: 'all' should be a valid integer"),
        ("  skip: tokens\n", "data.skip: 'tokens' should be a valid list"),
        ("  skip: [tokens, read]\n", "data.skip.1: 'read' should be 'normalise', 'personal', 'exact', 'near', "),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(site: Site, more: str, line: str) -> None:
    """The report says which value was given and what it must be."""
    site.write("profiles", "small", "# says nothing of rank and rate\ntrain: {seed: 1}\nserve: {host: 127.0.0.1}\n")
    assert f"  {line}" in site.refusal(more, profile="small")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("  eval_share: 1\n", "data.eval_share: 1 should be less than 1"),
        ("  max_rejected: -0.1\n", "data.max_rejected: -0.1 should be greater than or equal to 0"),
        ("  workers: -1\n", "data.workers: -1 should be greater than or equal to 0"),
        ("  max_chars: 0\n", "data.max_chars: 0 should be greater than or equal to 1"),
        ("merge: {shard_gb: 0}\n", "merge.shard_gb: 0 should be greater than 0"),
        ("serve: {port: 0}\n", "serve.port: 0 should be greater than or equal to 1"),
        ("serve: {max_input_tokens: 900, max_total_tokens: 900}\n",
         "serve.max_total_tokens: 900 must be more than serve.max_input_tokens (900)"),
        ("ask: {temperature: 2.1}\n", "ask.temperature: 2.1 should be less than or equal to 2"),
        ("train: {lora_rank: 0}\n", "train.lora_rank: 0: must be more than 0"),
        ("train: {learning_rate: -1e-4}\n", "train.learning_rate: '-1e-4': must be more than 0"),
        ("train: {finetuning_type: full}\n", "train.finetuning_type: 'full': gives no adapter to merge; must be lora"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused(site: Site, more: str, line: str) -> None:
    """A value that cannot work is found before the model has loaded, with the bound it breaks."""
    assert f"  {line}" in site.refusal(more, profile="gpu-24g")


@pytest.mark.parametrize(
    "key",
    ["model_name_or_path", "template", "dataset", "dataset_dir", "output_dir", "resume_from_checkpoint", "use_cpu"],
)
def test_a_key_that_temper_sets_is_refused(site: Site, key: str) -> None:
    """LLaMA Factory's keys that follow from elsewhere in the scenario are refused, and the report says from where."""
    report = site.refusal(f"train: {{{key}: x}}\n")
    assert f"  train.{key}: is set by Temper from " in report
    assert "; remove it" in report


def test_qlora_without_a_gpu_is_refused(site: Site) -> None:
    """4-bit training needs a GPU: profile cpu refuses it, gpu-24g takes it."""
    more = "train: {quantization_bit: 4, quantization_method: bnb}\n"
    site.write("profiles", "small", "# a CPU, and nothing said about quantization\ngpu: false\n")
    assert "train.quantization_bit: QLoRA needs a CUDA GPU; set it to null, or PROFILE=gpu-24g" in site.refusal(
        more, profile="small"
    )
    assert site.mine(more, profile="gpu-24g")["train"]["quantization_bit"] == 4


def test_a_length_the_model_holds_is_taken(site: Site) -> None:
    """cutoff_len may be as long as the model's positions, and no token longer."""
    assert site.mine("train: {cutoff_len: 8192}\n")["train"]["cutoff_len"] == 8192
    assert "8193 is more than smollm2-135m's 8192 positions" in site.refusal("train: {cutoff_len: 8193}\n")


@pytest.mark.parametrize(
    ("scenario", "profile", "model", "said"),
    [
        ("customer-servce", "cpu", "", "no scenario named customer-servce; did you mean customer-service? there are: "),
        ("zzz", "cpu", "", "no scenario named zzz; there are: code-generation, customer-service, financial-qa"),
        ("customer-service", "gpu-24", "", "no profile named gpu-24; did you mean gpu-24g? there are: cpu, gpu-24g"),
        (
            "customer-service",
            "cpu",
            "qwen2.5-05b",
            "no model named qwen2.5-05b; did you mean qwen2.5-0.5b? there are: ",
        ),
    ],
)
def test_an_unknown_name_gets_a_suggestion_and_the_list(
    site: Site, scenario: str, profile: str, model: str, said: str
) -> None:
    """A scenario, profile or model that does not exist is answered with the nearest one and with all there are."""
    with pytest.raises(ConfigError) as refused:
        resolve.resolve(scenario, profile, model)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "successor"),
    [("chatglm3-6b", "glm-4-9b-0414"), ("ChatGLM3-6B", "glm-4-9b-0414"), ("qwen-14b", "qwen2.5-14b-instruct")],
)
def test_a_retired_model_names_its_successor(site: Site, name: str, successor: str) -> None:
    """The first generation's base models no longer load; naming one says so and names one that exists."""
    with pytest.raises(ConfigError) as refused:
        resolve.resolve("customer-service", "gpu-24g", name)
    assert f"model {name} is retired: " in str(refused.value)
    assert f"use its successor {successor}" in str(refused.value)
    assert resolve.load_model(successor)[1].parameters > 0


def test_a_retired_repository_in_a_model_file_names_its_successor(site: Site) -> None:
    """A model file of one's own that points at a retired repository is refused the same way."""
    spec = (site.root / "configs/models/glm-4-9b-0414.yaml").read_text(encoding="utf-8")
    site.write("models", "old", spec.replace("zai-org/GLM-4-9B-0414", "THUDM/chatglm3-6b"))
    with pytest.raises(ConfigError, match=r"(?s)old\.yaml: 1 problem.*retired.*glm-4-9b-0414"):
        resolve.resolve("customer-service", "gpu-24g", "old")


@pytest.mark.parametrize("kind", ["scenarios", "profiles", "models"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("train: {lora_rank: 4\n", "not valid YAML: "),
        ("a: b: c\n", "not valid YAML: "),
        ("- one\n- two\n", "holds a list, not keys and values; correct the file"),
        ("just text\n", "holds a str, not keys and values; correct the file"),
        ("description: 退货\n".encode("gbk"), "not valid YAML: 'utf-8' codec can't decode"),
        (b"\x00\x01", "not valid YAML: "),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_line(site: Site, kind: str, content: str | bytes, said: str) -> None:
    """Broken YAML, a list, plain text, GBK and binary: one line that names the file and what is wrong with it."""
    site.write(kind, "broken", content)
    names = {"scenarios": "customer-service", "profiles": "cpu", "models": "", kind: "broken"}
    with pytest.raises(ConfigError) as refused:
        resolve.resolve(names["scenarios"], names["profiles"], names["models"])
    assert str(refused.value).startswith(f"configs/{kind}/broken.yaml: {said}")
    assert "\n" not in str(refused.value)


def test_an_empty_file_says_what_is_missing(site: Site) -> None:
    """A scenario without a line in it lacks its model and its data."""
    site.write("scenarios", "mine", "# nothing yet\n")
    with pytest.raises(ConfigError) as refused:
        resolve.resolve("mine", "gpu-24g")
    assert "  model: is missing; add it" in str(refused.value)
    assert "  data: is missing; add it" in str(refused.value)
