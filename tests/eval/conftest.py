"""What the tests of evaluation share: a tiny model that knows three answers, and servers of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.serve import serve_model, serving


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a merged folder with a model that knows serve_model.ANSWERS."""
    made = tmp_path_factory.mktemp("model") / "merged"
    serve_model.make(made)
    return made


@contextmanager
def serve(folder: Path, log: Path, *options: str) -> Iterator[serving.Running]:
    """Serve a folder until the block ends."""
    port = serving.free_port()
    argv = [sys.executable, "-m", "temper.serve", "--model-id", str(folder), "--port", str(port), *options]
    with serving.started(argv, port, log) as running:
        yield running


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Running]:
    """Run the server that most of these tests share."""
    with serve(tiny, tmp_path_factory.mktemp("server") / "log", "--max-total-tokens", "400") as running:
        yield running
