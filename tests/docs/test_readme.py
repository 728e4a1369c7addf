"""The README's table of exit codes is the exception tree's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from temper import errors

ROOT = Path(__file__).resolve().parents[2]
# Of no class: done, a fault in Temper itself, and Ctrl-C.
OTHERS = {0, 1, 130}


def kinds() -> list[type[errors.TemperError]]:
    """Return every kind of error that the exception tree has."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TemperError)]


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    """No two classes share a code, none is a code that means something else, and each says what it stands for."""
    codes = [kind.code for kind in kinds() if kind is not errors.TemperError]
    assert len(codes) > 10
    assert len(set(codes)) == len(codes)
    assert not set(codes) & OTHERS
    assert all(2 <= code < 126 for code in codes)  # the shell's own begin there
    assert all(kind.__doc__ for kind in kinds())


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_lists_each_code_once(name: str) -> None:
    """Every exit code is a row of the README's table, with what it means, and no row is of a code that is not used."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / name).read_text(encoding="utf-8"), re.M)
    assert sorted(int(code) for code, _ in rows) == sorted({kind.code for kind in kinds()} | OTHERS)
    assert len({meaning for _, meaning in rows}) == len(rows)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_becomes_one_line_and_its_code(kind: type[errors.TemperError]) -> None:
    """A program that raises an error of a kind ends with its code, one line with the remedy, and no traceback."""
    program = (
        "import sys; from temper import errors\n"
        f"def run():\n    raise errors.{kind.__name__}('it broke', 'mend it')\n"
        "errors.main(run)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (kind.code, "error: it broke; mend it\n")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted\n"),
        ("OSError(28, 'No space left on device', 'x')", 10, "free some space or choose another place with BUILD=DIR"),
        ("PermissionError(13, 'Permission denied', 'x')", 10, "give a path that this user can read and write\n"),
        ("FileExistsError(17, 'File exists', 'x')", 10, "'x'; give a path that this user can read and write\n"),
        ("ValueError('a fault of ours')", 1, "Traceback"),
    ],
)
def test_other_endings_have_their_codes(raised: str, code: int, said: str) -> None:
    """Ctrl-C, a full disk and a place that cannot be written have codes; a fault in Temper shows itself."""
    program = f"from temper import errors\ndef run():\n    raise {raised}\nerrors.main(run)"
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr
