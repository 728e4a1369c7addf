"""A scratch repository for each test of the graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import scratch


@pytest.fixture
def repo(tmp_path: Path) -> scratch.Repo:
    """Return a fresh copy in which nothing is made yet."""
    return scratch.copy(tmp_path / "repo")


@pytest.fixture
def made(repo: scratch.Repo) -> scratch.Repo:
    """Return a copy in which everything up to the merged model is made and current."""
    assert repo.merge() == scratch.STAGES
    return repo
