"""Who listens on a TCP port, as far as /proc tells."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from temper.errors import ServeError

LISTENING = "0A"  # in /proc/net/tcp


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not yet open to connections; ServeError when it is taken.

    Until listen() is called a connection is refused, so the address is kept while the model still loads.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServeError(
            f"host {host!r} is no address of this machine ({error.strerror})",
            "use 127.0.0.1, or 0.0.0.0 for every network",
        ) from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        return bound
    except OSError as error:
        bound.close()
        raise refused(host, port, error) from None


def free() -> int:
    """Return a port of loopback that nobody has; another may take it before it is used."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def refused(host: str, port: int, error: OSError) -> ServeError:
    """Return the error for an address that cannot be had: who has it, and what to do."""
    pid = holder(port)
    what = f"port {port} on {host} cannot be used ({error.strerror or error})"
    if pid is not None:
        what = f"port {port} is in use by process {pid} ({_command(pid)})"
    return ServeError(what, "stop that program, or choose another port: PORT=8001 (with --port: --port 8001)")


def holder(port: int) -> int | None:
    """Return the process that listens on `port`, or None when there is none or it is not ours to see."""
    sockets = {
        f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listeners(Path("/proc/net") / table, port)
    }
    if not sockets:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and sockets & _links(process / "fd"):
            return int(process.name)
    return None


def _listeners(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == LISTENING and int(row[1].rsplit(":", 1)[1], 16) == port]


def _links(folder: Path) -> set[str]:
    found = set()
    try:
        for link in folder.iterdir():
            found.add(os.readlink(link))
    except OSError:  # another user's process, or one that has just ended
        pass
    return found


def _command(pid: int) -> str:
    """Return a process's command name; never its arguments, which may hold a secret."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "unknown"
