"""A decoder's forward pass in as few operations as give the bits of transformers' own modules.

For one token of a small model a third of the time is spent between the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TYPES = ("llama", "mistral", "qwen2", "qwen3")  # what _Layer knows; other models run by their own modules


class Step:
    """What each layer of a forward pass needs, made once: where its keys and values go, and which ones are seen."""

    def __init__(self, memory: Sequence[Tensor], parts: Sequence[tuple[int, int, int]], variant: bool) -> None:
        """Take the keys and values [layers, tokens, heads, size] and each request's start, length and new tokens.

        With `variant` heads that share keys, and requests of like length, are rows of one product.
        """
        self.memory = [each.unbind() for each in memory]
        self.counts = [new for _, _, new in parts]
        self.where = torch.cat([torch.arange(start + length, start + length + new) for start, length, new in parts])
        ends = [length + new for _, length, new in parts]
        self.grouped = variant and max(self.counts) == 1
        self.together: Tensor | None = None
        if self.grouped and len(parts) > 1 and len(parts) * max(ends) <= 2 * sum(ends):
            at, lasts = torch.arange(max(ends)), torch.tensor(ends)[:, None] - 1
            starts = torch.tensor([start for start, _, _ in parts])[:, None]
            self.together = (starts + at.minimum(lasts)).view(-1)  # filled up with what is masked
            self.mask = (at <= lasts)[:, None, None]
            return
        self.seen = [
            [each[:, None, start : start + end].transpose(2, 3).unbind() for each in memory]
            for (start, _, _), end in zip(parts, ends, strict=True)
        ]
        self.masks = [
            torch.ones(new, end, dtype=torch.bool).tril(length) if length and new > 1 else None
            for (_, length, new), end in zip(parts, ends, strict=True)
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Keep the new keys and values, and return what the queries find; all are [tokens, heads, size]."""
        for memory, new in zip(self.memory, (key, value), strict=True):
            memory[layer].index_copy_(0, self.where, new)
        (tokens, heads, size), shared = query.shape, key.shape[1]
        attention = functional.scaled_dot_product_attention
        if self.together is not None:
            keys, values = (
                memory[layer].index_select(0, self.together).view(tokens, -1, shared, size).transpose(1, 2)
                for memory in self.memory
            )
            made = attention(query.reshape(tokens, shared, -1, size), keys, values, self.mask, scale=scale)
            return made.reshape(tokens, heads, size)
        found = []
        for part, count, mask, (keys, values) in zip(
            query.split(self.counts), self.counts, self.masks, self.seen, strict=True
        ):
            rows = part.reshape(1, shared, -1, size) if self.grouped else part.transpose(0, 1)[None]
            causal, gqa = count > 1 and mask is None, not self.grouped and heads != shared
            made = attention(rows, keys[layer], values[layer], mask, is_causal=causal, scale=scale, enable_gqa=gqa)
            found.append(made.reshape(1, heads, size) if self.grouped else made[0].transpose(0, 1))
        return torch.cat(found)


class Decoder:
    """A model of one of TYPES whose linear layers are laid out."""

    def __init__(self, model: Any) -> None:
        self.model, body = model, model.model
        self.embedding, self.rotation, self.norm = body.embed_tokens.weight, body.rotary_emb, _norm(body.norm)
        self.layers = [_Layer(at, layer) for at, layer in enumerate(body.layers)]

    def __call__(self, step: Step, ids: Tensor, at: Tensor, wanted: Tensor | slice) -> Tensor:
        """Take the tokens [tokens] at their places and return the logits [wanted, vocabulary] behind those wanted."""
        hidden = functional.embedding(ids, self.embedding)
        cos, sin = self.rotation(hidden, at[None])
        first, second = sin[0].chunk(2, -1)
        turn = (cos[0, :, None], torch.cat([-first, second], -1)[:, None])
        for layer in self.layers:
            hidden = layer(step, hidden, turn)
        logits: Tensor = self.model.lm_head.forward(self.norm(hidden[wanted]))
        return logits


class _Layer:
    """One of a decoder's layers."""

    def __init__(self, at: int, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.at, self.size, self.scale = at, attention.head_dim, attention.scaling
        self.norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        kept = ["q_proj", "k_proj", "v_proj"] if hasattr(attention, "q_proj") else ["qkv_proj"]
        self.given = [getattr(attention, name).forward for name in kept]
        self.own = [_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.heads = [attention.config.num_attention_heads, attention.config.num_key_value_heads]
        self.out, self.gate, self.up, self.down = (
            part.forward for part in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn

    def __call__(self, step: Step, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Take hidden states [tokens, width] to those behind the layer, in place."""
        heads, shared = self.heads
        given = self.norms[0](hidden)
        made = torch.cat([each(given) for each in self.given], -1) if len(self.given) > 1 else self.given[0](given)
        made = made.view(len(hidden), heads + 2 * shared, self.size)
        both, value = made[:, : heads + shared], made[:, heads + shared :]
        if self.own:
            both = torch.cat([norm(part) for norm, part in zip(self.own, both.split(self.heads, 1), strict=True)], 1)
        both = (both * turn[0]).add_(both.roll(self.size // 2, -1).mul_(turn[1]))
        found = step.attend(self.at, both[:, :heads], both[:, heads:], value, self.scale)
        hidden.add_(self.out(found.view(len(hidden), -1)))
        given = self.norms[1](hidden)
        return hidden.add_(self.down(self.activation(self.gate(given)).mul_(self.up(given))))


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Return an RMSNorm as a function."""
    weight, epsilon = module.weight, module.variance_epsilon

    def norm(given: Tensor) -> Tensor:
        wide = given.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        return (wide * scale).to(given.dtype).mul_(weight)

    return norm
