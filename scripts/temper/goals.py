"""The goals that Make calls besides the stages; each is a few lines over the module that does the work."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from temper import child, digests, locking, pipeline, runtime, stage, tracking
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
    """Hash every result again; name each file that is not as recorded, or not the one a later result was made from."""
    config, wrong = configuration(given), 0
    for name in pipeline.ORDER:
        made = pipeline.stage(name, config)
        if not (made.result / "manifest.json").is_file():
            say(f"{name:<7} not made yet")
            continue
        found = [*stage.altered(made.result, digests.read), *stage.unlinked(made)]
        wrong += len(found)
        count = len(stage.manifest(made.result)["outputs"])
        say(f"{name:<7} " + ("; ".join(found) if found else f"{count} files as recorded"))
    if given.key:
        from temper import sign as signing

        if unsigned := signing.verify(config, Path(given.key), say):
            raise ResultError("; ".join(unsigned), "sign what is meant with make sign KEY=, or do not trust it")
    if wrong:
        raise ResultError(
            f"{wrong} file{'s' if wrong > 1 else ''} altered after being made",
            "delete the folder named above and make it again",
        )
    return 0


def sign(given: argparse.Namespace) -> None:
    """Sign what is made with an offline key."""
    from temper import sign as signing

    signing.sign(configuration(given), Path(given.key), say)


def reproduce(given: argparse.Namespace) -> None:
    """Build the results again and compare every digest."""
    from temper import reproduce as again

    again.run(given, configuration(given), say)


def nix_inputs(given: argparse.Namespace) -> None:
    """Put into the Nix store what nix/ builds a scenario from; with --parts also what it builds the image from."""
    from temper.images import nix_store

    config = configuration(given)
    nix_store.tools(say)
    nix_store.base_model(config, say)
    nix_store.image(runtime.image(config), say)
    if given.parts:
        nix_store.image_parts(runtime.image(config), say)


def gate(given: argparse.Namespace) -> None:
    """Say whether the tuned model passed, and raise EvalError when it did not."""
    from temper.eval import verdict

    config = configuration(given)
    found = verdict.of(verdict.measured(pipeline.folder(config) / "eval"), config["eval"])
    say(f"eval    {verdict.line(found)}")
    verdict.refuse_failed(found)


def harness(given: argparse.Namespace) -> None:
    """Run tasks of lm-evaluation-harness against the merged model."""
    from temper.eval import evaluate

    folder = Path(given.task_path) if given.task_path else None
    evaluate.tasks(configuration(given), given.tasks.split(","), folder, given.limit, say)


def webui(given: argparse.Namespace) -> int:
    """Open LLaMA Board with the scenario's settings."""
    from temper.train import settings

    config = configuration(given)
    here, name = pipeline.folder(config), config["model"]["name"]
    folder, base = here / "webui", pipeline.base(config)
    arguments = settings.resolved(config, base, here / "data", folder / "saves")
    folder.mkdir(parents=True, exist_ok=True)
    settings.write(arguments, folder / "settings.yaml", "What make webui filled in.")
    command = [sys.executable, "scripts/llamafactory/web_ui.py", f"--config={folder / 'settings.yaml'}"]
    command += [f"--name={name}", f"--folder={folder}", f"--language={config['report']['language']}"]
    return child.run([*command, f"--port={given.port}"], child.environment())


def tensorboard(given: argparse.Namespace) -> int:
    """Show what training and evaluation wrote for TensorBoard."""
    tracking.refuse_absent(["tensorboard"])
    logs = pipeline.folder(configuration(given)) / "track" / "tensorboard"
    if not logs.is_dir():
        raise ResultError(f"{logs}: nothing was written", "run: make train SET='train.report_to=tensorboard'")
    say(f"tensorboard http://127.0.0.1:{given.port}   stop it with Ctrl-C")
    words = ["tensorboard.main", f"--logdir={logs}", "--host=127.0.0.1", f"--port={given.port}"]
    return child.run([sys.executable, "-m", *words], child.environment())


def compare(given: argparse.Namespace) -> None:
    """Print two runs side by side."""
    from temper.report import compare as side_by_side

    for line in side_by_side.lines(side_by_side.load(given.a), side_by_side.load(given.b)):
        say(line)


def table(given: argparse.Namespace) -> None:
    """Write the READMEs' table from the reports that are there."""
    from temper.report import table as readme

    for line in readme.write():
        say(line)


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
