"""The one exception tree: what went wrong, where, and what to do next; each class has its exit code.

Exit codes (listed in README.md): 0 done, 1 a fault in Temper itself, 130 interrupted, and those below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class TemperError(Exception):
    """Carry one line for the user: `what`, then the remedy; never a traceback."""

    code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)


class UsageError(TemperError):
    """A command-line option, goal or name that does not exist."""

    code = 2


class ConfigError(TemperError):
    """A scenario, profile or model file that does not validate."""

    code = 3


class DataError(TemperError):
    """Input rows that cannot be read or used."""

    code = 4


class ModelError(TemperError):
    """A base model that cannot be had, or whose bytes are not the recorded ones."""

    code = 5


class ResultError(TemperError):
    """A stage's result that is missing, altered or truncated."""

    code = 6


class TrainError(TemperError):
    """Training that stopped: NaN loss, out of memory, a failed trainer."""

    code = 7


class GateError(TemperError):
    """A merged model that would behave differently in the server than in training."""

    code = 8


class ServeError(TemperError):
    """A server that cannot start, or that does not answer as it must."""

    code = 9


class DiskError(TemperError):
    """No space left, or a place that cannot be written."""

    code = 10


class MachineError(TemperError):
    """Something this machine lacks: a Python version, a package, a GPU."""

    code = 11


class LockedError(TemperError):
    """Another live process holds the scenario."""

    code = 12


class AnswerError(TemperError):
    """A tuned model whose answers are not those of its data."""

    code = 13


class EvalError(TemperError):
    """A tuned model that is not better by enough, or has forgotten too much."""

    code = 14


class ReproduceError(TemperError):
    """A result that, built again, came out as other bytes."""

    code = 15


def main(run: Callable[[], int | None]) -> None:
    """Call `run` and exit with its code; a TemperError becomes one line on stderr and its own code."""
    try:
        sys.exit(run() or 0)
    except TemperError as error:
        if str(error):  # a stage's program has already said what failed
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            remedy = "free some space or choose another place with BUILD=DIR, then run it again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            remedy = "give a path that this user can read and write"
        else:
            raise
        print(f"error: {error}; {remedy}", file=sys.stderr)
        sys.exit(DiskError.code)
