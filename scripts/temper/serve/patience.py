"""Cut off clients that send their request's head, or take their answer, too slowly; uvicorn waits for both for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with an end to its patience.

    A connection is closed when a head is not complete `seconds` after it was opened, or after the head began, and when
    nothing of an answer is taken for as long. The body of a request is a matter of reading.py.
    """

    class Patient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timers: dict[str, asyncio.TimerHandle] = {}
            self._limit("head", transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._release("head")
            elif "head" not in self._timers:
                self._limit("head", self.transport.close)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._limit("answer", self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._release("answer")

        def connection_lost(self, exc: Exception | None) -> None:
            for what in tuple(self._timers):
                self._release(what)
            super().connection_lost(exc)

        def _limit(self, what: str, end: Callable[[], None]) -> None:
            self._timers[what] = self.loop.call_later(seconds, end)

        def _release(self, what: str) -> None:
            if timer := self._timers.pop(what, None):
                timer.cancel()

    return Patient
