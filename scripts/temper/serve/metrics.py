"""TGI 3.3.7's Prometheus metrics: names, types, labels and buckets (router/src/server.rs, backends/v3/src).

Written as text here because prometheus_client ends every counter's name in `_total`, which TGI does not.
A metric appears with its first use. Methods may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from temper.serve.engine import End
from temper.serve.validate import Limits

DURATIONS = [0.0001 * 1.5**n for n in range(1, 36)]  # seconds
SIZES = [float(n) for n in range(1, 1025)]  # requests in a batch
QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    """Observations counted by the lowest bound that holds them."""

    bounds: Sequence[float]
    counts: Counter[int] = field(default_factory=Counter)
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        below = 0
        for number, bound in enumerate([*map(_number, self.bounds), "+Inf"]):
            below += self.counts[number]
            yield f"{_named(f'{name}_bucket', (*labels, ('le', bound)))} {below}"
        yield f"{_named(f'{name}_sum', labels)} {_number(self.total)}"
        yield f"{_named(f'{name}_count', labels)} {below}"


class Metrics:
    """What has been counted since the start."""

    def __init__(self, limits: Limits) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, Labels]] = Counter()
        self._gauges: dict[str, int] = {}
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}
        self._bounds = {
            "tgi_request_input_length": _hundred(limits.max_input_tokens),
            "tgi_request_generated_tokens": _hundred(limits.max_total_tokens),
            "tgi_request_max_new_tokens": _hundred(limits.max_total_tokens),
            "tgi_batch_next_size": SIZES,
        }

    # What the engine says.

    def queue_size(self, size: int) -> None:
        """Set how many requests wait."""
        self._set(tgi_queue_size=size)

    def batch_size(self, size: int, max_tokens: int) -> None:
        """Set how many requests run together, and how many tokens they may come to."""
        self._set(tgi_batch_current_size=size, tgi_batch_current_max_tokens=max_tokens)

    def batch(self, method: str, size: int, total_s: float, forward_s: float, decode_s: float) -> None:
        """Count a pass ("prefill" or "decode") over `size` requests, in seconds: all, the model, choosing tokens."""
        self._count("tgi_batch_inference_count", method=method)
        self._count("tgi_batch_inference_success", method=method)
        spans = {"inference": total_s, "forward": forward_s, "decode": decode_s}
        spans["filter"] = max(total_s - forward_s - decode_s, 0.0)
        for name, seconds in spans.items():
            self._observe(f"tgi_batch_{name}_duration", seconds, method=method)
        if method == "prefill":
            self._observe("tgi_batch_next_size", size)
        self._count("tgi_request_skipped_tokens", size)

    def batch_failed(self, method: str) -> None:
        """Count a pass that failed."""
        self._count("tgi_batch_inference_count", method=method)
        self._count("tgi_batch_inference_failure", method=method)

    def concat(self, reason: str, seconds: float) -> None:
        """Count new requests that joined running ones, by "backpressure", "chunking" or "wait_exceeded"."""
        self._count("tgi_batch_concat", reason=reason)
        self._observe("tgi_batch_concat_duration", seconds, method="decode")

    # What the routes say.

    def request(self) -> None:
        """Count a request; as in TGI those to /v1/… count twice, once for themselves and once for each answer."""
        self._count("tgi_request_count")

    def failed(self, reason: str) -> None:
        """Count a failure: validation, overloaded, incomplete, template, generation or dropped."""
        self._count("tgi_request_failure", err=reason)

    def accepted(self, input_length: int, max_new_tokens: int) -> None:
        """Count a request that passed validation, in tokens."""
        self._observe("tgi_request_input_length", input_length)
        self._observe("tgi_request_max_new_tokens", max_new_tokens)

    def answered(self, arrived: float, end: End) -> None:
        """Count an answer to a request that came at `arrived` (time.monotonic())."""
        now = time.monotonic()
        spans = {
            "duration": now - arrived,
            "validation_duration": end.queued - arrived,
            "queue_duration": end.started - end.queued,
            "inference_duration": now - end.started,
            "mean_time_per_token_duration": (now - end.started) / end.tokens,
        }
        self._count("tgi_request_success")
        for name, seconds in spans.items():
            self._observe(f"tgi_request_{name}", max(seconds, 0.0))
        self._observe("tgi_request_generated_tokens", end.tokens)

    def render(self) -> str:
        """Return all in Prometheus' text format."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _count(self, name: str, by: int = 1, **labels: str) -> None:
        with self._lock:
            self._counters[name, tuple(labels.items())] += by

    def _set(self, **values: int) -> None:
        with self._lock:
            self._gauges |= values

    def _observe(self, name: str, value: float, **labels: str) -> None:
        key = name, tuple(labels.items())
        with self._lock:
            if key not in self._histograms:
                self._histograms[key] = _Histogram(self._bounds.get(name, DURATIONS))
            self._histograms[key].add(value)

    def _lines(self) -> Iterator[str]:
        counters = dict(self._counters)
        skipped = counters.pop(("tgi_request_skipped_tokens", ()), None)
        for name, group in _grouped(counters):
            yield f"# TYPE {name} counter"
            yield from (f"{_named(name, labels)} {counters[name, labels]}" for labels in group)
        for name, value in sorted(self._gauges.items()):
            yield f"# TYPE {name} gauge"
            yield f"{name} {value}"
        for name, group in _grouped(self._histograms):
            yield f"# TYPE {name} histogram"
            for labels in group:
                yield from self._histograms[name, labels].lines(name, labels)
        if skipped is not None:
            yield from _skipped(skipped)


def _skipped(count: int) -> Iterator[str]:
    """Write TGI's only summary: tokens gained by speculation for each step, always 0 as nothing is speculated."""
    name = "tgi_request_skipped_tokens"
    yield f"# TYPE {name} summary"
    yield from (f'{name}{{quantile="{each}"}} 0' for each in QUANTILES)
    yield f"{name}_sum 0"
    yield f"{name}_count {count}"


def _grouped(keys: Iterable[tuple[str, Labels]]) -> Iterator[tuple[str, list[Labels]]]:
    found: dict[str, list[Labels]] = {}
    for name, labels in sorted(keys):
        found.setdefault(name, []).append(labels)
    yield from found.items()


def _hundred(limit: int) -> list[float]:
    return [limit / 100 * n for n in range(1, 101)]


def _named(name: str, labels: Labels) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{name}{{{inside}}}" if inside else name


def _number(value: float) -> str:
    """Write a number as Rust does: no fraction for a whole one."""
    return repr(value).removesuffix(".0")
