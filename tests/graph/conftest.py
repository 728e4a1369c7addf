"""A scratch repository for each test of the graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import scratch


@pytest.fixture
def repo(tmp_path: Path) -> scratch.Repo:
    """Return a fresh copy in which nothing is made yet."""
    return scratch.copy(tmp_path / "repo")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> scratch.Repo:
    """Return the copy that `made` is taken from; tests leave it alone."""
    repo = scratch.copy(tmp_path_factory.mktemp("graph") / "repo")
    assert repo.merge() == scratch.STAGES
    return repo


@pytest.fixture
def made(finished: scratch.Repo, tmp_path: Path) -> scratch.Repo:
    """Return a copy in which everything up to the merged model is made and current."""
    repo = scratch.twin(finished, tmp_path / "repo")
    assert repo.merge() == []
    return repo
