"""A scratch copy of the repository for the tests of `make`."""

from __future__ import annotations

import pytest
from tests.graph import scratch


@pytest.fixture(scope="session")
def repo(tmp_path_factory: pytest.TempPathFactory) -> scratch.Repo:
    """Return a copy with the real stages and a small model, shared by tests that each use scenarios of their own."""
    made = scratch.copy(tmp_path_factory.mktemp("doors") / "repo", real=True)
    scratch.small_model(made)
    return made
