"""The first program of a stage's container in a test: it answers name look-ups on loopback, counts them, runs the rest.

    python trap_lookups.py COUNT_FILE PROGRAM …

The container's /etc/resolv.conf names 127.0.0.1, so that a look-up which anything in the stage makes arrives here.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

seen: list[str] = []


def _listen(trap: socket.socket) -> None:
    while True:
        question, asker = trap.recvfrom(512)
        seen.append(question[12:].split(b"\0")[0].decode("ascii", "replace"))
        trap.sendto(question[:2] + b"\x81\x83" + question[4:], asker)  # there is no such name


if __name__ == "__main__":
    trap = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    trap.bind(("127.0.0.1", 53))
    threading.Thread(target=_listen, args=(trap,), daemon=True).start()
    code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, check=False).returncode
    stages = len(seen)
    with contextlib.suppress(OSError):
        socket.getaddrinfo("name.example", 80)  # the trap itself must work
    with open(Path(sys.argv[1]), "a", encoding="ascii") as file:
        file.write(f"{stages} {len(seen) - stages}\n")
    sys.exit(code)
