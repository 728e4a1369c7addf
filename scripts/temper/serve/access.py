"""One JSON line on stderr for each request: no prompt, no answer, no query string.

An error of this program becomes a 500 in TGI's shape; the line names its kind and place, as its text may hold a prompt.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import traceback
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from temper.serve import faults

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE = 499  # the client hung up before its answer was complete; logged, never sent


def count(scope: MutableMapping[str, Any], **tokens: int) -> None:
    """Add tokens to a request's line."""
    line = scope["temper"]
    for name, number in tokens.items():
        line[name] = line.get(name, 0) + number


class AccessLog:
    """Wraps the application; routes add token counts with count()."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, name it in x-request-id, and write its line when the answer has been sent."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, name = time.monotonic(), _name(scope)
        line: dict[str, Any] = {}
        scope["temper"] = line
        seen = {"status": 0, "complete": False}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)
            if message["type"] == "http.response.body":
                seen["complete"] = not message.get("more_body")
                await asyncio.sleep(0)  # else a hang-up goes unnoticed while there are pieces to send

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            pass  # the server stops and has waited long enough; there is nobody above to tell
        except Exception as error:
            line["error"] = _place(error)
            if not seen["status"]:
                await JSONResponse(faults.internal().body(), 500)(scope, receive, watched)
        finally:
            status = seen["status"] if seen["complete"] else GONE
            _write(name, scope, status, line, started)


def _name(scope: Scope) -> str:
    """Return the caller's x-request-id where it is a plain one, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


def _place(error: Exception) -> str:
    """Return an error's kind and where it arose."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def _write(name: str, scope: Scope, status: int, more: dict[str, Any], started: float) -> None:
    # A path no route knows may hold anything; only the route's own path is written.
    route = getattr(scope.get("route"), "path", None)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": name,
        "method": scope["method"],
        "route": route,
        "status": status,
        **more,
        "ms": round((time.monotonic() - started) * 1000, 1),
    }
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
