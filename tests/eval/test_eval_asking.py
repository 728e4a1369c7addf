"""Asking many questions: in order, a few at a time, and none twice after `kill -9`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.serve import serve_model
from tests.serve.serving import Running, environment

from temper.eval import asking
from temper.eval.cases import Case
from temper.eval.client import Client

SETTINGS = {"concurrency": 3, "max_new_tokens": 30}
QUESTIONS = [*serve_model.ANSWERS, *(f"{number}. tick" for number in range(40))]

PROGRAM = """
import json, sys
from pathlib import Path
from temper.eval import asking
from temper.eval.cases import Case
from temper.eval.client import Client
url, path, questions, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
cases = [
    Case(f"checks-{n:04}", "checks", [{"role": "user", "content": said}], {"output": "tick tock", "columns": {}})
    for n, said in enumerate(questions)
]
asking.ask(Client(url, "local"), cases, path, settings, "<|im_end|>", print)
"""


def cases() -> list[Case]:
    """Return the questions as cases."""
    row = {"output": "tick tock", "columns": {}}
    return [
        Case(f"checks-{n:04}", "checks", [{"role": "user", "content": said}], row) for n, said in enumerate(QUESTIONS)
    ]


def answered(server: Running) -> int:
    """Return how many chat requests the server has answered, by its own access log."""
    return sum('"/v1/chat/completions"' in line for line in server.log.read_text().splitlines())


def test_every_case_is_answered_once_and_in_order(server: Running, tmp_path: Path) -> None:
    """Replies come back in the order of the cases, with the answers the model knows, and stand in the file."""
    before = answered(server)
    found = asking.ask(Client(server.url, "local"), cases(), tmp_path / "run.x.jsonl", SETTINGS, "<|im_end|>", print)
    assert list(found) == [case.id for case in cases()]
    assert found["checks-0002"]["answer"].startswith("def add(a, b):")
    assert found["checks-0000"]["nats"] > found["checks-0000"]["answer_tokens"]  # it does not say tick tock
    assert asking.replies(tmp_path / "run.x.jsonl") == found
    assert answered(server) - before == len(QUESTIONS)


def test_after_kill_9_nothing_kept_is_asked_twice(server: Running, tmp_path: Path) -> None:
    """A killed run's replies stay, but for a line it was writing; the next run asks the rest only."""
    path, before = tmp_path / "run.base.jsonl", answered(server)
    argv = [sys.executable, "-c", PROGRAM, server.url, str(path), json.dumps(QUESTIONS), json.dumps(SETTINGS)]
    killed = subprocess.Popen(argv, env=environment())
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert killed.poll() is None
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with open(path, "ab") as file:
        file.write(b'{"id": "checks-00')
    kept = asking.replies(path)
    assert 5 <= len(kept) < len(QUESTIONS)
    until = time.monotonic() + 10
    while (underway := answered(server) - before) < len(kept) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)  # those that were under way end
    underway = answered(server) - before
    assert underway <= len(kept) + SETTINGS["concurrency"]
    done = subprocess.run(argv, env=environment(), check=True, capture_output=True, text=True)
    assert done.returncode == 0
    found = asking.replies(path)
    assert found.keys() == {case.id for case in cases()}
    assert {name: found[name] for name in kept} == kept
    assert answered(server) - before - underway == len(QUESTIONS) - len(kept)
    assert path.read_bytes().count(b"\n") == len(QUESTIONS)


def test_a_refused_question_is_kept_with_its_reason(server: Running, tmp_path: Path) -> None:
    """A prompt that is too long counts as unanswered, and the run goes on."""
    long = Case(
        "checks-0000", "checks", [{"role": "user", "content": "tick tock " * 400}], {"output": "", "columns": {}}
    )
    found = asking.ask(Client(server.url, "local"), [long, *cases()[1:2]], tmp_path / "r", SETTINGS, "", print)
    assert "tokens" in found["checks-0000"]["error"]
    assert found["checks-0000"]["seconds"] is None
