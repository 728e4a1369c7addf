"""scripts/bench/serve.py against a real server: what it counts is what the server counts, and failures are told."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serve_model
import serve_page
from serving import LIMIT, SCRIPTS, Running, busy, environment, free_port
from tokenizers import Tokenizer

from bench import serve as bench_serve

PROGRAM = str(SCRIPTS / "bench" / "serve.py")


@pytest.fixture(scope="module")
def endless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve a model that never ends an answer."""
    place = tmp_path_factory.mktemp("bench")
    with serve_page.serving(serve_page.endless(folder, place / "model"), "endless", place / "log") as running:
        yield running


def bench(*options: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the benchmark."""
    argv = [sys.executable, PROGRAM, "--out", str(out), *options]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)


def counted(server: Running) -> list[int]:
    """Return the length of each answer that the server sent, tokens."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line["generated_tokens"] for line in lines if line["status"] == 200 and "generated_tokens" in line]


@pytest.mark.parametrize("api", ["openai", "tgi"])
def test_the_figures_follow_from_the_requests(endless: Running, tmp_path: Path, api: str) -> None:
    """Tokens are the server's own count, and rate, medians and ratios follow from each request's times."""
    before = len(counted(endless))
    urls = ["--url", f"one={endless.url}", "--url", f"two={endless.url}/"]
    done = bench(*urls, "--api", api, "--users", "2,1", "--tokens", "24", out=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    raw = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [(one["users"], one["server"]) for one in result["levels"]] == [
        (1, "one"),
        (1, "two"),
        (2, "one"),
        (2, "two"),
    ]
    for one in result["levels"]:
        rows = [row for row in raw if (row["server"], row["users"]) == (one["server"], one["users"])]
        check(one, rows)
        assert f"| {one['users']} | {one['server']} | {one['first_median']:.3f} |" in done.stdout
    measured = [tokens for tokens in counted(endless)[before:] if tokens == 24]
    assert len(measured) == len(raw) == 32
    rates = [one["tokens_per_s"] for one in result["levels"]]
    ratios = [row.split(" | ")[7] for row in done.stdout.splitlines()[2:6]]
    assert ratios == ["1.00", f"{rates[1] / rates[0]:.2f}", "1.00", f"{rates[3] / rates[2]:.2f}"]
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1


def check(one: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Work out a level's figures from its requests once more."""
    assert (one["requests"], one["failed"]) == (len(rows), 0) == (8, 0)
    assert one["tokens"] == sum(row["tokens"] for row in rows) == 24 * 8
    assert one["seconds"] == pytest.approx(max(row["times"][-1] for row in rows) - min(row["sent"] for row in rows))
    assert one["tokens_per_s"] == pytest.approx(one["tokens"] / one["seconds"])
    assert one["first_median"] == pytest.approx(statistics.median(row["times"][0] - row["sent"] for row in rows))
    gaps = sorted(after - before for row in rows for before, after in itertools.pairwise(row["times"]))
    assert one["gap_median"] == pytest.approx(statistics.median(gaps))
    assert one["gap_p95"] == pytest.approx(statistics.quantiles(gaps, n=20, method="inclusive")[18])
    assert 0 <= one["gap_median"] <= one["gap_p95"] <= one["seconds"]
    # One user at a time is one request at a time.
    spans = sorted((row["sent"], row["times"][-1]) for row in rows)
    together = [end > start for (_, end), (start, _) in itertools.pairwise(spans)]
    assert any(together) == (one["users"] > 1)


def test_failed_requests_are_counted_and_told(server: Running, tmp_path: Path) -> None:
    """A server that refuses everything ends the benchmark with code 1 and its own words, not with a traceback."""
    with busy(server, LIMIT):
        done = bench("--url", server.url, "--users", "1", "--tokens", "8", out=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "8 of 8 requests failed; the first: " in done.stderr and "Model is overloaded" in done.stderr
    [level] = json.loads((tmp_path / "result.json").read_text())["levels"]
    assert (level["failed"], level["tokens"], level["first_median"]) == (8, 0, None)
    assert "| - | - | - | - | 0.0 | - | 8 of 8 |" in done.stdout


def test_no_server_is_one_line(tmp_path: Path) -> None:
    """An address where nothing answers is an error with a remedy."""
    done = bench("--url", f"http://127.0.0.1:{free_port()}", out=tmp_path)
    assert done.returncode == 9
    assert "answers neither /info nor /v1/models; start a server there" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_key_is_sent_and_not_shown(folder: Path, tmp_path: Path) -> None:
    """A key from a file opens a server that wants one."""
    (tmp_path / "key").write_text("Key-of-the-bench\n")
    with serve_page.serving(
        serve_page.endless(folder, tmp_path / "model"), "x", tmp_path / "log", key="Key-of-the-bench"
    ) as locked:
        options = ["--url", locked.url, "--users", "1", "--tokens", "8"]
        assert bench(*options, out=tmp_path).returncode == 1
        done = bench(*options, "--key-file", str(tmp_path / "key"), out=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Key-of-the-bench" not in done.stdout + done.stderr + (tmp_path / "result.json").read_text()


def test_a_server_without_a_count_is_counted_for(folder: Path) -> None:
    """Words that came one by one are counted as the tokens they are, or as pieces, and it is said which."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = serve_model.ANSWERS["Who are you?"]
    words = [float(at) for at in range(len(text.split()))]
    replies = [bench_serve.Reply(0, words, text), bench_serve.Reply(0, words, text, tokens=99)]
    by_tokens = [(reply.tokens, reply.counted) for reply in bench_serve.counted(copy.deepcopy(replies), tokenizer)]
    by_pieces = [(reply.tokens, reply.counted) for reply in bench_serve.counted(copy.deepcopy(replies), None)]
    assert by_tokens == [(len(tokenizer.encode(text, add_special_tokens=False).ids), "tokenizer"), (99, "server")]
    assert by_pieces == [(len(words), "pieces"), (99, "server")]
    assert by_tokens[0][0] > len(words)
