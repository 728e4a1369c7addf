"""Child processes that end with their parent, and the settings every stage body runs under."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess  # a stage that finds itself current needs neither this nor ctypes

PR_SET_PDEATHSIG = 1

# Nothing in a stage may look for a hub, report usage, or depend on the hash seed of the shell that started it.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_MODE": "offline",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a stage body: the caller's, offline, with a fixed hash seed, and `extra`."""
    return {**os.environ, **QUIET, **extra}


def _die_with(parent: int, libc: Any) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def die_with_parent() -> None:
    """Be ended by SIGTERM when the process that started this one dies: a killed make leaves nothing at work."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(143)


def start(argv: list[str], env: dict[str, str], log: Path | None = None, hold: bool = False) -> subprocess.Popen[bytes]:
    """Start `argv`; it is killed when this process dies. Its output goes to `log`, else where ours goes.

    With `hold` its standard input stays open, and silent, as long as this process lives.
    """
    import ctypes
    import subprocess

    out = open(log, "ab") if log else None  # noqa: SIM115 - closed below
    try:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.PIPE if hold else None,
            preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)),
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
        )
    finally:
        if out:
            out.close()


def run(
    argv: list[str],
    env: dict[str, str],
    log: Path | None = None,
    watch: Callable[[], None] | None = None,
    hold: bool = False,
) -> int:
    """Run `argv` to its end and return its exit code (negative: killed by that signal).

    `watch` is called twice a second; what it raises stops the child first. So does Ctrl-C.
    """
    from subprocess import TimeoutExpired

    process = start(argv, env, log, hold)
    try:
        while True:
            try:
                return process.wait(0.5)
            except TimeoutExpired:
                if watch:
                    watch()
    except BaseException:
        stop(process)
        raise


def stop(process: subprocess.Popen[bytes], grace_s: float = 10) -> None:
    """Ask `process` to end, and kill it after `grace_s` seconds."""
    from subprocess import TimeoutExpired

    process.terminate()
    try:
        process.wait(grace_s)
    except TimeoutExpired:
        process.kill()
        process.wait()
