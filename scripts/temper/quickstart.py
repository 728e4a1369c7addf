"""Everything once: make the model, serve it, and show the base model's answers beside the tuned one's."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper import child, pipeline, runtime
from temper.errors import AnswerError, ConfigError
from temper.eval import answers
from temper.paths import BUILD
from temper.serve import control, ports, session


@contextmanager
def _base_server(config: dict[str, Any]) -> Iterator[str]:
    """Serve the base model on a free port for the block."""
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch)
        try:
            yield session.start_base(config, state, ports.free(), print)
        finally:
            control.stop(state)


def _compare(config: dict[str, Any], url: str, say: Callable[[str], None]) -> list[str]:
    """Ask both models the scenario's questions; return what was wrong with the tuned answers."""
    checks, wrong = pipeline.folder(config) / "data" / "checks.jsonl", []
    rows = [answers.row_for(question, checks) for question in config["ask"]["show"]]
    with _base_server(config) as base:
        before = [session.ask(config, base, _question(row), 64) for row in rows]
    for row, untuned in zip(rows, before, strict=True):
        tuned = session.ask(config, url, _question(row))
        lacking = answers.missing(tuned, row)
        say("")
        say(f"  question     {row['instruction']}")
        say(f"  base model   {_short(untuned)}")
        say(f"  tuned model  {_short(tuned)}   [{'wrong' if lacking else 'right'}: {answers.expected(row)}]")
        wrong += [f"{row['instruction']} lacks {', '.join(lacking)}"] if lacking else []
    say("")
    return wrong


def _question(row: dict[str, Any]) -> str:
    return "\n".join(filter(None, (row["instruction"], row["input"])))


def _short(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def run(given: argparse.Namespace, config: dict[str, Any], say: Callable[[str], None]) -> None:
    """Make, serve, ask and judge; raise AnswerError when a tuned answer is not what the data says."""
    child.die_with_parent()
    started = time.monotonic()
    if not config["ask"]["show"]:
        raise ConfigError(f"{config['scenario']}: ask.show is empty", "name the questions to ask in ask.show")
    where = f"profile {config['profile']}, runtime {runtime.describe(config)}"
    say(f"quickstart {config['scenario']}: {config['model']['name']}, {where}")
    pipeline.make("serve", given, BUILD)
    url = session.url(config)
    wrong = _compare(config, url, say)
    named = f"SCENARIO={config['scenario']}"
    say(f"serving at {url}   [{time.monotonic() - started:.0f} s in all]")
    say(f"  ask more:  make ask {named} Q='…'")
    say(f"  stop it:   make stop {named}")
    if wrong:
        raise AnswerError(
            f"the tuned model does not answer as its data says: {'; '.join(wrong)}",
            "train longer: SET='train.num_train_epochs=…'",
        )
