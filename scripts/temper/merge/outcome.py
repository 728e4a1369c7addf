"""The outcome of one check of the gate: a JSON-able record that says what was measured and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from temper.errors import TemperError

Outcome = dict[str, Any]


def passed(name: str, message: str, **numbers: Any) -> Outcome:
    """Record a check that holds."""
    return {"name": name, "ok": True, "message": message, "remedy": "", "numbers": numbers}


def failed(name: str, message: str, remedy: str, **numbers: Any) -> Outcome:
    """Record a check that does not hold; `remedy` is what the user does next."""
    return {"name": name, "ok": False, "message": message, "remedy": remedy, "numbers": numbers}


def judged(name: str, problems: list[str], remedy: str, message: str, **numbers: Any) -> Outcome:
    """Record a check by its list of problems; `message` is said when there are none."""
    if problems:
        return failed(name, ", and ".join(problems), remedy, **numbers)
    return passed(name, message, **numbers)


def line(outcome: Outcome) -> str:
    """Return the one line that people read."""
    state = "ok    " if outcome["ok"] else "FAILED"
    remedy = f"; {outcome['remedy']}" if outcome["remedy"] else ""
    return f"gate    {outcome['name']:<18} {state} {outcome['message']}{remedy}"


def attempt(name: str, check: Callable[[], Outcome], remedy: str) -> Outcome:
    """Run a check; what a library cannot read in the folder is a failed check like any other, not a crash."""
    try:
        return check()
    except TemperError as error:
        what, _, then = str(error).rpartition("; ")
        return failed(name, what or then, then if what else remedy)
    except Exception as error:  # libraries raise anything from KeyError to RuntimeError for a bad folder
        said = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
        return failed(name, f"{type(error).__name__}: {said}"[:300], remedy)
