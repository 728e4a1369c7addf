"""Forward passes for several requests at once, with keys and values in memory whose size is known at the start.

The model's own modules from transformers run; only their attention, cache and linear layers are replaced, so that the
tokens of several requests go through the same matrix products. A greedy answer stays that of `transformers.generate`,
token for token: each request has its own attention, and products that come out otherwise for several rows than for one
(which is found out at the start: it depends on the CPU, its libraries and the shape) are made row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from temper.serve import prefix
from temper.serve.decoder import TYPES, Decoder, Step

KEPT = 32  # places of requests that are over
ALIGNED = 64  # tokens: attention makes the same of the first ones of a prompt in steps of it, however long the prompt
SHORT, LONG = 192, 512  # of a prompt below LONG only so many tokens are sure to be the same in a longer one


@dataclass
class _Switch:
    on: bool = False


@dataclass(eq=False)
class Place:
    """Where a request's keys and values are: tokens `start` up to `start + room`, of which `length` are filled."""

    start: int
    room: int
    length: int = 0
    prompt: Sequence[int] = ()
    idle: bool = False  # of a request that is over: kept for prompts that begin alike, until room is needed
    cache: Any = None


def make(model: Any, tokens: int, variant: bool = False) -> Runner | Separate:
    """Return what runs a model for several requests, with room for so many tokens: at once, or one by one.

    Only a model whose answer is the same, bit for bit, is run at once: one with attention of its own kind is not.
    With `variant` the last bits may change after that.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) if kinds is None else {*kinds} - {"full_attention"}
    if windowed or not getattr(model, "_supports_attention_backend", False):
        return Separate(model, tokens)
    ids = [[(7 * at + row) % config.vocab_size for at in range(20 + row)] for row in range(2)]
    separate = Separate(model, tokens)
    wanted = [_two_steps(separate, prompt) for prompt in ids]
    kind = config._attn_implementation
    runner = Runner(model, tokens)
    for decoder in dict.fromkeys((runner.decoder, None)):  # else by the model's own modules
        runner.decoder = decoder
        if torch.equal(torch.cat(wanted), torch.cat([_two_steps(runner, prompt) for prompt in ids])):
            if variant:
                runner.vary()
            return runner
    model.config._attn_implementation = config._attn_implementation = kind
    return separate


def _two_steps(runner: Runner | Separate, prompt: Sequence[int]) -> Tensor:
    place = runner.start((), len(prompt) + 1)
    assert place, "nothing runs yet"
    first = runner.forward([(place, prompt)])
    second = runner.forward([(place, [int(first.argmax())])])
    runner.finish(place)
    return torch.cat([first, second])


def _shape(config: Any) -> tuple[int, int, int]:
    """Return layers, heads and size of a model's keys, which are those of its values."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_key_value_heads, size


class Separate:
    """A model that runs each request by itself, with its own cache: for any architecture that transformers knows."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model, self.left = model, tokens

    def start(self, prompt: Sequence[int], room: int) -> Place | None:
        """Return a place with room for so many tokens; None while there is none."""
        if room > self.left:
            return None
        self.left -= room
        return Place(0, room, prompt=prompt, cache=transformers.DynamicCache(config=self.model.config))

    def finish(self, place: Place) -> None:
        """Leave a place."""
        self.left += place.room
        place.cache = None

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(self, parts: Sequence[tuple[Place, Sequence[int]]], every: bool = False) -> Tensor:
        """Take each place's next tokens and return float32 logits, as Runner does."""
        found = []
        for place, ids in parts:
            given = torch.tensor([ids])
            keep = 0 if every else 1
            logits = self.model(
                input_ids=given, past_key_values=place.cache, use_cache=True, logits_to_keep=keep
            ).logits
            place.length += len(ids)
            found.append(logits[0].float())
        return torch.cat(found)


