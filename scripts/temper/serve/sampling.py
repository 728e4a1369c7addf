"""Choose the next token as TGI's Python shard does (utils/tokens.py, utils/logits_process.py, the GPU path)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from temper.serve.validate import Valid

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor

# TGI's watermark (arXiv:2301.10226): by the token before, GAMMA of the vocabulary gain DELTA.
GAMMA, DELTA, HASH_KEY = 0.5, 2.0, 15485863


class Choice(NamedTuple):
    """A token and its log probability after all warping, and those of the likeliest where they are wanted."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Chooser:
    """Turns logits into a token for one request; holds its random numbers and its place in its grammar."""

    def __init__(self, wanted: Valid) -> None:
        import torch

        self.wanted = wanted
        self.generator = torch.Generator("cpu").manual_seed(wanted.seed) if wanted.sampling else None
        self.matcher = wanted.grammar.deep_copy() if wanted.grammar else None

    def __call__(self, ids: list[int], logits: Tensor) -> Choice:
        """Choose a token; RuntimeError for a grammar that cannot be followed any further.

        `ids` are prompt and answer so far; `logits` is float32 [vocabulary].
        """
        scores = _penalise(_watermark(logits, ids) if self.wanted.watermark else logits, ids, self.wanted)
        if self.matcher:
            scores = _allowed(scores, self.matcher)
        scores = _warp(scores, self.wanted)
        token = int(scores.numpy().argmax()) if self.generator is None else self._draw(scores)  # torch's is slow
        if self.matcher and not self.matcher.consume_token(token):
            raise RuntimeError(self.matcher.get_error())
        logprobs = scores.log_softmax(-1)
        return Choice(token, float(logprobs[token]), _top(logprobs, self.wanted.top))

    def _draw(self, scores: Tensor) -> int:
        """Draw by the exponential race: equal in law to multinomial, and equal to TGI's for a seed."""
        import torch

        race = torch.empty_like(scores).exponential_(1, generator=self.generator)
        return int((scores.softmax(-1) / race).argmax())


def _watermark(scores: Tensor, ids: list[int]) -> Tensor:
    import torch

    order = torch.randperm(len(scores), generator=torch.Generator("cpu").manual_seed(HASH_KEY * ids[-1]))
    return scores.index_add(0, order[: int(len(scores) * GAMMA)], torch.tensor(DELTA).expand(int(len(scores) * GAMMA)))


def _allowed(scores: Tensor, matcher: LLMatcher) -> Tensor:
    """Leave the tokens with which the grammar goes on, or the end tokens where it is complete."""
    import numpy
    import torch

    mask = numpy.frombuffer(matcher.compute_bitmask(), numpy.uint8)
    if matcher.is_error():
        raise RuntimeError(matcher.get_error())
    refused = numpy.unpackbits(mask, bitorder="little", count=len(scores)) == 0
    return scores.masked_fill(torch.from_numpy(refused), float("-inf"))


def _top(logprobs: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the `count` likeliest tokens, and those as likely as the last of them; never an impossible one."""
    if not count:
        return []
    least = logprobs.topk(min(count, len(logprobs))).values[-1].clamp(min=-3e38)
    found = logprobs.topk(int((logprobs >= least).sum()))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _penalise(scores: Tensor, ids: list[int], wanted: Valid) -> Tensor:
    """Apply the repetition penalty (a factor), then the frequency penalty (times a token's share of all so far)."""
    import torch

    if wanted.repetition_penalty != 1.0:
        used = torch.tensor(sorted(set(ids)))
        old = scores[used]
        factor = wanted.repetition_penalty
        scores = scores.index_copy(0, used, torch.where(old < 0, old * factor, old / factor))
    if wanted.frequency_penalty != 0.0:
        counts = torch.bincount(torch.tensor(ids), minlength=len(scores))[: len(scores)]
        scores = scores - wanted.frequency_penalty * counts / len(ids)
    return scores


def _warp(scores: Tensor, wanted: Valid) -> Tensor:
    """Apply temperature, top_k, top_p and typical_p, in this order; ties at rank top_k all stay."""
    if wanted.temperature != 1.0:
        scores = scores / wanted.temperature
    if wanted.top_k:
        least = scores.topk(min(wanted.top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if wanted.top_p < 1.0:
        ordered, order = scores.sort()
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - wanted.top_p
        drop[-1] = False
        scores = scores.masked_fill(drop.scatter(0, order, drop), float("-inf"))
    return _typical(scores, wanted.typical_p) if wanted.typical_p < 1.0 else scores


def _typical(scores: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose surprise is nearest the entropy, up to `mass` of probability (arXiv:2202.00666)."""
    logs = scores.log_softmax(-1)
    chances = logs.exp()
    entropy = -(logs * chances).nansum(-1, keepdim=True)
    distance, order = (-logs - entropy).abs().sort()
    last = int((chances[order].cumsum(-1) < mass).sum())
    drop = distance > distance[min(last, len(scores) - 1)]
    return scores.masked_fill(drop.scatter(0, order, drop), float("-inf"))
