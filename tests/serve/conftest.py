"""What the server's tests share: one tiny model, one server process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serve_model
from serving import LIMIT, SCRIPTS, Running, free_port, started


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a merged folder with a model that knows serve_model.ANSWERS."""
    made = tmp_path_factory.mktemp("model") / "merged"
    serve_model.make(made)
    return made


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run the server that most tests share, through the program a person calls; SIGTERM must end it with 0."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    argv = [sys.executable, str(SCRIPTS / "llamafactory" / "inference_server.py"), "--model_path", str(folder)]
    argv += ["--host", "0.0.0.0", "--port", str(port), "--served-model-name", "tiny", "--max-input-tokens", "1000"]
    argv += ["--max-total-tokens", "2000", "--max-concurrent-requests", str(LIMIT)]
    with started(argv, port, log) as running:
        yield running


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return what starts a server of the test's own, with further options and variables; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, **variables: str) -> Running:
            port = free_port()
            argv = [sys.executable, "-m", "temper.serve", "--model-id", str(folder), "--port", str(port), *options]
            return stack.enter_context(started(argv, port, tmp_path / "log", **variables))

        yield start
