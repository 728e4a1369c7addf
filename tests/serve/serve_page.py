"""A server with the chat page in a process of its own: the options are those of python -m temper.serve."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fastapi import Depends, FastAPI
from serving import Running, environment, free_port, wait_ready

from temper import errors
from temper.serve import __main__ as server
from temper.serve import api, ui

create_app = api.create_app


@contextlib.contextmanager
def serving(model: Path, name: str, log: Path, peers: str = "", key: str = "") -> Iterator[Running]:
    """Run a server; `PORT` in `peers` is its own. It must end in order."""
    port = free_port()
    options = ["--model-id", str(model), "--served-model-name", name, "--port", str(port), "--max-total-tokens", "2000"]
    env = {**environment(), ui.PEERS: peers.replace("PORT", str(port)), **({"TEMPER_API_KEY": key} if key else {})}
    with open(log, "wb") as out:
        process = subprocess.Popen([sys.executable, __file__, *options], stdout=out, stderr=out, env=env)
    running = Running(f"http://127.0.0.1:{port}", log, process)
    try:
        wait_ready(running)
        yield running
    finally:
        process.terminate()
        assert process.wait(15) == 0


def endless(folder: Path, copy: Path) -> Path:
    """Return a copy of a model with an end token that it has not learnt."""
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": [0]}')
    return copy


def with_page(made: api.Server) -> FastAPI:
    """Return the application with the page."""
    app = create_app(made)
    ui.add(app, made.model_id, ui.peers(os.environ.get(ui.PEERS, "")), [Depends(api.require_key)])
    return app


if __name__ == "__main__":
    api.create_app = with_page
    errors.main(server.run)
