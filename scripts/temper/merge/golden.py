"""Golden prompts: what the merged model answers, greedily, recorded once and replayed against a server.

Recorded in float32 for models up to weights.WHOLE_BYTES, so that an answer does not depend on how prompts are batched.
A server that computes in bfloat16 rounds its logits otherwise, and may choose another token where the margin between
first and second choice is small; `near_tie` says how small, for each dtype.
"""

from __future__ import annotations

from typing import Any

from temper.merge.served import Message
from temper.merge.weights import ROUNDOFF

FILE = "golden.json"  # in the merged folder
# Of u * max|logit|. Measured on SmolLM2-135M computed in bfloat16: margins move by up to 0.45, which is 3.1; another
# token was chosen at margins up to 0.17.
NEAR_TIE = 4.0
DEFAULT: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    ({"role": "user", "content": "请用一句话介绍一下你自己。"},),
    (
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ),
    (
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada."},
        {"role": "user", "content": "What is my name?"},
    ),
)


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Return the ids a server makes of a conversation: its template, no special tokens added."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _padded(model: Any, prompts: list[list[int]], pad: int) -> tuple[Any, Any]:
    """Return ids and mask [prompts, longest], padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)


def complete(
    model: Any, prompts: list[list[int]], eos: set[int], max_new_tokens: int
) -> tuple[list[tuple[list[int], list[float]]], float]:
    """Return each prompt's greedy tokens, the eos included, with their leads over the second choices; and max|logit|.

    Equal to `generate(do_sample=False)` without the sampling and penalty settings a generation_config.json may hold:
    TGI reads none of them.
    """
    import inspect

    import torch

    ids, mask = _padded(model, prompts, min(eos, default=0))
    done: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    going, cache, top = set(range(len(prompts))), None, 0.0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        while going:
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **last_only,
            )
            cache, (values, choices) = out.past_key_values, out.logits[:, -1].float().topk(2, dim=-1)
            for row in sorted(going):
                token = int(choices[row, 0])
                top = max(top, abs(float(values[row, 0])))
                done[row][0].append(token)
                done[row][1].append(round(float(values[row, 0] - values[row, 1]), 3))
                if token in eos or len(done[row][0]) == max_new_tokens:
                    going.discard(row)
            ids, positions = choices[:, :1], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return done, top


def record(
    model: Any, tokenizer: Any, prompts: list[list[Message]], max_new_tokens: int = 48, eos: set[int] | None = None
) -> dict[str, Any]:
    """Return the golden prompts of a merged model; `eos` defaults to the model's generation_config's.

    {"max_new_tokens", "dtype", "near_tie": {dtype: logits}, "prompts": [{"messages", "prompt_ids", "completion_ids",
    "text", "margins"}]}; `text` is without special tokens, `margins` are logit differences, one per completion token.
    """
    if eos is None:
        given = model.generation_config.eos_token_id
        eos = set(given if isinstance(given, list) else [given] if given is not None else [])
    ids = [prompt_ids(tokenizer, messages) for messages in prompts]
    answers, top = complete(model, ids, eos, max_new_tokens)
    near = {dtype: round(max(NEAR_TIE * unit * top, 0.01), 2) for dtype, unit in ROUNDOFF.items()}
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "near_tie": near,
        "prompts": [
            {
                "messages": messages,
                "prompt_ids": asked,
                "completion_ids": tokens,
                "margins": margins,
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
            }
            for messages, asked, (tokens, margins) in zip(prompts, ids, answers, strict=True)
        ],
    }
