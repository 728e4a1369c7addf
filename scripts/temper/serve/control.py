"""Start, stop and look after one background server per state folder.

The folder holds server.json (which process, since when, with what key, whether it proved itself), server.log and
server.lock. A process is told from another that got its number later by its start time.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import urllib.request
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from temper import child, locking
from temper.errors import ServeError
from temper.serve import golden, ports

STOP_S = 15  # between SIGTERM and SIGKILL; the server itself gives answers under way 10 s
Record = dict[str, Any]


def log_path(state_dir: Path) -> Path:
    """Return where the server's output goes."""
    return state_dir / "server.log"


def start(
    folder: Path,
    state_dir: Path,
    argv: list[str],
    key: str,
    golden_file: Path | None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> str:
    """Bring up a server for `folder` and return its URL once it is ready and the golden prompts agree.

    A ready server with the same `key` is left running; any other one of this folder is stopped first.
    `argv` are further options of temper.serve. Raises ServeError (port taken, process ended) and GateError (other
    answers than recorded); no server is left then.
    """
    with locking.held(state_dir / "server.lock", "make serve"):
        record = _read(state_dir)
        if record and _alive(record):
            if record["key"] == key and record["ready"] and _healthy(record["url"]):
                _say(f"serve   already running at {record['url']} (process {record['pid']})")
                return str(record["url"])
            _say(f"serve   stops process {record['pid']}: it serves something else or never got ready")
        _stop(state_dir)
        recorded = golden.read(golden_file) if golden_file else None
        _refuse_taken(host, port)
        record = _launch(folder, state_dir, argv, key, host, port)
        try:
            _prove(record, state_dir, recorded, argv)
        except BaseException:  # Ctrl-C too: nothing unproven keeps running
            _stop(state_dir)
            raise
        return str(record["url"])


def stop(state_dir: Path) -> bool:
    """Stop the server; return whether one was running."""
    with locking.held(state_dir / "server.lock", "make stop"):
        return _stop(state_dir)


def status(state_dir: Path) -> Record:
    """Return {"running", "ready", "healthy", "log"} and, for a running server, pid, url, key, since and folder."""
    record = _read(state_dir)
    found: Record = {"running": False, "ready": False, "healthy": False, "log": str(log_path(state_dir))}
    if record and _alive(record):
        found |= {name: record[name] for name in ("pid", "url", "key", "since", "folder", "ready")}
        found |= {"running": True, "healthy": _healthy(record["url"])}
    return found


def key_of(*parts: Any) -> str:
    """Return one digest for everything a server depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _launch(folder: Path, state_dir: Path, argv: list[str], key: str, host: str, port: int) -> Record:
    """Start the process in a session of its own and record it at once."""
    log = log_path(state_dir)
    with suppress(FileNotFoundError):
        os.replace(log, log.with_suffix(".log.1"))
    command = [
        sys.executable,
        "-m",
        "temper.serve",
        "--model-id",
        str(folder),
        "--hostname",
        host,
        "--port",
        str(port),
        *argv,
    ]
    code = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        command,
        child.environment(PYTHONPATH=path),
        setsid=True,
        setsigdef=[signal.SIGINT],
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), create, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    record = {
        "pid": pid,
        "started": _process(pid)[0],
        "key": key,
        "url": _url(host, port),
        "port": port,
        "ready": False,
        "folder": str(folder),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _write(state_dir, record)
    return record


def _prove(record: Record, state_dir: Path, recorded: Record | None, argv: list[str]) -> None:
    """Wait until the server answers, replay the golden prompts, and only then call it ready."""
    started = time.monotonic()
    progress = _Progress()
    # Health alone could be another server's, which took the port in the same moment.
    while not (_healthy(record["url"]) and ports.holder(record["port"]) in (record["pid"], None)):
        if not _alive(record):
            raise ServeError(_last_words(state_dir), f"the whole log is {log_path(state_dir)}")
        progress(f"serve   loading {record['folder']} … {time.monotonic() - started:.0f} s")
        time.sleep(0.1)
    agreed = 0
    if recorded:
        given = _options(argv)
        agreed = golden.replay(
            record["url"],
            recorded,
            _api_key(given),
            dtype=_dtype(Path(record["folder"]), given),
            say=lambda text: progress(f"serve   {text}"),
        )
    if not _alive(record):
        raise ServeError(_last_words(state_dir), f"the whole log is {log_path(state_dir)}")
    _write(state_dir, record | {"ready": True})
    agreement = f": {agreed} golden prompts agree" if recorded else ""
    progress.end(f"serve   ready at {record['url']}{agreement} [{time.monotonic() - started:.1f} s]")


def _options(argv: list[str]) -> Namespace:
    from temper.serve.__main__ import options

    return options(["--model-id", "", *argv])


def _api_key(given: Namespace) -> str | None:
    from temper.serve.__main__ import api_key

    return api_key(given.api_key_file)


def _dtype(folder: Path, given: Namespace) -> str:
    from temper.serve.load import chosen_dtype

    return chosen_dtype(given.dtype, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _last_words(state_dir: Path) -> str:
    try:
        lines = log_path(state_dir).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    last = [line for line in lines if line.strip()][-5:]
    errors = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
    return f"the server ended: {' | '.join(errors or last) or 'it wrote nothing'}"


def _refuse_taken(host: str, port: int) -> None:
    """Raise ServeError for an address that another program has."""
    import errno

    bound = ports.bind(host, port)
    try:
        bound.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ports.refused(host, port, error) from None
        raise
    finally:
        bound.close()


def _stop(state_dir: Path) -> bool:
    record = _read(state_dir)
    running = bool(record and _alive(record))
    if record and running:
        _end(record)
    (state_dir / "server.json").unlink(missing_ok=True)
    return running


def _end(record: Record) -> None:
    """Ask the process to end, and kill it after STOP_S seconds."""
    for number, wait in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.kill(record["pid"], number)
        until = time.monotonic() + wait
        while time.monotonic() < until:
            if not _alive(record):
                return
            time.sleep(0.05)
    raise ServeError(f"process {record['pid']} does not end", "it hangs in the kernel; see: dmesg")


def _alive(record: Record) -> bool:
    """Return whether the recorded process, and not a later one with its number, runs; let an ended child go."""
    started, running = _process(record["pid"])
    if started is None or started != record["started"]:
        return False
    if not running:
        with suppress(ChildProcessError):  # not our child: somebody else takes it away
            os.waitpid(record["pid"], os.WNOHANG)
    return running


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


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=10) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _read(state_dir: Path) -> Record | None:
    """Return what is recorded; None when there is nothing, or nothing that makes sense."""
    try:
        record = json.loads((state_dir / "server.json").read_text(encoding="utf-8"))
        return record if {"pid", "started", "key", "url", "port", "ready", "folder", "since"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(state_dir: Path, record: Record) -> None:
    part = state_dir / ".server.json"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, state_dir / "server.json")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """One line that is rewritten on a terminal; elsewhere only its first and last text are written."""

    def __init__(self) -> None:
        self.live, self.first = sys.stderr.isatty(), True

    def __call__(self, text: str) -> None:
        if self.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif self.first:
            _say(text)
        self.first = False

    def end(self, text: str) -> None:
        """Write the last text and a line feed."""
        _say(f"\r\033[K{text}" if self.live else text)
