"""install_llamafactory.sh: its options. The installation itself is what every other test runs on."""

from __future__ import annotations

import shutil
from pathlib import Path

from doors_run import DOORS, ROOT, refused, run

INSTALL = DOORS / "install_llamafactory.sh"


def test_help_installs_nothing(tmp_path: Path) -> None:
    """--help says what the script does, from any folder, and touches no environment."""
    before = (ROOT / ".venv" / "installed").stat().st_mtime_ns
    done = run("bash", INSTALL, "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: bash scripts/llamafactory/install_llamafactory.sh [")
    assert {"--dev", "--ray", "--track", "--lm-eval", "--sign", "--cuda", "--host"} <= {
        line.split()[0] for line in done.out.splitlines() if line.startswith("  -")
    }
    assert (ROOT / ".venv" / "installed").stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_ends_with_2() -> None:
    """-x, and a word too many, end with code 2 and one line, and install nothing."""
    for words in (["-x"], ["--dev", "more"]):
        assert refused(2, "bash", INSTALL, *words).startswith(f"unknown option {' '.join(words)}; see ")


def test_a_python_that_is_not_there_ends_with_11(tmp_path: Path) -> None:
    """PYTHON naming no program ends with code 11 and the command that mends it."""
    copy = tmp_path / "scripts" / "llamafactory" / INSTALL.name
    copy.parent.mkdir(parents=True)
    shutil.copy2(INSTALL, copy)
    line = refused(11, "env", "PYTHON=python9.9", "bash", copy)
    assert line == "there is no python9.9; apt-get install python3 python3-venv"
    assert not (tmp_path / ".venv").exists()
