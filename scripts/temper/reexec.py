"""Start a front door again in the repository's own environment when it was called with another Python."""

from __future__ import annotations

import importlib.util
import os
import sys

from temper.errors import MachineError
from temper.paths import ROOT


def into_environment() -> None:
    """Return when LLaMA Factory is importable here; else run the same command with .venv's Python.

    Raises MachineError when there is no .venv either.
    """
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists() or os.environ.get("TEMPER_REEXEC"):
        raise MachineError("this Python has no LLaMA Factory", "run: bash scripts/llamafactory/install_llamafactory.sh")
    os.environ["TEMPER_REEXEC"] = "1"
    os.execv(python, [str(python), *sys.argv])
