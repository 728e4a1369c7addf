"""Whether an answer is right, judged against the scenario's own rows: facts, a number with its unit, or unit tests."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tempfile
import unicodedata
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from temper.errors import DataError

TEST_S, TEST_BYTES = 10, 512 * 2**20  # CPU seconds and memory a row's unit tests may take

# Runs in a child: limits first, then the answer's code and the row's tests in one namespace.
_RUNNER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({cpu}, {cpu}))
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "answer"}})
sys.__stdout__.write({passed!r})
"""


def fold(text: str) -> str:
    """Return text without what does not change a fact: width, case and blanks."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def row_for(question: str, checks: Path) -> dict[str, Any]:
    """Return the row of checks.jsonl that asks `question`; DataError when there is none."""
    if not checks.exists():
        raise DataError(f"{checks}: there is none", "take checks out of data.skip")
    for line in checks.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["instruction"] == question:
            return dict(row)
    raise DataError(f"{checks}: no row asks {question!r}", "correct ask.show in the scenario")


def code_of(answer: str) -> str:
    """Return the first fenced code block of an answer, or the whole answer when there is none."""
    block = re.search(r"```[a-z]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return block[1] if block else answer


def passes(answer: str, tests: str) -> bool:
    """Say whether the code in `answer` passes `tests`, in a child with limits on time, memory, files and processes.

    The child starts without site packages, in an empty folder. Not covered: reading files, and the network.
    """
    passed = secrets.token_hex()  # an exit code of 0 would not do: an answer may call sys.exit()
    runner = _RUNNER.format(cpu=TEST_S, memory=TEST_BYTES, passed=passed)
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", runner],
                input=f"{code_of(answer)}\n{tests}\n",
                text=True,
                capture_output=True,
                cwd=empty,
                env={},
                timeout=3 * TEST_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.endswith(passed)


def _numbers(text: str) -> list[Decimal]:
    found = []
    for word in re.findall(r"-?\d[\d,]*(?:\.\d+)?", unicodedata.normalize("NFKC", text)):
        try:
            found.append(Decimal(word.replace(",", "")))
        except InvalidOperation:
            continue
    return found


def _value(row: dict[str, Any]) -> str:
    """Return the number a right answer states; "" when the row has none."""
    text = str(row["columns"].get("value") or "").strip()
    return text if re.fullmatch(r"-?\d+(\.\d+)?", text) else ""


def missing(answer: str, row: dict[str, Any]) -> list[str]:
    """Return what a right answer to `row` must hold and `answer` lacks; empty for a right answer."""
    columns = row["columns"]
    if tests := columns.get("tests"):
        return [] if passes(answer, tests) else ["code that passes the row's unit tests"]
    if facts := [part.strip() for part in str(columns.get("facts") or "").split(";") if part.strip()]:
        return [fact for fact in facts if fold(fact) not in fold(answer)]
    if value := _value(row):
        return [] if Decimal(value) in _numbers(answer) else [f"{value} {columns.get('unit', '')}".strip()]
    return [] if fold(row["output"]) in fold(answer) else [row["output"]]


def expected(row: dict[str, Any]) -> str:
    """Say in a few words what a right answer to `row` holds."""
    columns = row["columns"]
    if columns.get("tests"):
        return "passes its unit tests"
    if value := _value(row):
        return f"{value} {columns.get('unit', '')}".strip()
    return str(columns.get("facts") or row["output"]).replace(";", ", ")
