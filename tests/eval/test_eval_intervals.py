"""The paired bootstrap agrees with scipy's, covers what it says, and is the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from temper.eval.intervals import Interval, paired


def scores(rows: int, seed: int) -> tuple[list[float], list[float]]:
    """Return scores of a base and a tuned model; the true difference is 0.2, and most questions score alike in both."""
    generator = np.random.default_rng(seed)
    base = (generator.random(rows) < 0.4).astype(float)
    tuned = np.where(generator.random(rows) < 0.5, base, generator.random(rows) < 0.8)
    return base.tolist(), tuned.tolist()


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_it_agrees_with_scipy(level: float) -> None:
    """On 150 questions both ends lie within 0.01 of scipy's percentile bootstrap."""
    from scipy import stats

    base, tuned = scores(150, 5)
    ours = paired(base, tuned, level=level)
    peer = stats.bootstrap(
        (base, tuned),
        lambda first, second, axis: np.mean(second - first, axis=axis),
        paired=True, method="percentile", n_resamples=10_000, confidence_level=level, rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high), abs=0.01)
    assert ours.difference == pytest.approx(np.mean(tuned) - np.mean(base))
    assert ours.low < ours.difference < ours.high


def test_pairs_are_drawn_together() -> None:
    """Scores that differ much between questions and by 0.1 between models leave no doubt about the difference."""
    base = np.linspace(0, 0.9, 50)
    found = paired(base.tolist(), (base + 0.1).tolist())
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 300 intervals at 95 %, from 40 questions each, 92 to 98 % hold the true difference."""
    found = [paired(*scores(40, seed), resamples=500) for seed in range(300)]
    assert 0.92 <= sum(one.low <= 0.2 <= one.high for one in found) / len(found) <= 0.98


def test_equal_seeds_give_equal_intervals() -> None:
    """The default seed gives these numbers everywhere; another seed gives others, within a hundredth."""
    base, tuned = [0.1, 0.4, 0.35, 0.8, 0.0, 0.62, 0.9], [0.3, 0.41, 0.77, 0.85, 0.25, 0.6, 1.0]
    first, again, other = paired(base, tuned), paired(base, tuned), paired(base, tuned, seed=1)
    assert first == again != other
    assert (first.low, first.high) == pytest.approx((0.047142857142857104, 0.2557142857142857), abs=1e-12)
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.01)


def test_many_questions_need_no_more_memory() -> None:
    """A draw of 10,000 times 3,000 scores, 229 MiB at once, holds less than 40 MiB."""
    import tracemalloc

    tracemalloc.start()
    paired([0.0] * 3000, [0.0, 1.0] * 1500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_one_question_has_no_spread() -> None:
    """From one question low and high are the difference."""
    assert paired([0.25], [1]) == Interval(0.75, 0.75, 0.75)


@pytest.mark.parametrize(("base", "tuned"), [([], []), ([1.0], []), ([1.0], [1.0, 0.5])])
def test_scores_that_are_not_pairs_are_refused(base: list[float], tuned: list[float]) -> None:
    """No questions, or a question with one score, is an error and no interval."""
    with pytest.raises(ValueError, match="at least one question"):
        paired(base, tuned)
