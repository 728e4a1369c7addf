"""For all tests: Ctrl-C reaches the programs they start, and a machine without container engines is told so, loudly."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess

import pytest

# A shell without job control starts background commands with SIGINT ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOOLS = ("docker", "podman", "buildah", "skopeo", "mmdebstrap", "docker-registry", "docker-compose", "faketime")


@functools.cache
def lacking() -> str:
    """Say what the tests of containers miss here; "" when nothing."""
    if absent := [name for name in TOOLS if not shutil.which(name)]:
        return f"not installed: {', '.join(absent)}"
    silent = [name for name in ("docker", "podman") if subprocess.run([name, "info"], capture_output=True).returncode]
    return f"does not answer: {', '.join(silent)}" if silent else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make golden` asks for."""
    parser.addoption("--record", action="store_true", help="record what tests/quickstart/golden.json holds")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of containers where there are none; in CI it fails."""
    if item.get_closest_marker("containers") and (problem := lacking()):
        if os.environ.get("CI"):
            pytest.fail(f"CI must have container engines; {problem}", pytrace=False)
        pytest.skip(problem)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end that containers were not tested."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "containers" in report.keywords]
    if skipped and lacking():
        terminalreporter.section("CONTAINERS WERE NOT TESTED", red=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {lacking()}.")
        terminalreporter.write_line("bash .ci/run installs and starts what they need on Debian.")
