"""A server that is a process of this machine: how it is started, whether it lives, what it last said, how it ends.

It is told from another process that got its number later by its start time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import child
from temper.errors import ServeError
from temper.serve import launcher, ports

Record = dict[str, Any]
KEY = ("TEMPER_API_KEY",)  # TGI's own variables, such as API_KEY and PORT, are for servers that are started by hand


@dataclass(frozen=True)
class Process:
    """A server process that is to be; `argv` are further options of temper.serve."""

    folder: Path
    argv: list[str]
    host: str = "127.0.0.1"
    port: int = 8000

    def launch(self, log: Path, note: Callable[[Record], None]) -> None:
        """Start it in a session of its own, its output in `log`, and note it at once."""
        where = ["--model-id", str(self.folder), "--hostname", self.host, "--port", str(self.port)]
        code = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "temper.serve", *where, *self.argv]
        inherited = child.environment(PYTHONPATH=path).items()
        pid = spawn(command, {name: value for name, value in inherited if name not in launcher.VARIABLES}, log)
        note({"pid": pid, "started": _process(pid)[0]})

    def asked(self) -> tuple[str | None, str]:
        """Return the key that it wants and the dtype it computes in."""
        from temper.serve.__main__ import api_key
        from temper.serve.load import chosen_dtype

        given = self._options()
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return api_key(given.api_key_file, KEY), given.quantize or chosen_dtype(given.dtype, config)

    def check(self, url: str) -> None:
        """Have nothing to add to the golden prompts."""

    def _options(self) -> Namespace:
        from temper.serve.__main__ import options

        return options(["--model-id", "", *self.argv])


def spawn(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a program that outlives this one and return its number; what it says is added to `log`, ours alone."""
    return os.posix_spawnp(
        command[0],
        command,
        environment,
        setsid=True,
        setsigdef=[signal.SIGINT],
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def named(record: Record) -> str:
    """Return how a person finds it."""
    return f"process {record['pid']}"


def owns_port(record: Record) -> bool:
    """Say whether it, or nobody that we may see, listens on its port."""
    return ports.holder(record["port"]) in (record["pid"], None)


def alive(record: Record) -> bool:
    """Return whether the recorded process, and not a later one with its number, runs; let an ended child go."""
    started, running = _process(record["pid"])
    if started is None or started != record["started"]:
        return False
    if not running:
        with suppress(ChildProcessError):  # not our child: somebody else takes it away
            os.waitpid(record["pid"], os.WNOHANG)
    return running


def said(record: Record, log: Path) -> list[str]:
    """Return the lines it has written."""
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def end(record: Record, grace_s: float) -> None:
    """Ask it to end if it runs, and kill it after `grace_s` seconds."""
    if not alive(record):
        return
    for number, wait in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.kill(record["pid"], number)
        until = time.monotonic() + wait
        while time.monotonic() < until:
            if not alive(record):
                return
            time.sleep(0.05)
    raise ServeError(f"process {record['pid']} does not end", "it hangs in the kernel; see: dmesg")


def _process(pid: int) -> tuple[str | None, bool]:
    """Return when a process started, with the boot it started in, and whether any of its threads still runs.

    The first thread ends before the last one closes the port, so its state alone would be too early.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None, False
    # Fields 3 (state), 20 (threads) and 22 (start) of proc(5)'s stat.
    return f"{boot} {fields[19]}", fields[0] not in "ZX" or int(fields[17]) > 1
