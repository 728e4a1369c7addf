"""docs/serving.md names options and files that exist, with the defaults they have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from temper.serve import launcher

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def shown(*command: str) -> str:
    """Return a program's help."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(
        [sys.executable, *command, "--help"], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_every_option_exists() -> None:
    """Each option on the page is one of the server, of its front door or of the benchmark."""
    programs = (["-m", "temper.serve"], ["scripts/bench/serve.py"], ["scripts/llamafactory/inference_server.py"])
    known = {
        word
        for program in programs
        for word in re.findall(
            r"--[\w-]+", shown(*(str(ROOT / word) if word.startswith("scripts") else word for word in program))
        )
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE))
    assert len(named) > 12
    assert named - known - {"--help"} == set()


@pytest.mark.parametrize("name", ["max-concurrent-requests", "port"])
def test_defaults_are_the_launchers(name: str) -> None:
    """The table's numbers are those the server starts with."""
    [row] = [line for line in PAGE.splitlines() if line.startswith("| --") and f"--{name}" in line.split("|")[1]]
    assert str(getattr(launcher.read(["--model-id", "x"]), name.replace("-", "_"))) in row.split("|")[2]


def test_the_page_shows_a_picture() -> None:
    """The picture is there and small."""
    assert 20_000 < (ROOT / "docs" / "ui.png").stat().st_size <= 200_000
