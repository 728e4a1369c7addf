"""What this repository gave when `make golden` was last run: digests where bytes are promised, losses in a bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from quickstart_helpers import ROOT, Made, manifest, run

from temper.config import resolve

GOLDEN = Path(__file__).with_name("golden.json")
EPOCH = 18  # steps of customer-service
pytestmark = pytest.mark.slow


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a result."""
    return {name: known["sha256"] for name, known in manifest(folder)["outputs"].items()}


def losses(folder: Path) -> list[float]:
    """Return the loss of each step of the first epoch, and the mean of the last one's."""
    rows = [json.loads(line)["loss"] for line in (folder / "loss.jsonl").read_text().splitlines()]
    return [*rows[:EPOCH], round(sum(rows[-EPOCH:]) / EPOCH, 4)]


@pytest.fixture(scope="module")
def now(made: Made) -> dict[str, Any]:
    """Return what is made here."""
    scenarios = resolve.names("scenarios")
    for scenario in scenarios:
        done = run("data", f"SCENARIO={scenario}", f"PORT={made.port}")
        assert done.returncode == 0, done.stderr
    return {
        "model": digests(ROOT / "build/models/smollm2-135m"),
        "data": {scenario: digests(ROOT / "build" / scenario / "cpu" / "data") for scenario in scenarios},
        "losses": losses(made.build / "adapter"),
    }


@pytest.fixture
def known(now: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what is recorded; with --record it is what is made here."""
    if request.config.getoption("--record"):
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
    return dict(json.loads(GOLDEN.read_text()))


def test_digests_are_the_recorded_ones(now: dict[str, Any], known: dict[str, Any]) -> None:
    """The base model's files and the rows of every scenario have the recorded sha256 on every machine."""
    assert (now["model"], now["data"]) == (known["model"], known["data"])


def test_losses_are_the_recorded_ones_within_a_bound(now: dict[str, Any], known: dict[str, Any]) -> None:
    """Another type of CPU rounds otherwise: the first loss within 2 %, the first epoch's mean 5 %, the last's 0.05."""
    assert now["losses"][0] == pytest.approx(known["losses"][0], rel=0.02)
    assert sum(now["losses"][:EPOCH]) == pytest.approx(sum(known["losses"][:EPOCH]), rel=0.05)
    assert now["losses"][-1] == pytest.approx(known["losses"][-1], abs=0.05)
