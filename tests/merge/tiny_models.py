"""Two-layer models with random weights, and adapters that real PEFT makes and saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 320
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 1_000_000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def base(
    folder: Path, kind: str = "llama", tied: bool = False, dtype: str = "float32", shard: str = "5GB", **settings: Any
) -> Path:
    """Write a random model of `kind` (llama, qwen2, qwen3 or gpt2) into `folder`, in shards of at most `shard`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    if kind == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    else:
        config = AutoConfig.for_model(kind, **COMMON, tie_word_embeddings=tied, **settings)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # biases and norms too; the usual start leaves them at 0 and 1
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def adapter(folder: Path, base: Path, dtype: str = "float32", zero: bool = False, **settings: Any) -> Path:
    """Write an adapter for `base` with random factors, made and saved by PEFT; `settings` are LoraConfig's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(11)
    settings = {"r": 8, "lora_alpha": 20, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(**settings))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data.normal_(0, 0.0 if zero and "lora_B" in name else 0.1)
            parameter.data = parameter.data.to(getattr(torch, dtype))
        elif parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    return folder


def peft_merged(folder: Path, base: Path, adapter: Path, dtype: str = "", shard: str = "5GB") -> Path:
    """Write what PEFT's own merge_and_unload and save_pretrained make; cast to `dtype` after merging if it is given."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if dtype:
        merged = merged.to(getattr(torch, dtype))
    merged.save_pretrained(folder, max_shard_size=shard)
    return folder


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["how long is the return window", "退货期限是多久", "def add(a, b): return a + b"]


def tokenizer(folder: Path, kind: str = "PreTrainedTokenizerFast") -> Path:
    """Write a byte-level tokenizer of class `kind` with a ChatML template; its eos is <|endoftext|>, not <|im_end|>."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind in PIECES:
        return _piece_tokenizer(folder, kind)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT * 3, trainer)
    wrapped = getattr(transformers, kind)(
        tokenizer_object=made,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    if kind != "PreTrainedTokenizerFast":  # as most published models: written before there was this key
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["extra_special_tokens"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return folder


PIECES = ("LlamaTokenizerFast", "CodeLlamaTokenizerFast")
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def _piece_tokenizer(folder: Path, kind: str) -> Path:
    """Write a tokenizer as Llama 2's: spaces become a mark, one stands before each text, unknown letters are bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special + letters, show_progress=False)
    made.train_from_iterator(TEXT * 3, trainer)
    plain = json.loads(made.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] in special]
    made = Tokenizer.from_str(json.dumps(plain))
    wrapped = getattr(transformers, kind)(tokenizer_object=made)
    wrapped.chat_template = INST
    wrapped.save_pretrained(folder)
    return folder
