"""A folder with the shipped configuration and rows of its own, in which a test may write files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from temper.config import resolve
from temper.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = """\
model: smollm2-135m
data:
  path: rows.csv
  columns: {instruction: question, output: answer}
"""


@dataclass
class Site:
    """A working folder with configs/ and rows.csv."""

    root: Path

    def write(self, kind: str, name: str, content: str | bytes) -> None:
        """Write configs/KIND/NAME.yaml."""
        data = content if isinstance(content, bytes) else content.encode()
        (self.root / "configs" / kind / f"{name}.yaml").write_bytes(data)

    def mine(self, more: str = "", profile: str = "cpu", model: str = "", overrides: str = "") -> dict[str, Any]:
        """Resolve a scenario of one's own: SCENARIO and `more`."""
        self.write("scenarios", "mine", SCENARIO + more)
        return resolve.resolve("mine", profile, model, overrides)

    def refusal(self, more: str = "", **given: str) -> str:
        """Return what `mine` says when it refuses."""
        with pytest.raises(ConfigError) as refused:
            self.mine(more, **given)
        return str(refused.value)


def leaves(tree: dict[str, Any], at: str = "") -> Iterator[str]:
    """Yield the dotted key of every value in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"
