"""The resolved configuration, kept as long as none of the files it was read from has changed.

Checking a configuration imports pydantic and reads LLaMA Factory's source: half a second that a make with nothing
to do must not spend.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper import digests
from temper.paths import CONFIGS, lock_file


def _sources(config: dict[str, Any]) -> list[Path]:
    code = [*Path(__file__).parent.glob("*.py"), *(Path(__file__).parents[1] / "models").glob("spec.py")]
    return [*map(Path, config["files"]), *code, lock_file(config["gpu"])]


def inputs(data: dict[str, Any]) -> list[str]:
    """Return the files and folders that a data section names."""
    return [path for key in ("path", "eval_path") for path in listed(data.get(key))]


def listed(value: Any) -> list[Any]:
    """Return a value that may be one or a list as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _still_valid(note: dict[str, Any], asked: list[str]) -> bool:
    try:
        return (
            note["asked"] == asked
            and all(digests.of(path) == known for path, known in note["sources"].items())
            and all(Path(path).exists() for path in inputs(note["config"]["data"]))
        )
    except OSError:
        return False


def resolved(where: Path, scenario: str, profile: str, model: str, overrides: str) -> dict[str, Any]:
    """Return the configuration, from `where`/resolved.json if that is still true; ConfigError as resolve.resolve."""
    path, asked = where / "resolved.json", [scenario, profile, model, overrides, str(CONFIGS)]
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    if note and _still_valid(note, asked):
        return dict(note["config"])
    from temper.config import resolve

    config = resolve.resolve(scenario, profile, model, overrides)
    sources = {str(path): digests.of(path) for path in _sources(config) if path.is_file()}
    digests.write_atomic(path, json.dumps({"asked": asked, "sources": sources, "config": config}))
    return config
