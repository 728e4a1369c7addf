"""What the README shows is what `make` has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = ["README.md", "README.zh-CN.md"]


def goals() -> dict[str, str]:
    """Return each goal that `make help` lists, with its line."""
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {match[1]: match[0].strip() for match in re.finditer(r"^  make ([a-z-]+) .*$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", READMES)
def test_the_goals_are_those_of_make_help(name: str) -> None:
    """Each README holds every line of `make help`'s goals, word for word."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(goals()) > 15
    assert [line for line in goals().values() if line not in text] == []


@pytest.mark.parametrize("name", READMES)
def test_every_make_command_shown_exists(name: str) -> None:
    """Whatever follows `make` at the start of a shown command is a goal."""
    shown = set()
    for line in re.findall(r"^    make ([^#=\n]*?)(?:  |$|#)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        shown |= {word for word in line.split() if re.fullmatch(r"[a-z][a-z-]+", word)}
    assert shown & set(goals())
    assert shown - set(goals()) <= {"mine"}


def test_both_readmes_show_the_same_commands_and_codes() -> None:
    """The Chinese README has the same commands and exit codes as the English one."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in READMES]
    codes = [re.findall(r"^\| (\d+) \|", text, re.MULTILINE) for text in texts]
    programs = [re.findall(r"^    (?:python|bash|curl|\./scripts)\S*.*$", text, re.MULTILINE) for text in texts]
    assert codes[0] == codes[1] and len(codes[0]) > 10
    assert programs[0] == programs[1] and len(programs[0]) > 5
