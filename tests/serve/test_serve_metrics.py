"""/metrics: TGI 3.3.7's names, types, labels and buckets, so that one dashboard serves both servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, free_port
from test_serve_launcher import started

from temper.serve.metrics import Metrics
from temper.serve.validate import Limits

USER = [{"role": "user", "content": "Who are you?"}]
SHORT = {"inputs": "tick", "parameters": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def fresh(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run a server of which nothing has been asked yet."""
    port, log = free_port(), tmp_path_factory.mktemp("fresh") / "log"
    limits = ("--max-input-tokens", "1000", "--max-total-tokens", "2000", "--max-concurrent-requests", "2")
    url = f"http://127.0.0.1:{port}"
    with started(url, log, "--model-id", str(folder), "--port", str(port), *limits) as running:
        yield running


def scrape(server: Running) -> dict[str, float]:
    """Return the value of each line, having checked that each is one of the text format."""
    response = httpx.get(server.url + "/metrics", trust_env=False)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    return read(response.text)


def read(text: str) -> dict[str, float]:
    """Return the value of each line."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, kind = line.split()
            assert word == "TYPE" and name not in kinds
            kinds[name] = kind
            continue
        name, value = re.fullmatch(r'(\w+(?:\{\w+="[^"]*"(?:,\w+="[^"]*")*\})?) (\S+)', line).groups()  # type: ignore[union-attr]
        plain = re.sub(r"_(bucket|sum|count)$", "", name.split("{")[0])
        assert kinds.get(name.split("{")[0]) in ("counter", "gauge", "summary") or kinds[plain] in (
            "histogram",
            "summary",
        )
        assert name not in found
        found[name] = float(value)
    return found


def change(server: Running, path: str, body: Any) -> dict[str, float]:
    """Return what a request adds to the lines it changes, buckets and durations left out."""
    before = scrape(server)
    server.post(path, body)
    after = scrape(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    kept = {
        name: by for name, by in grown.items() if by and not re.search(r"bucket|duration|batch|queue|skipped", name)
    }
    return {name.removeprefix("tgi_request_"): by for name, by in kept.items()}


def test_nothing_is_told_of_what_was_never_used(fresh: Running) -> None:
    """A metric of requests appears with the first request; then all names of TGI are there and none ends in _total."""
    assert not [name for name in scrape(fresh) if name.startswith("tgi_request_") and "skipped" not in name]
    fresh.post("/generate", SHORT)
    found = scrape(fresh)
    for name in (
        *("duration", "validation_duration", "queue_duration", "inference_duration", "mean_time_per_token_duration"),
        *("generated_tokens", "input_length", "max_new_tokens"),
    ):
        assert found[f"tgi_request_{name}_count"] == 1
        assert found[f'tgi_request_{name}_bucket{{le="+Inf"}}'] == 1
    assert (found["tgi_request_count"], found["tgi_request_success"]) == (1, 1)
    assert not any("_total" in name for name in found)


def test_a_request_is_counted_with_its_tokens(fresh: Running) -> None:
    """One answer is one request, one success, its lengths once; several to choose from are one request."""
    once = {"count": 1, "success": 1, "generated_tokens_count": 1, "input_length_count": 1, "max_new_tokens_count": 1}
    sums = {"generated_tokens_sum": 2, "input_length_sum": 5, "max_new_tokens_sum": 2}
    length = len(fresh.post("/tokenize", SHORT).json())
    assert change(fresh, "/generate", SHORT) == {**once, **sums, "input_length_sum": length}
    assert change(fresh, "/generate_stream", SHORT) == {**once, **sums, "input_length_sum": length}
    both = {"inputs": "tick", "parameters": {"max_new_tokens": 2, "best_of": 2, "do_sample": True, "stop": ["zz"]}}
    of_two = change(fresh, "/generate", both)
    assert (of_two["count"], of_two["success"], of_two["input_length_count"]) == (1, 1, 2)
    assert of_two["generated_tokens_count"] == 1
    assert change(fresh, "/tokenize", SHORT) == {}


def test_openai_routes_count_twice(fresh: Running) -> None:
    """As in TGI: once for the route and once for each answer."""
    chat = {"messages": USER, "max_tokens": 2}
    assert change(fresh, "/v1/chat/completions", chat)["count"] == 2
    assert change(fresh, "/v1/chat/completions", {**chat, "stream": True})["count"] == 2
    assert change(fresh, "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1})["count"] == 3
    assert change(fresh, "/v1/chat/completions", {**chat, "tools": [], "max_tokens": 60})["count"] == 3
    assert change(fresh, "/chat_tokenize", chat) == {"count": 1}


@pytest.mark.parametrize(
    ("path", "body", "counted"),
    [
        ("/generate", {"inputs": ""}, {"count": 1, 'failure{err="validation"}': 1}),
        ("/generate", {"inputs": 1}, {}),
        ("/generate", {"inputs": "a", "parameters": {"best_of": 3}}, {"count": 1}),
        (
            "/generate_stream",
            {"inputs": "a", "parameters": {"best_of": 2}},
            {"count": 1, 'failure{err="validation"}': 1},
        ),
        ("/v1/completions", {"prompt": ["a"] * 5}, {"count": 1, 'failure{err="validation"}': 1}),
        ("/v1/completions", {"prompt": ["a"] * 3, "max_tokens": 500}, {"count": 4, 'failure{err="overloaded"}': 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "tool", "content": ""}]},
            {"count": 1, 'failure{err="template"}': 1},
        ),
        ("/v1/chat/completions", {"messages": USER, "tools": [], "tool_choice": "a"}, {"count": 1}),
    ],
)
def test_failures_have_their_reasons(fresh: Running, path: str, body: Any, counted: dict[str, int]) -> None:
    """Reasons and the failures TGI does not count are its own."""
    found = change(fresh, path, body)
    kept = {name: by for name, by in found.items() if "length" not in name and "tokens" not in name}
    dropped = kept.pop('failure{err="dropped"}', 0)  # those that ran beside one that found no place
    assert kept == counted and dropped == (2 if 'failure{err="overloaded"}' in counted else 0)


def test_hanging_up_counts_as_dropped(fresh: Running) -> None:
    """A client that does not wait for its answer is a failure of its own kind, and no success."""
    before = scrape(fresh)
    body = {"inputs": "tick tock", "parameters": {"max_new_tokens": 1900}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(fresh.url + "/generate", json=body, timeout=0.5, trust_env=False)
    for _ in range(100):
        after = scrape(fresh)
        if after.get('tgi_request_failure{err="dropped"}', 0) > before.get('tgi_request_failure{err="dropped"}', 0):
            break
    else:
        raise AssertionError("never counted")
    assert after["tgi_request_success"] == before["tgi_request_success"]


def test_what_the_engine_says_is_told_as_tgi_tells_it() -> None:
    """Gauges, counters by method and reason, histograms by method, the summary; nothing before its first use."""
    metrics = Metrics(Limits(100, 200))
    assert metrics.render() == ""
    metrics.queue_size(3)
    metrics.batch_size(2, 150)
    metrics.batch("prefill", 2, 0.5, 0.25, 0.125)
    metrics.batch("decode", 2, 0.5, 0.5, 0.25)
    metrics.batch_failed("decode")
    metrics.concat("wait_exceeded", 0.001)
    found = read(metrics.render())
    plain = {name.removeprefix("tgi_"): value for name, value in found.items() if "bucket" not in name}
    spans = {"inference": (0.5, 0.5), "forward": (0.25, 0.5), "decode": (0.125, 0.25), "filter": (0.125, 0.0)}
    of_spans = {
        f'batch_{name}_duration_{part}{{method="{method}"}}': value if part == "sum" else 1
        for name, both in spans.items()
        for method, value in zip(("prefill", "decode"), both, strict=True)
        for part in ("sum", "count")
    }
    quantiles = {f'request_skipped_tokens{{quantile="{each}"}}': 0 for each in (0, 0.5, 0.9, 0.95, 0.99, 0.999, 1)}
    assert plain == {
        **of_spans,
        **quantiles,
        "queue_size": 3,
        "batch_current_size": 2,
        "batch_current_max_tokens": 150,
        'batch_inference_count{method="prefill"}': 1,
        'batch_inference_count{method="decode"}': 2,
        'batch_inference_success{method="prefill"}': 1,
        'batch_inference_success{method="decode"}': 1,
        'batch_inference_failure{method="decode"}': 1,
        'batch_concat{reason="wait_exceeded"}': 1,
        'batch_concat_duration_sum{method="decode"}': 0.001,
        'batch_concat_duration_count{method="decode"}': 1,
        "batch_next_size_sum": 2,
        "batch_next_size_count": 1,
        "request_skipped_tokens_sum": 0,
        "request_skipped_tokens_count": 4,
    }


def test_buckets_are_those_of_tgi() -> None:
    """Durations grow by half from 0.00015 s, lengths have a hundred steps to their limit, bounds are inclusive."""
    metrics = Metrics(Limits(1000, 2000))
    metrics.accepted(10, 21)
    metrics.batch("prefill", 1, 0.0001 * 1.5, 0, 0)
    text = metrics.render()
    bounds = {
        name: re.findall(rf'{name}_bucket\{{.*?le="([^"]+)"\}} (\d+)', text)
        for name in ("input_length", "max_new_tokens", "inference_duration", "next_size")
    }
    assert [len(found) for found in bounds.values()] == [101, 101, 36, 1025]
    assert bounds["input_length"][0] == ("10", "1") and bounds["input_length"][99][0] == "1000"
    assert bounds["max_new_tokens"][:2] == [("20", "0"), ("40", "1")] and bounds["max_new_tokens"][99][0] == "2000"
    assert float(bounds["inference_duration"][0][0]) == pytest.approx(0.00015)
    assert float(bounds["inference_duration"][34][0]) == pytest.approx(0.0001 * 1.5**35)
    assert bounds["inference_duration"][0][1] == "1" and bounds["next_size"][1023][0] == "1024"
