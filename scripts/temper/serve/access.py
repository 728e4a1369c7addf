"""One JSON line on stderr for each request: no prompt, no answer, no query string."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE = 499  # the client hung up before its answer was complete; logged, never sent


class AccessLog:
    """Wraps the application; routes put token counts into scope["temper"]."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, name it in x-request-id, and write its line when the answer has been sent."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, name = time.monotonic(), _name(scope)
        counts: dict[str, int] = {}
        scope["temper"] = counts
        seen = {"status": 0, "complete": False}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                seen["complete"] = True

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            pass  # the server stops and has waited long enough; there is nobody above to tell
        finally:
            status = seen["status"] if seen["complete"] else GONE
            _write(name, scope, status, counts, started)


def _name(scope: Scope) -> str:
    """Return the caller's x-request-id where it is a plain one, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


def _write(name: str, scope: Scope, status: int, counts: dict[str, int], started: float) -> None:
    # A path no route knows may hold anything; only the route's own path is written.
    route = getattr(scope.get("route"), "path", None)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": name,
        "method": scope["method"],
        "route": route,
        "status": status,
        **counts,
        "ms": round((time.monotonic() - started) * 1000, 1),
    }
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
