"""The goals that Make calls besides the stages; each is a few lines over the module that does the work."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from temper import digests, locking, pipeline, runtime, stage
from temper.__main__ import configuration, say
from temper.errors import ResultError, UsageError


def plan(given: argparse.Namespace) -> None:
    """Print what would run, why, and what it needs."""
    from temper.plan import plan as planner
    from temper.serve import session

    config = configuration(given)
    for line in [*planner.lines(config), *session.plan_lines(config)]:
        say(line)


def verify(given: argparse.Namespace) -> int:
    """Hash every file of every result again and name each that is not what its manifest says."""
    config, wrong = configuration(given), 0
    for name in pipeline.ORDER:
        result = pipeline.stage(name, config).result
        if not (result / "manifest.json").is_file():
            say(f"{name:<7} not made yet")
            continue
        found = stage.altered(result, digests.read)
        wrong += len(found)
        count = len(stage.manifest(result)["outputs"])
        say(f"{name:<7} " + ("; ".join(found) if found else f"{count} files as recorded"))
    if wrong:
        raise ResultError(
            f"{wrong} file{'s' if wrong > 1 else ''} altered after being made",
            "delete the folder named above and make it again",
        )
    return 0


def serve(given: argparse.Namespace) -> None:
    """Serve the merged model in the background and say where."""
    from temper.serve import session

    session.start(configuration(given), say)


def ask(given: argparse.Namespace) -> None:
    """Ask the running server one question and print the answer."""
    from temper.serve import session

    if not given.question.strip():
        raise UsageError("there is no question", "write make ask Q='How long is the warranty?'")
    config = configuration(given)
    say(session.ask(config, session.url(config), given.question))


def stop(given: argparse.Namespace) -> None:
    """Stop the server of a scenario and profile."""
    from temper.serve import session

    say(session.stop(given.scenario, given.profile))


def logs(given: argparse.Namespace) -> int:
    """Print the server's log."""
    log = pipeline.state(given.scenario, given.profile) / "server.log"
    if not log.is_file():
        raise ResultError(f"{log}: there is no log yet", "run: make serve")
    return subprocess.call(["tail", "-n", "100", str(log)])


def status(given: argparse.Namespace) -> None:
    """Say what is made, how large and how long it took, and whether the server runs."""
    from temper.serve import session

    config = configuration(given)
    say(
        f"status  {config['scenario']}, profile {config['profile']}, model {config['model']['name']}, "
        f"runtime {runtime.describe(config)}"
    )
    for name in pipeline.ORDER:
        say(_made(name, pipeline.stage(name, config).result))
    say(f"serve   {session.status_line(given.scenario, given.profile)}")


def _made(name: str, result: Path) -> str:
    try:
        outputs = stage.manifest(result)["outputs"]
        run: dict[str, Any] = json.loads((result / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, ResultError):
        return f"{name:<7} not made yet"
    size = stage.human(sum(known["size"] for known in outputs.values()))
    return f"{name:<7} {result}  [{size}, made in {run['seconds']:.1f} s]"


def doctor(given: argparse.Namespace) -> int:
    """Say what this machine has and lacks."""
    from temper import doctor as examination

    return examination.report(given.profile, say, given.runtime)


def new(given: argparse.Namespace) -> None:
    """Write a scenario for the user's own file."""
    from temper import new as writer

    for line in writer.write(given.scenario, given.input, given.instruction_col, given.output_col):
        say(line)


def quickstart(given: argparse.Namespace) -> None:
    """Do everything once and show that the tuned model answers."""
    from temper import quickstart as start

    start.run(given, configuration(given), say)


def clean(given: argparse.Namespace) -> None:
    """Stop the server and delete what was made for a scenario and profile."""
    from temper.serve import session

    here = pipeline.state(given.scenario, given.profile).parent
    if not here.exists():
        say(f"clean   {here}: nothing there")
        return
    session.stop(given.scenario, given.profile)
    with locking.held(here / ".lock", "make clean"):
        shutil.rmtree(here)
    say(f"clean   {here} deleted")
