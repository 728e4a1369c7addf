"""`make` and `make help`: everything there is, from the files themselves."""

from __future__ import annotations

import re

from doors_run import ROOT, run

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def page() -> str:
    """Return what a bare `make` prints."""
    done = run("make")
    assert (done.code, done.err) == (0, "")
    return done.out


def test_bare_make_is_the_help_page() -> None:
    """`make` alone prints the same as `make help`."""
    assert run("make", "help").out == page()


def test_every_goal_is_listed_with_what_it_does() -> None:
    """Each goal that has a comment in the Makefile is on the page, and each goal a user may call has one."""
    text = page()
    commented = dict(re.findall(r"^([a-z][a-z-]*):.*?## (.*)$", MAKEFILE, re.M))
    for goal, what in commented.items():
        assert re.search(rf"^  make {goal} +{re.escape(what)}$", text, re.M), goal
    phony = {goal for line in re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M) for goal in line.split()} - {"FORCE"}
    assert phony == set(commented)
    wanted = "help quickstart doctor new plan model data train merge verify serve ask stop logs status test check clean"
    assert set(wanted.split()) <= phony


def test_every_setting_is_listed_with_its_default() -> None:
    """Each variable that has a comment in the Makefile is on the page with its default."""
    text = page()
    settings = re.findall(r"^([A-Z_]+) \?= *(\S*) +## (.*)$", MAKEFILE, re.M)
    assert {"SCENARIO", "PROFILE", "MODEL", "SET", "RUNTIME", "PORT", "BUILD"} <= {name for name, _, _ in settings}
    for name, default, what in settings:
        assert re.search(rf"^  {name} +{re.escape(default)} +{re.escape(what)}$", text, re.M), name


def test_every_scenario_profile_and_model_is_listed() -> None:
    """Each file in configs/ is on the page under its kind, with the first line of what it is for."""
    text = page()
    for kind in ("Scenarios", "Profiles", "Models"):
        section = text.partition(f"\n{kind}\n")[2].partition("\n\n")[0]
        files = sorted((ROOT / "configs" / kind.lower()).glob("*.yaml"))
        assert files
        for file in files:
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            assert f"  {file.stem:<24} {first}" in section.splitlines(), file


def test_goals_stand_in_groups() -> None:
    """The page has the Makefile's own headings, in its order."""
    headings = re.findall(r"^##@ (.*)$", MAKEFILE, re.M)
    assert len(headings) >= 4
    text = page()
    places = [text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
