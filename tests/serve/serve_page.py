"""A server with the chat page in a process of its own: the options are those of python -m temper.serve."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from serving import Running, free_port, started


@contextlib.contextmanager
def serving(model: Path, name: str, log: Path, peers: str = "", key: str = "") -> Iterator[Running]:
    """Run a server; `PORT` in `peers` is its own. It must end in order."""
    port = free_port()
    options = ["--model-id", str(model), "--served-model-name", name, "--port", str(port), "--max-total-tokens", "2000"]
    options += [word for peer in peers.replace("PORT", str(port)).split() for word in ("--beside", peer)]
    more = {"TEMPER_API_KEY": key} if key else {}
    with started([sys.executable, "-m", "temper.serve", *options], port, log, **more) as running:
        yield running


def endless(folder: Path, copy: Path) -> Path:
    """Return a copy of a model with an end token that it has not learnt."""
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": [0]}')
    return copy
