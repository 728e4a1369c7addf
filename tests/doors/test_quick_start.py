"""`./scripts/quick_start.sh SCENARIO`: the one-word start."""

from __future__ import annotations

from pathlib import Path

import pytest
from doors_run import ROOT, refused, run

SCENARIOS = sorted(path.stem for path in (ROOT / "configs" / "scenarios").glob("*.yaml"))


def test_help_names_every_scenario_with_what_it_is_for() -> None:
    """--help lists each scenario with the first line of its file, and how to ask and stop."""
    done = run("./scripts/quick_start.sh", "--help")
    assert (done.code, done.err) == (0, "")
    for name in SCENARIOS:
        first = (ROOT / f"configs/scenarios/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert f"  {name:<18} {first.removeprefix('# ')}\n" in done.out
    assert "make ask SCENARIO=customer-service" in done.out
    assert "make stop SCENARIO=customer-service" in done.out
    assert run("./scripts/quick_start.sh", "-h").out == done.out


@pytest.mark.parametrize("scenario", ["customer-service", "code-generation", "financial-qa"])
def test_a_scenario_runs_make_quickstart(scenario: str, tmp_path: Path) -> None:
    """Each of the three becomes `make quickstart SCENARIO=…`, from any folder; further words go to make."""
    script = ROOT / "scripts" / "quick_start.sh"
    done = run(script, scenario, "-n", "PORT=8123", "SET=train.num_train_epochs=8 train.seed=7", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.startswith(f"quick start: make quickstart SCENARIO={scenario} -n PORT=8123 ")
    asked = f"temper quickstart --scenario '{scenario}' --profile 'cpu' --model ''"
    assert f"{asked} --set 'train.num_train_epochs=8 train.seed=7 serve.port=8123'" in done.out


def test_make_decides_how_it_ends() -> None:
    """A make that fails makes the script fail with make's own code."""
    done = run("./scripts/quick_start.sh", "customer-service", "-n", "no-such-goal")
    assert done.code == 2
    assert "No rule to make target 'no-such-goal'" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["customer-servce"], "there is no scenario customer-servce; there are: "),
        (["../scenarios/customer-service"], "there is no scenario ../scenarios/customer-service; there are: "),
        ([], "there is no scenario; name one of: "),
        (["--verbose"], "unknown option --verbose; see ./scripts/quick_start.sh --help"),
    ],
)
def test_an_unknown_scenario_ends_with_2_and_the_list(words: list[str], said: str) -> None:
    """A wrong or missing name ends with code 2, one line and the scenarios there are."""
    line = refused(2, "./scripts/quick_start.sh", *words)
    assert line.startswith(said)
    assert "--help" in line or line.endswith(" ".join(SCENARIOS))
