"""Joules are added up from the kernel's counters, which wrap, and are absent on most virtual machines."""

from __future__ import annotations

from pathlib import Path

from temper.train.energy import Meter


def counter(folder: Path, name: str, microjoules: int) -> None:
    """Write a counter as powercap shows it, which wraps at 100 J."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("100000000\n")


def test_packages_are_added_up_across_a_wrap(tmp_path: Path) -> None:
    """Both packages count, a part of a package does not again, and a counter that began anew goes on."""
    counter(tmp_path, "intel-rapl:0", 90_000_000)
    counter(tmp_path, "intel-rapl:0:0", 1_000_000)
    counter(tmp_path, "intel-rapl:1", 0)
    meter = Meter(tmp_path)
    assert meter() == 0
    counter(tmp_path, "intel-rapl:0", 10_000_000)
    counter(tmp_path, "intel-rapl:0:0", 9_000_000)
    counter(tmp_path, "intel-rapl:1", 5_000_000)
    assert meter() == 25
    counter(tmp_path, "intel-rapl:1", 6_000_000)
    assert meter() == 26


def test_a_machine_that_tells_nothing_is_not_measured(tmp_path: Path) -> None:
    """Without counters, or where they are for root only, there is no figure rather than a zero."""
    assert Meter(tmp_path)() is None
