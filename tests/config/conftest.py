"""A fresh folder with configuration for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from config_site import ROOT, Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Work in a fresh folder with the shipped configuration."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "rows.csv").write_text("question,answer\nq,a\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)
