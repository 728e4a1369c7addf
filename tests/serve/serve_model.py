"""A tiny real model that has learnt a few answers by heart, made in seconds; and greedy answers by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ANSWERS = {
    "Who are you?": "I am a small model that answers quickly and stops on time.",
    "你是谁？": "我是一个很小的模型 🔥🧪👩‍🔬。很高兴为你服务！",
    "Write code.": "def add(a, b):\n    return a + b\n",
}
ENDLESS = "tick tock " * 20
OUTSIDE = "<|outside|>"  # a token the model has no weights for: using it makes the model fail
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # English alone: Chinese and emoji then need several tokens a character, the hard case for streaming.
    raw.train_from_iterator(
        [*ANSWERS, ANSWERS["Who are you?"], ANSWERS["Write code."], ENDLESS],
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    raw.add_tokens([AddedToken(OUTSIDE, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make(folder: Path) -> None:
    """Train and save the model; about 2 CPU seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # several would wait for each other on a busy machine
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) - 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    rows = [
        prompt_ids(tokenizer, question) + tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        for question, answer in ANSWERS.items()
    ]
    rows.append(tokenizer(ENDLESS)["input_ids"])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(110):
        model(input_ids=ids, attention_mask=real, labels=ids.masked_fill(real == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Return a question as the chat template words it."""
    return list(tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True))


def reference(folder: Path, ids: list[int], tokens: int, dtype: str = "float32") -> tuple[list[int], list[float]]:
    """Return transformers' own greedy continuation and, per token, the gap between first and second choice."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    gaps = [float(best[0] - best[1]) for best in (score[0].topk(2).values for score in out.scores)]
    return out.sequences[0, len(ids) :].tolist(), gaps


def golden(folder: Path, tokens: int = 96) -> dict[str, Any]:
    """Return golden prompts as the merge stage records them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = []
    for question in ANSWERS:
        ids = prompt_ids(tokenizer, question)
        made, gaps = reference(folder, ids, tokens)
        prompts.append(
            {
                "messages": [{"role": "user", "content": question}],
                "prompt_ids": ids,
                "completion_ids": made,
                "text": tokenizer.decode(made, skip_special_tokens=True),
                "margins": gaps,
            }
        )
    return {"max_new_tokens": tokens, "prompts": prompts}
