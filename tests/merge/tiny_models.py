"""Two-layer models with random weights, and adapters that real PEFT makes and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 320
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_theta": 1_000_000.0,
          "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def base(folder: Path, kind: str = "llama", tied: bool = False, dtype: str = "float32", shard: str = "5GB",
         **settings: Any) -> Path:
    """Write a random model of `kind` (llama, qwen2, qwen3 or gpt2) into `folder`, in shards of at most `shard`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    if kind == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    else:
        config = AutoConfig.for_model(kind, **COMMON, tie_word_embeddings=tied, **settings)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms too; the usual start leaves them at 0 and 1
        parameter.data.normal_(0, 0.1)
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
            parameter.data.normal_(0, 0.0 if zero and "lora_B" in name else 0.2)
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
