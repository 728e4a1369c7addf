"""The first process of a stage's container: it ends the program when whoever started the container is gone.

The starter holds the other end of standard input and never writes. Its end, by kill -9 too, closes standard input;
an engine's daemon would otherwise let the container train on. Signals are passed on, orphans are reaped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 10  # between SIGTERM and SIGKILL


def _end(child: int) -> None:
    for number, wait in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        time.sleep(wait)


def _watch(child: int) -> None:
    while os.read(0, 1024):
        pass
    _end(child)


def run(argv: list[str]) -> int:
    """Run `argv` to its end and return its exit code, 128 + n when signal n killed it."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL).pid
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=_end, args=(child,), daemon=True).start())
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
