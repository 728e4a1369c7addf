"""How far two prompts begin alike."""

from __future__ import annotations

from collections.abc import Sequence


def most(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens of a prompt could be known from another; the last one is always left to run."""
    return max(0, min(len(known), len(prompt) - 1))


def common(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens of a prompt are known from another."""
    longest = most(known, prompt)
    return next((at for at in range(longest) if known[at] != prompt[at]), longest)
