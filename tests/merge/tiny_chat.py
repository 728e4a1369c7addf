"""A two-layer chat model with its own tokenizer, an adapter by PEFT, and the folder that the merge makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models

TEMPLATE = "qwen3_nothink"  # LLaMA Factory's name for what CHAT_TEMPLATE says
END = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "What are your opening hours? We open at nine.",
    "请问退货需要几天？一般需要七个工作日。",
    "def add(a, b):\n    return a + b",
]


@dataclass(frozen=True)
class Parts:
    """The folders a gate looks at."""

    base: Path
    adapter: Path
    merged: Path


def tokenizer(folder: Path, template: str = CHAT_TEMPLATE) -> None:
    """Train a byte-level BPE of 320 tokens and save it as published models do: template in tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=tiny_models.VOCABULARY,
            special_tokens=["<|endoftext|>", END, "<|im_start|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|endoftext|>",
        eos_token=END,
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    fast.save_pretrained(folder, save_jinja_files=False)


def pieces(folder: Path, texts: list[str]) -> None:
    """Give a folder a tokenizer as Llama 2's: a blank goes before every text that is encoded by itself."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    raw.train_from_iterator(
        [*texts, "[INST] <<SYS>>\n\n<</SYS>> [/INST]"],
        trainers.BpeTrainer(
            vocab_size=tiny_models.VOCABULARY, special_tokens=["<unk>", "</s>", "<s>"], show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def make(folder: Path, dtype: str = "bfloat16", **adapter: Any) -> Parts:
    """Make base, adapter and merged folder; `adapter` goes to tiny_models.adapter."""
    from temper import merge

    parts = Parts(folder / "base", folder / "adapter", folder / "merged")
    tiny_models.base(parts.base, "llama", tied=True, dtype=dtype)
    tokenizer(parts.base)
    tiny_models.adapter(parts.adapter, parts.base, **adapter)
    merge.make(parts.base, parts.adapter, parts.merged, template=TEMPLATE, end_token=END)
    return parts


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a folder in place."""
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def edit_tensor(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a folder's model.safetensors in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
