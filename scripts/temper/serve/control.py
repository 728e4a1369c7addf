"""Start, stop and look after one background server per state folder: a process, or a container.

The folder holds server.json (which one, since when, with what key, whether it proved itself), server.log and
server.lock. What differs between the two kinds stands in process.py and boxed.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from temper import locking
from temper.errors import ServeError
from temper.serve import boxed, direct, golden, ports, process
from temper.serve.process import Process

STOP_S = 15  # between SIGTERM and SIGKILL; the server itself gives answers under way 10 s
Record = dict[str, Any]
Server = Process | boxed.Box


class Kind(Protocol):
    """What process.py and boxed.py know about a recorded server."""

    def named(self, record: Record) -> str:
        """Return how a person finds it."""

    def alive(self, record: Record) -> bool:
        """Return whether it runs."""

    def owns_port(self, record: Record) -> bool:
        """Say whether no other listens on its port."""

    def said(self, record: Record, log: Path) -> list[str]:
        """Return its last lines."""

    def end(self, record: Record, grace_s: float) -> None:
        """End it."""


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
    """Bring up a server process for `folder`; `argv` are further options of temper.serve. Else as bring_up."""
    return bring_up(lambda: Process(folder, argv, host, port), state_dir, key, golden_file)


def bring_up(prepare: Callable[[], Server], state_dir: Path, key: str, golden_file: Path | None) -> str:
    """Start what `prepare` returns and return its URL once it is ready and the golden prompts agree.

    A ready server with the same `key` is left running; any other one of this folder is stopped first, after
    `prepare`. Raises ServeError (port taken, server ended) and GateError (other answers than recorded); no server is
    left then.
    """
    with locking.held(state_dir / "server.lock", "make serve"):
        record = _read(state_dir)
        running = record if record and _kind(record).alive(record) else None
        if running and running["key"] == key and running["ready"] and _healthy(running["url"]):
            _say(f"serve   already running at {running['url']} ({_named(running)})")
            return str(running["url"])
        server, recorded = prepare(), golden.read(golden_file) if golden_file else None
        if running:
            _say(f"serve   stops {_named(running)}: it serves something else or never got ready")
        _stop(state_dir)
        _refuse_taken(server.host, server.port)
        try:
            record = _launch(server, state_dir, key)
            _prove(server, record, state_dir, recorded)
        except BaseException:  # Ctrl-C too: nothing unproven keeps running
            _stop(state_dir)
            raise
        return str(record["url"])


def stop(state_dir: Path) -> bool:
    """Stop the server; return whether one was running."""
    with locking.held(state_dir / "server.lock", "make stop"):
        return _stop(state_dir)


def status(state_dir: Path) -> Record:
    """Return {"running", "ready", "healthy", "log"} and, for a running server, what it is and what is recorded.

    That is `what` in words, url, key, since, folder, and pid or engine, container, name and image.
    """
    record = _read(state_dir)
    found: Record = {"running": False, "ready": False, "healthy": False, "log": str(log_path(state_dir))}
    if record and _kind(record).alive(record):
        found |= {key: value for key, value in record.items() if key != "started"}
        found |= {"running": True, "healthy": _healthy(record["url"]), "what": _named(record)}
    return found


def key_of(*parts: Any) -> str:
    """Return one digest for everything a server depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _kind(record: Record) -> Kind:
    if "container" in record:
        return boxed
    return process


def _named(record: Record) -> str:
    return _kind(record).named(record)


def _launch(server: Server, state_dir: Path, key: str) -> Record:
    """Start the server and record it at once."""
    log = log_path(state_dir)
    with suppress(FileNotFoundError):
        os.replace(log, log.with_suffix(".log.1"))
    record = {
        "key": key,
        "url": _url(server.host, server.port),
        "port": server.port,
        "ready": False,
        "folder": str(server.folder),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }

    def note(fields: Record) -> None:
        record.update(fields)
        _write(state_dir, record)

    server.launch(log, note)
    return record


def _prove(server: Server, record: Record, state_dir: Path, recorded: Record | None) -> None:
    """Wait until the server answers, replay the golden prompts, and only then call it ready."""
    started, kind = time.monotonic(), _kind(record)
    progress = _Progress()
    # Health alone could be another server's, which took the port in the same moment.
    while not (_healthy(record["url"]) and kind.owns_port(record)):
        _refuse_ended(record, state_dir)
        progress(f"serve   loading {record['folder']} … {time.monotonic() - started:.0f} s")
        time.sleep(0.1)
    server.check(record["url"])
    agreement = ""
    if recorded:
        key, dtype = server.asked()
        agreed = golden.replay(record["url"], recorded, key, dtype=dtype, say=lambda text: progress(f"serve   {text}"))
        agreement = f": {agreed}"
    _refuse_ended(record, state_dir)
    _write(state_dir, record | {"ready": True})
    progress.end(f"serve   ready at {record['url']}{agreement} [{time.monotonic() - started:.1f} s]")


def _refuse_ended(record: Record, state_dir: Path) -> None:
    """Raise ServeError with the last words of a server that has ended."""
    if _kind(record).alive(record):
        return
    last = [line for line in _kind(record).said(record, log_path(state_dir)) if line.strip()][-5:]
    errors = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
    words = " | ".join(errors or last) or "it wrote nothing"
    raise ServeError(f"the server ended: {words}", f"the whole log is {log_path(state_dir)}")


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
    running = bool(record and _kind(record).alive(record))
    if record:
        _kind(record).end(record, STOP_S)
    (state_dir / "server.json").unlink(missing_ok=True)
    return running


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _healthy(url: str) -> bool:
    try:
        with direct.OPENER.open(f"{url}/health", timeout=10) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _read(state_dir: Path) -> Record | None:
    """Return what is recorded; None when there is nothing, or nothing that makes sense."""
    needed = {"key", "url", "port", "ready", "folder", "since"}
    try:
        record = json.loads((state_dir / "server.json").read_text(encoding="utf-8"))
        which = {"engine", "container", "name", "image"} if "container" in record else {"pid", "started"}
        return record if needed | which <= record.keys() else None
    except (OSError, ValueError, AttributeError, TypeError):
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