class Runner:
    """A loaded model that runs several requests at once, and the memory for their keys and values."""

    def __init__(self, model: Any, tokens: int) -> None:
        config = model.config.get_text_config()
        layers, heads, size = _shape(config)
        self.model, self.tokens, self.variant = model, tokens, False
        self.memory = [torch.empty(layers, tokens, heads, size, dtype=model.dtype) for _ in range(2)]  # keys, values
        self.places: list[Place] = []  # oldest first
        self.step: Step
        self.cache = _Cache()
        name = f"temper-{id(self)}"
        ALL_ATTENTION_FUNCTIONS.register(name, self._attend)
        model.config._attn_implementation = config._attn_implementation = name
        self.one_by_one = _Switch()
        _lay_out(model, self.one_by_one)
        self.decoder = Decoder(model) if config.model_type in TYPES else None

    def vary(self) -> None:
        """Let the last bits of an answer depend on what else runs, and on what ran before, in favour of speed."""
        self.variant = True
        for layer in self.model.modules():
            if isinstance(layer, _Linear):
                layer.mixed = False
        if self.decoder:
            for layer in self.model.model.layers:
                _join(layer.self_attn, self.one_by_one)
            self.decoder = Decoder(self.model)

    def start(self, prompt: Sequence[int], room: int) -> Place | None:
        """Return a place with room for so many tokens; None while there is none.

        What is known of the prompt's beginning, from one that began alike, is filled in already.
        """

        def known(place: Place) -> int:
            return (prefix.common if self.variant else _exact)(place.prompt[: place.length], prompt)

        alike = max(self.places, key=known, default=None)
        while (found := self._free(room)) is None:
            idle = [place for place in self.places if place.idle]
            if not idle:
                return None
            leaving = next((place for place in idle if place is not alike), idle[0])
            alike = None if leaving is alike else alike
            self.places.remove(leaving)
        place = Place(found, room, prompt=prompt)
        if alike and (same := known(alike)):
            for memory in self.memory:
                memory[:, found : found + same] = memory[:, alike.start : alike.start + same]
            place.length = same
        self.places.append(place)
        return place

    def finish(self, place: Place) -> None:
        """Leave a place, whose keys and values stay until its room is needed or KEPT others have been left."""
        place.idle = True
        idle = [place for place in self.places if place.idle]
        if len(idle) > KEPT:
            self.places.remove(idle[0])

    def _free(self, room: int) -> int | None:
        """Return where so many tokens in a row are free."""
        begin = 0
        for place in sorted([*self.places, Place(self.tokens, 0)], key=lambda place: place.start):
            if place.start - begin >= room:
                return begin
            begin = place.start + place.room
        return None

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(self, parts: Sequence[tuple[Place, Sequence[int]]], every: bool = False) -> Tensor:
        """Take each place's next tokens and return float32 logits [places, vocabulary] behind the last of each.

        With `every` they are [tokens, vocabulary], behind each token.
        """
        self.step = Step(self.memory, [(place.start, place.length, len(ids)) for place, ids in parts], self.variant)
        self.one_by_one.on = len(parts) > 1
        ids = torch.tensor([token for _, given in parts for token in given])
        at = torch.tensor([place.length + at for place, given in parts for at in range(len(given))])
        wanted = slice(None) if every else torch.tensor(self.step.counts).cumsum(0) - 1
        logits = self._run(ids, at, wanted)
        for place, given in parts:
            place.length += len(given)
        return logits.float()

    def _run(self, ids: Tensor, at: Tensor, wanted: Tensor | slice) -> Tensor:
        if self.decoder:
            return self.decoder(self.step, ids, at, wanted)
        logits: Tensor = self.model(
            input_ids=ids[None],
            position_ids=at[None],
            cache_position=at,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=wanted,
        ).logits[0]
        return logits

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Let each request's tokens attend to its own: [1, heads, tokens, size] to [1, tokens, heads, size]."""
        query, key, value = (given[0].transpose(0, 1) for given in (query, key, value))
        return self.step.attend(module.layer_idx, query, key, value, scaling)[None], None


class _Cache(transformers.Cache):
    """Stands for the cache that the model's modules ask for; Runner keeps the keys and values itself."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return what was given: the attention puts it where it belongs."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Say that nothing is kept here."""
        return 0


class _Linear(nn.Module):
    """A linear layer with its weights laid out for the CPU, where that is offered: up to twice as fast for one row.

    While `one_by_one` says so, a layer whose products are `mixed` multiplies rows one by one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, one_by_one: _Switch) -> None:
        super().__init__()
        self.one_by_one, self.mixed, self.bias, self.size = one_by_one, False, bias, tuple(weight.shape)
        self.packed = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self.packed else weight

    def forward(self, given: Tensor) -> Tensor:
        """Multiply [..., rows, in] to [..., rows, out]."""
        if self.mixed and self.one_by_one.on and given.shape[-2] > 1:
            return torch.cat([self.product(row) for row in given.split(1, -2)], -2)
        return self.product(given)

    def product(self, given: Tensor) -> Tensor:
        """Multiply all rows at once."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "")
        return functional.linear(given, self.weight, self.bias)


def _lay_out(model: nn.Module, one_by_one: _Switch) -> None:
    """Replace a model's linear layers, and find out for each shape [out, in] if it mixes rows."""
    mixed: dict[tuple[int, ...], bool] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                new = _Linear(layer.weight, layer.bias, one_by_one)
                if new.size not in mixed:
                    mixed[new.size] = _mixes(new, layer)
                new.mixed = mixed[new.size]
                setattr(parent, name, new)


def _join(attention: nn.Module, one_by_one: _Switch) -> None:
    """Make one linear layer of those of an attention's queries, keys and values."""
    parts = [attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")]
    weight = torch.cat([part.weight.to_dense() for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    del attention.q_proj, attention.k_proj, attention.v_proj
    attention.qkv_proj = _Linear(weight, bias, one_by_one)


def _mixes(new: _Linear, layer: nn.Linear) -> bool:
    """Say whether a row's products change in the last bit with the number of rows."""
    for rows in (2, 3, 8, 8, 8, 8, 16, 16):
        given = torch.randn(1, rows, layer.in_features).to(layer.weight.dtype)
        single = torch.cat([functional.linear(row, layer.weight, layer.bias) for row in given.split(1, 1)], 1)
        if not torch.equal(new.product(given), single):
            return True
    return False


def _exact(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens of a prompt have, bit for bit, the keys and values of those known."""
    same = prefix.common(known, prompt)
    if prefix.most(known, prompt) < LONG:
        same = min(same, SHORT)
    return same - same % ALIGNED
