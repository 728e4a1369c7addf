"""What the Make recipes call: `python -m temper GOAL --scenario NAME --profile NAME`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

from temper import errors, paths

GOALS = (
    "stage",
    "look",
    "plan",
    "verify",
    "reproduce",
    "sign",
    "nix_inputs",
    "gate",
    "webui",
    "tensorboard",
    "harness",
    "compare",
    "table",
    "serve",
    "ask",
    "stop",
    "logs",
    "status",
    "doctor",
    "new",
    "quickstart",
    "clean",
)


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="temper", description=__doc__)
    parser.add_argument("goal", choices=GOALS)
    parser.add_argument("name", nargs="?", default="", help="for stage: one of the pipeline's")
    parser.add_argument("--scenario", default="customer-service")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--model", default="", help="a base model instead of the scenario's")
    parser.add_argument("--set", default="", dest="overrides", help="'section.key=value …'")
    parser.add_argument("--runtime", default="local", help="where stages run: local, docker or podman")
    parser.add_argument("--question", default="", help="for ask")
    parser.add_argument("--key", default="", help="for sign: a private key; for verify: its public one")
    parser.add_argument("--manifest", default="", help="for reproduce: a manifest.json, or a folder of results")
    parser.add_argument("--parts", action="store_true", help="for nix_inputs: what the image is made of, too")
    parser.add_argument("--a", default="", help="for compare: a run's folder, or SCENARIO/PROFILE")
    parser.add_argument("--b", default="", help="for compare: the other run's")
    parser.add_argument("--tasks", default="", help="for harness: names, with commas between them")
    parser.add_argument("--task_path", default="", help="for harness: a folder with further tasks")
    parser.add_argument("--limit", type=int, default=None, help="for harness: questions of each task")
    parser.add_argument("--port", type=int, default=0, help="for webui and tensorboard")
    parser.add_argument("--input", default="", help="for new: the file with the rows")
    parser.add_argument("--instruction_col", default="")
    parser.add_argument("--output_col", default="")
    return parser.parse_args(argv)


def configuration(given: argparse.Namespace) -> dict[str, Any]:
    """Return the resolved configuration of what was asked for."""
    from temper import pipeline
    from temper.config import cached

    where = pipeline.state(given.scenario, given.profile)
    config = cached.resolved(where, given.scenario, given.profile, given.model, given.overrides)
    return {**config, "runtime": given.runtime}


def say(line: str) -> None:
    """Print a line at once, so that progress is visible through a pipe."""
    print(line, flush=True)


def stage(given: argparse.Namespace) -> int:
    """Bring one stage up to date."""
    from temper import child, pipeline
    from temper import stage as contract

    child.die_with_parent()
    config = configuration(given)
    watch = pipeline.state(given.scenario, given.profile) / f"{given.name}.paths"
    contract.bring_up_to_date(pipeline.stage(given.name, config), pipeline.lock(config), watch, say)
    return 0


def look(given: argparse.Namespace) -> int:
    """Note which stages are current, in their order up to the first that is not: Make then asks about the rest only."""
    from temper import pipeline
    from temper import stage as contract

    config = configuration(given)
    os.environ["WAIT"] = "0"  # another make at work is left to it: what it makes is looked at in turn
    with contextlib.suppress(errors.TemperError, OSError):  # the stage itself says what is wrong
        for name in pipeline.ORDER:
            watch = pipeline.state(given.scenario, given.profile) / f"{name}.paths"
            if not contract.note_if_current(pipeline.stage(name, config), pipeline.lock(config), watch):
                break
    return 0


def run(argv: list[str]) -> int:
    """Do one goal."""
    given = options(argv)
    paths.enter_root()
    if given.goal in ("stage", "look"):
        return stage(given) if given.goal == "stage" else look(given)
    from temper import goals

    return int(getattr(goals, given.goal)(given) or 0)


if __name__ == "__main__":
    errors.main(lambda: run(sys.argv[1:]))
