"""inference_server.py before it has a model: its options. What it serves is tested in tests/serve."""

from __future__ import annotations

from doors_run import BARE, DOORS, run

SCRIPT = DOORS / "inference_server.py"


def test_help_works_without_packages() -> None:
    """--help names the options and shows the documented commands, by a Python that has nothing installed."""
    done = run(*BARE, SCRIPT, "--help")
    assert (done.code, done.err) == (0, "")
    for option in ("--model_path DIR", "--host HOST", "--port PORT", "--create_client"):
        assert option in done.out
    assert "curl http://localhost:8000/health" in done.out


def test_without_a_model_it_ends_with_2() -> None:
    """No option at all is code 2 and names the one that is needed."""
    done = run(*BARE, SCRIPT)
    assert done.code == 2
    assert "--model_path DIR (or --create_client) is needed" in done.err
