"""Run tasks of lm-evaluation-harness (an optional extra) against a served model, whatever serves it.

The harness's own client for completions wants `echo` and log probabilities, which TGI's /v1/completions does not have;
this one asks for them as eval.client does. Only tasks whose data is on disk run: nothing is fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from temper.errors import ConfigError, MachineError
from temper.eval.client import Client

LONGEST = 256  # tokens of an answer where a task does not say
REMEDY = "make install EXTRA=lm-eval"


def find(tasks: Sequence[str], folder: Path | None) -> Any:
    """Return the harness's manager of tasks, `folder` holding further ones; nothing of what follows fetches anything.

    ConfigError names a task that is not there; MachineError where the harness is not installed.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MachineError("lm-evaluation-harness is not installed here", REMEDY) from None
    manager = TaskManager(include_path=str(folder) if folder else None)
    if absent := [name for name in tasks if not manager.match_tasks([name])]:
        raise ConfigError(f"TASKS: {', '.join(absent)}: no such task", "a folder with task files: TASK_PATH=DIR")
    return manager


def run(client: Client, tasks: Sequence[str], manager: Any, concurrency: int, limit: int | None) -> dict[str, Any]:
    """Return the harness's results for tasks by name; `limit` is the number of questions of each.

    ConfigError names tasks whose data is not on disk.
    """
    from lm_eval import evaluator

    try:
        found = evaluator.simple_evaluate(
            model=_model(client, concurrency),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        if "offline" in str(error).lower() or "Couldn't find" in str(error) or isinstance(error, OSError):
            line = " ".join(str(error).split())[:300]
            raise ConfigError(f"TASKS: {', '.join(tasks)}: the data is not on disk: {line}", "put it there") from None
        raise
    return {"results": found["results"], "versions": found["versions"], "samples": found["n-samples"]}


def table(results: dict[str, Any]) -> Iterator[str]:
    """Give each task's figures, a line each."""
    for task, values in results["results"].items():
        for name, value in values.items():
            metric, _, how = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{how}")
                around = f" ± {error:.4f}" if isinstance(error, float) else ""
                yield f"eval    {task}: {metric} {value:.4f}{around}"


def _model(client: Client, concurrency: int) -> Any:
    from lm_eval.api.model import LM

    class Served(LM):
        """A server as the harness sees a model."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """Return for each (context, continuation) its log likelihood, and whether greedy decoding gives it."""
            return self._each(_continue, requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            """Return the log likelihood of each whole text."""
            return self._each(lambda text: client.continuation("", text)[0], requests)

        def generate_until(self, requests: list[Any]) -> list[str]:
            """Return a greedy answer to each text, up to the task's stop texts."""
            return self._each(_generate, requests)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            """Return a conversation as the server's template writes it."""
            return client.templated(chat_history)

        @property
        def tokenizer_name(self) -> str:
            """Name the model, for the harness's cache of requests, which is not used."""
            return "served"

        def _each(self, ask: Callable[..., Any], requests: list[Any]) -> list[Any]:
            with ThreadPoolExecutor(concurrency) as workers:
                return list(workers.map(lambda request: ask(*request.args), requests))

    def _continue(context: str, rest: str) -> tuple[float, bool]:
        blanks = len(context) - len(context.rstrip())  # belong to the continuation, as with the harness's own models
        cut = len(context) - blanks
        return client.continuation(context[:cut], context[cut:] + rest)

    def _generate(context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        return client.complete(context, settings.get("max_gen_toks") or LONGEST, stops)

    return Served()


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
