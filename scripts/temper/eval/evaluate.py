"""The stage's body: serve base and tuned model in turn, ask both the same, score, and write the table.

One after the other, so that they fit a GPU that holds one. Replies are kept in the work folder as they come.
Written: scores.jsonl (every answer and its scores), metrics.json; times go to run.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper import pipeline, tracking
from temper.eval import asking, cases, harness, judge, summary
from temper.eval.client import Client
from temper.serve import control, session

Config = dict[str, Any]


def run(config: Config, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate a scenario's merged model against its base model; return the stage's result."""
    asked = cases.gather(config, pipeline.folder(config) / "data")
    replies, seconds = {}, {}
    for model in summary.MODELS:
        began = time.monotonic()
        replies[model] = _ask(config, model, asked, work / f"run.{model}.jsonl", say)
        seconds[model] = round(time.monotonic() - began, 1)
    scores = summary.score(asked, replies, _opinions(config, asked, replies, work / "run.judge.jsonl", say), say)
    found = summary.metrics(scores)
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in scores)
    (work / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "metrics.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if trackers := tracking.asked(config["train"]):
        name = f"{config['scenario']}-{config['profile']}"
        tracking.figures(trackers, pipeline.folder(config) / "track", name, summary.figures(found))
    latency = {model: summary.latency(replies[model].values()) for model in summary.MODELS}
    return {
        "summary": _summary(found, len(asked)),
        "run": {"asked": 2 * len(asked), "asking_seconds": seconds, "latency": latency},
    }


def _ask(config: Config, model: str, asked: Sequence[cases.Case], path: Path, say: Callable[[str], None]) -> Any:
    """Return the model's replies; its server is started only when some are missing."""
    known = asking.replies(path)
    if all(case.id in known for case in asked):
        return known
    settings = {**config["eval"], "max_new_tokens": config["eval"]["max_new_tokens"] or config["ask"]["max_new_tokens"]}
    settings["concurrency"] = min(settings["concurrency"], config["serve"]["max_concurrent_requests"])
    resumed = f", {len(known)} of them before" if known else ""
    say(f"eval    asks the {model} model {len(asked)} questions{resumed}")
    with _served(config, model, say) as url:
        client = Client(url, config["serve"]["engine"], session.api_key(config))
        return asking.ask(client, asked, path, settings, config["model"]["end_token"], say)


def _opinions(config: Config, asked: Sequence[cases.Case], replies: Any, path: Path, say: Any) -> dict[str, float]:
    settings = config["eval"]
    if not settings["judge_url"]:
        return {}
    file = settings["judge_key_file"]
    key = Path(file).read_text(encoding="utf-8").strip() if file else None
    client = Client(settings["judge_url"], "openai", key, settings["judge_model"])
    pairs = [case for case in asked if case.set != "retention"]
    return judge.opinions(client, pairs, replies, path, settings["concurrency"], say)


def tasks(config: Config, names: Sequence[str], folder: Path | None, limit: int | None, say: Any) -> None:
    """Run tasks of lm-evaluation-harness against the merged model, and keep the results in build/…/harness.json."""
    manager = harness.find(names, folder)
    with _served(config, "tuned", say) as url:
        client = Client(url, config["serve"]["engine"], session.api_key(config))
        found = harness.run(client, names, manager, config["eval"]["concurrency"], limit)
    for line in harness.table(found):
        say(line)
    harness.save(found, pipeline.folder(config) / "harness.json")


@contextmanager
def _served(config: Config, model: str, say: Callable[[str], None]) -> Iterator[str]:
    """Serve a model for the block; the state stands where `make stop` and the next run find it after a kill."""
    state = session.state_of(config) / f"eval-{model}"
    state.mkdir(parents=True, exist_ok=True)
    try:
        yield session.start_to_evaluate(config, model, state, say)
    finally:
        control.stop(state)


def _summary(found: dict[str, Any], count: int) -> str:
    gain, loss = found["gain"], found["retention_loss"]
    lost = f", retention {-loss['value']:+.3f}" if loss else ""
    return (
        f"{count} questions to both models: gain {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}){lost}"
    )
