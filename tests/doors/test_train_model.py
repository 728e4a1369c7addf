"""train_model.py: a YAML to start from, a check before anything is loaded, and training, as documented."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from doors_run import BARE, DOORS, ROOT, refused, run

SCRIPT = DOORS / "train_model.py"
# A llama of two layers: 2 x (64*64*2 + 64*32*2 + 3*64*160 + 2*64) + 320*64 + 64 parameters, embeddings tied.
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 160, "vocab_size": 320, "tie_word_embeddings": True,
}  # fmt: skip
PARAMETERS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64) + 320 * 64 + 64
TRAINABLE = 2 * 4 * (2 * 128 + 2 * 96 + 3 * 224)  # rank 4 on all seven projections
REPLACED = {"model_name_or_path": "./base", "template": "qwen", "lora_rank": 4, "lora_alpha": 8}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with processed_data/ and base/, a model of which only the description is there."""
    (tmp_path / "your_data.csv").write_text(
        "question,answer\n" + "".join(f"question {n},the answer is {n}\n" for n in range(40)), encoding="utf-8"
    )
    done = run(
        *BARE, DOORS / "data_processor.py", "--input", "your_data.csv", "--output", "./processed_data",
        "--instruction_col", "question", "--output_col", "answer", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def configured(here: Path, **changes: object) -> Path:
    """Write the YAML that --create_config writes, for the folder's own model, with `changes`; None takes a key out."""
    run(*BARE, SCRIPT, "--create_config", "--output", "made.yaml", cwd=here)
    arguments = {**yaml.safe_load((here / "made.yaml").read_text(encoding="utf-8")), **REPLACED, **changes}
    path = here / "train.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in arguments.items() if value is not None}))
    return path


def problems(here: Path, *options: str, **changes: object) -> list[str]:
    """Return the problems that a changed YAML is refused with, a line each."""
    configured(here, **changes)
    done = run(*BARE, SCRIPT, "--config", "train.yaml", *options, cwd=here)
    assert done.code == 3, done.out + done.err
    first, *rest = done.err.splitlines()
    assert first == f"error: train.yaml: {len(rest)} problem{'s' if len(rest) > 1 else ''}"
    return [line.strip() for line in rest]


def test_create_config_writes_a_commented_yaml_and_says_what_is_next(tmp_path: Path) -> None:
    """--create_config writes train_config.yaml, with no packages installed, and names the command that checks it."""
    done = run(*BARE, SCRIPT, "--create_config", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "written train_config.yaml\n"
        "next: python scripts/llamafactory/train_model.py --config train_config.yaml --dry_run\n"
    )
    text = (tmp_path / "train_config.yaml").read_text(encoding="utf-8")
    assert text.count("#") > 10
    assert yaml.safe_load(text)["dataset_dir"] == "./processed_data"


def test_create_config_never_overwrites(tmp_path: Path) -> None:
    """A file that is there is refused with code 2 and stays as it is; --output chooses another."""
    (tmp_path / "train_config.yaml").write_text("mine: 1\n")
    line = refused(2, *BARE, SCRIPT, "--create_config", cwd=tmp_path)
    assert line == "train_config.yaml exists; choose another name with --output, or delete it"
    assert (tmp_path / "train_config.yaml").read_text() == "mine: 1\n"
    assert run(*BARE, SCRIPT, "--create_config", "--output", "my.yaml", cwd=tmp_path).code == 0
    line = refused(2, *BARE, SCRIPT, "--create_config", "--output", "no/my.yaml", cwd=tmp_path)
    assert line == "no: no such folder; run: mkdir -p no"


def test_every_key_of_the_written_yaml_is_right(here: Path) -> None:
    """The only problem of a freshly written YAML is the base model, which is not in this folder."""
    run(*BARE, SCRIPT, "--create_config", cwd=here)
    done = run(*BARE, SCRIPT, "--config", "train_config.yaml", "--dry_run", cwd=here)
    assert (done.code, done.out) == (3, "")
    assert done.err == (
        "error: train_config.yaml: 1 problem\n"
        "  model_name_or_path: build/models/smollm2-135m: no config.json there; give a folder that has it\n"
    )


def test_dry_run_says_what_would_run_and_trains_nothing(here: Path) -> None:
    """--dry_run names rows, steps, parameters and memory, from a Python without packages, and writes nothing."""
    configured(here, num_train_epochs=3, per_device_train_batch_size=4)
    before = sorted(here.rglob("*"))
    done = run(*BARE, SCRIPT, "--config", "train.yaml", "--dry_run", cwd=here)
    assert (done.code, done.err) == (0, ""), done.err
    rows = len((here / "processed_data" / "train.jsonl").read_text().splitlines())
    assert re.search(rf"^rows    {rows}, \d+ tokens, longest \d+ \(cut at 1024\)$", done.out, re.M)
    assert f"steps   {3 * -(-rows // 4)}\n" in done.out
    assert f"{PARAMETERS / 1e6:.1f} M parameters, {TRAINABLE / 1e6:.2f} M trainable" in done.out
    assert re.search(r"^chosen  (bf16|float32), \d+ threads$", done.out, re.M)
    assert done.out.endswith("nothing was trained (--dry_run)\n")
    assert sorted(here.rglob("*")) == before


def test_all_problems_of_a_bad_file_come_at_once(here: Path) -> None:
    """Typos, types, missing keys and folders that are not there are reported together, in one go, without training."""
    shutil.rmtree(here / "processed_data")
    found = problems(
        here, lrate=1, lora_rank="many", template=None, model_name_or_path="./bose", num_train_epochs=0, do_train=None
    )
    assert sorted(line.split(":")[0] for line in found) == [
        "dataset_dir", "do_train", "lora_rank", "lrate", "model_name_or_path", "num_train_epochs", "template",
    ]  # fmt: skip
    assert "lrate: unknown key; did you mean learning_rate?" in found
    assert "model_name_or_path: ./bose: no config.json there; give a folder that has it" in found
    assert "template: is missing; add it" in found
    assert not (here / "adapter").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dataset": "trian"}, "dataset: there is no dataset trian; ./processed_data has: train, eval"),
        ({"dataset": "train, more"}, "dataset: there is no dataset more; ./processed_data has: train, eval"),
        ({"finetuning_type": "full"}, "finetuning_type: 'full': gives no adapter to merge; must be lora"),
        ({"output_dir": ""}, "output_dir: is missing; add it"),
        ({"output_dir": 7}, "output_dir: 7: must be text"),
        ({"model_name_or_path": 7}, "model_name_or_path: 7: must be text"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_loaded(here: Path, changes: dict[str, object], line: str) -> None:
    """A data set, folder or kind of tuning that cannot work is refused without --dry_run too."""
    assert line in problems(here, **changes)


def test_damaged_inputs_are_named(here: Path) -> None:
    """A truncated config.json and rows that went missing are problems with a remedy."""
    (here / "base" / "config.json").write_text('{"model_type": "lla')
    (here / "processed_data" / "train.jsonl").unlink()
    assert problems(here, "--dry_run") == [
        "model_name_or_path: ./base: its config.json is not valid JSON; make the folder again",
        "dataset: train: no file train.jsonl in ./processed_data; run data_processor.py again",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "train.yaml: no such file; make one with --create_config"),
        ("", "train.yaml: holds no keys and values; make one with --create_config"),
        ("- a\n", "train.yaml: holds no keys and values; make one with --create_config"),
        ("a: [1\n", "train.yaml: not valid YAML: while parsing a flow sequence"),
        ("a: 退货\n".encode("gbk"), "train.yaml: not valid YAML: 'utf-8' codec can't decode byte"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    """A missing, empty, broken or GBK file ends with code 3 and one line."""
    if content is not None:
        (tmp_path / "train.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(3, *BARE, SCRIPT, "--config", "train.yaml", "--dry_run", cwd=tmp_path).startswith(said)


def test_without_an_environment_the_remedy_is_named(here: Path) -> None:
    """In a clone where nothing is installed a bare Python ends with code 11 and the command that installs."""
    clone = here / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    configured(here)
    door = clone / "scripts" / "llamafactory" / "train_model.py"
    line = refused(11, *BARE, door, "--config", "train.yaml", "--dry_run", cwd=here)
    assert line == "this Python has no LLaMA Factory; run: bash scripts/llamafactory/install_llamafactory.sh"


@pytest.mark.parametrize("words", [[], ["--config"], ["--create_config", "--config", "x"], ["--train"]])
def test_a_wrong_option_ends_with_2(words: list[str]) -> None:
    """No option, half an option, two that exclude each other and an unknown one: code 2 and the usage."""
    done = run(*BARE, SCRIPT, *words)
    assert done.code == 2
    assert done.err.startswith("usage: train_model.py")


def weights(folder: Path) -> None:
    """Write the random weights that CONFIG describes, and a tokenizer of bytes, without starting torch."""
    import numpy
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    chance = numpy.random.default_rng(7)
    shapes = {"model.embed_tokens": (320, 64), "model.norm": (64,)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}self_attn.{name}_proj": (64, 64) for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj": (32, 64) for name in "kv"}
        shapes |= {
            f"{layer}mlp.gate_proj": (160, 64),
            f"{layer}mlp.up_proj": (160, 64),
            f"{layer}mlp.down_proj": (64, 160),
        }
        shapes |= {f"{layer}input_layernorm": (64,), f"{layer}post_attention_layernorm": (64,)}
    made = {f"{name}.weight": chance.normal(0, 0.1, shape).astype("float32") for name, shape in shapes.items()}
    assert sum(tensor.size for tensor in made.values()) == PARAMETERS
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    coder = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    coder.pre_tokenizer, coder.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    coder.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    coder.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


@pytest.mark.slow
def test_the_documented_command_trains_an_adapter(here: Path) -> None:
    """--config FILE, on rows that data_processor.py made, leaves an adapter, the YAML it ran and its loss curve."""
    weights(here / "base")
    configured(here, max_steps=2, logging_steps=1, save_steps=10, cutoff_len=64)
    done = run(*BARE, SCRIPT, "--config", "train.yaml", "--threads", "1", cwd=here)
    assert done.code == 0, done.out + done.err
    assert done.out.endswith("adapter written to ./adapter\n")
    adapter = here / "adapter"
    assert (adapter / "adapter_model.safetensors").stat().st_size > 4 * TRAINABLE / 2
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    assert [json.loads(line)["step"] for line in (adapter / "loss.jsonl").read_text().splitlines()] == [1, 2]
    assert (adapter / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((adapter / "run.yaml").read_text())["lora_rank"] == 4
