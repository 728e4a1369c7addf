"""Whether the code in an answer passes its unit tests, run in a child process that the kernel shuts in (confine.py).

What a pass rests on: the child is never told what the tests expect. An assert such as `f(2) == 3`, `f(2) is None` or
`not f(2)` is split here; the child gets `f(2)`, sends the value as text, and this process compares. An answer that
leaves early, os._exit(0) too, has sent too few values; one that reads its own process, patches Python or returns an
object that equals everything finds nothing to copy and nothing to persuade.

What a determined answer can still do: other asserts (`f(2) < 3`, `f(2) == g(2)`, those in a loop or a function) are
judged in the child and believed, so code that knows this protocol can claim them; likewise whatever is true or false
can be guessed. Tests should compare with literals. The reason for a failure may be invented.
"""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from temper.errors import MachineError
from temper.eval import confine

CPU_S, MEMORY = 10, 512 * 2**20  # seconds and bytes one run may take; twice the seconds by the clock
_RESULTS = 2**20  # bytes a child may send
_REMEDY = "code runs only where Linux 5.13 or newer offers Landlock and seccomp (containers too must allow them)"


@dataclass(frozen=True)
class Outcome:
    """Whether code passed its tests, and why not in one short line ("" when it did)."""

    passed: bool
    why: str


class _Step(NamedTuple):
    kind: str  # see confine._step
    source: str
    wanted: str
    shown: str  # how a reason names it


def code_of(answer: str) -> str:
    """Return the first fenced code block of an answer, or the whole answer when there is none."""
    block = re.search(r"```[^\n`]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return block[1] if block else answer


def _parts(test: ast.expr) -> list[ast.expr]:
    """Return the conditions that `and` joins."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [part for value in test.values for part in _parts(value)]
    return [test]


def _claim(test: ast.expr) -> tuple[str, str, str]:
    """Split a condition into kind, what the child evaluates, and what it must send, which it does not get."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return "truth", ast.unparse(test.operand), "False"
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        with suppress(ValueError, TypeError):  # the right side is no literal
            wanted, left = ast.literal_eval(test.comparators[0]), ast.unparse(test.left)
            if isinstance(test.ops[0], ast.Eq):
                return "value", left, confine.plain(wanted)
            if isinstance(test.ops[0], ast.Is) and (wanted is None or isinstance(wanted, bool)):
                return "same", left, str(wanted)
    return "truth", ast.unparse(test), "True"


def _steps(code: str, tests: str) -> list[_Step]:
    """Return the code and each statement of the tests as steps; SyntaxError when the tests are not Python."""
    steps = [_Step("run", code, confine.DONE, "")]
    for node in ast.parse(tests).body:
        shown = " ".join(ast.unparse(node).split())
        if isinstance(node, ast.Assert):
            steps += [_Step(*_claim(part), shown) for part in _parts(node.test)]
        else:
            steps.append(_Step("run", ast.unparse(node), confine.DONE, shown))
    return steps


def _run(steps: list[_Step], cpu_s: int, memory: int) -> tuple[list[str], str]:
    """Run steps in a child; return the lines it sent, and how it ended. MachineError when it cannot be shut in."""
    import marshal
    import subprocess
    import sys
    import tempfile
    import threading
    import time

    program = marshal.dumps((cpu_s, memory, [(step.kind, step.source) for step in steps]))
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(confine.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env={},
            start_new_session=True,
        ) as child,
    ):
        assert child.stdin and child.stdout
        clock = threading.Timer(2 * cpu_s, child.kill)
        clock.start()
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(program)
                child.stdin.close()
            sent = child.stdout.read(_RESULTS)  # to the end of the child, or to this many bytes
            if len(sent) < _RESULTS:
                child.wait()
        finally:
            clock.cancel()
            child.kill()
    lines = sent.decode("utf-8", "replace").split("\n")[:-1]
    ended = _ended(child.returncode, time.monotonic() - started, cpu_s)
    if lines[:1] != [confine.CONFINED]:
        raise MachineError(f"the sandbox does not start: {lines[0] if lines else ended}", _REMEDY)
    return lines[1:], "too much output" if len(sent) == _RESULTS else ended


def _ended(status: int, took_s: float, cpu_s: int) -> str:
    import signal

    if status == -signal.SIGXCPU or (status == -signal.SIGKILL and took_s >= cpu_s):
        return f"time limit of {cpu_s} s"
    return f"ended by signal {-status}" if status < 0 else "called exit"


def _reason(step: _Step, said: str, memory: int) -> str:
    """Say in one printable line why `said` is not what `step` wanted."""
    if said.startswith("!"):
        error = said[1:].rstrip(":")
        name = error.partition(":")[0]
        if name == "MemoryError":
            return f"memory limit of {memory // 2**20} MiB"
        if name == "SystemExit":
            return "called exit"
        text = f"{error} at: {step.shown}" if step.shown else error
    else:
        text = f"AssertionError at: {step.shown}" + (f" (got {said[:60]})" if step.kind == "value" else "")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:300]


def passes(answer: str, tests: str, cpu_s: int = CPU_S, memory: int = MEMORY) -> Outcome:
    """Say whether the code in `answer` passes `tests`, assert statements and helpers run after it in its namespace.

    `cpu_s` is in seconds, `memory` in bytes. MachineError where the kernel cannot shut the code in: nothing runs then.
    A value is compared as plain data: an object of the answer's own class equals no literal, whatever its __eq__ says.
    """
    try:
        steps = _steps(code_of(answer), tests)
    except (SyntaxError, ValueError) as error:
        return Outcome(False, f"the unit tests are not Python: {error}")
    sent, ended = _run(steps, cpu_s, memory)
    for step, said in zip(steps, sent, strict=False):
        if said != step.wanted:
            return Outcome(False, _reason(step, said, memory))
    return Outcome(True, "") if len(sent) == len(steps) else Outcome(False, ended)


@cache
def available() -> str:
    """Say why code cannot be run safely on this machine; "" when it can. Costs one run the first time."""
    try:
        return passes("", "assert 1 == 1").why
    except MachineError as error:
        return str(error)
