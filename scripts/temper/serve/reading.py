"""Read a request's body, or reject it as TGI's web framework does (axum 0.7.9 `Json`): plain text and a status."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from temper.serve.faults import Rejection
from temper.serve.fields import seen

PAYLOAD_LIMIT = 2_000_000  # bytes, TGI's --payload-limit
PATIENCE_S = 30.0  # how long a body may take to arrive; TGI waits for ever

Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, kind: type[Body]) -> Body:
    """Return the body as `kind`; Rejection with 400, 408, 413, 415 or 422 when it is not one."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not media.startswith("application/") or not (media == "application/json" or media.endswith("+json")):
        raise Rejection(415, "Expected request with `Content-Type: application/json`")
    try:
        async with asyncio.timeout(PATIENCE_S):
            raw = await _bytes(request)
    except TimeoutError:
        raise Rejection(408, f"Failed to buffer the request body: not complete after {PATIENCE_S:g} s") from None
    return parse(raw, kind)


async def _bytes(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > PAYLOAD_LIMIT:
            raise Rejection(413, "Failed to buffer the request body: length limit exceeded")
        parts.append(part)
    return b"".join(parts)


def parse(raw: bytes, kind: type[Body]) -> Body:
    """Return JSON bytes as `kind`; Rejection 400 for what is no JSON, 422 for another shape."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Rejection(400, f"Failed to parse the request body as JSON: {error}") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        text = raw.decode()
        problems = [_Problem(text, problem) for problem in error.errors(include_url=False)]
        # serde stops at the first value it cannot use, and finds a missing field only at the end of its object.
        first = min(problems, key=lambda problem: problem.at)
        raise Rejection(422, f"Failed to deserialize the JSON body into the target type: {first}") from None


class _Problem:
    """One thing wrong with a body: where it stands and what serde says of it."""

    def __init__(self, text: str, error: Any) -> None:
        missing = error["type"] == "missing"
        self.path = error["loc"][:-1] if missing else error["loc"]
        self.reason = _reason(error)
        start, end = _span(text, self.path)
        self.at = start if self.reason.startswith(("invalid type: map", "invalid type: sequence")) else end
        before = text[: self.at]
        self.line = before.count("\n") + 1
        self.column = len(before[before.rfind("\n") + 1 :].encode())

    def __str__(self) -> str:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        return f"{steps + ': ' if steps else ''}{self.reason} at line {self.line} column {self.column}"


def _reason(error: Any) -> str:
    if error["type"] == "missing":
        return f"missing field `{error['loc'][-1]}`"
    if error["type"] == "list_type":
        return f"invalid type: {seen(error['input'])}, expected a sequence"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"invalid type: {seen(error['input'])}, expected struct {error['ctx']['class_name']}"
    return str(error["msg"])


def _span(text: str, path: tuple[int | str, ...]) -> tuple[int, int]:
    """Return where the value at `path` starts and ends in the JSON text; the last of equal keys counts."""
    decode = json.JSONDecoder().raw_decode
    start = _skip(text, 0)
    for step in path:
        found, at, index = None, _skip(text, start + 1), 0
        while text[at] not in "]}":
            key: Any = index
            if isinstance(step, str):
                key, at = decode(text, at)
                at = _skip(text, _skip(text, at) + 1)
            if key == step:
                found = at
            at = _skip(text, decode(text, at)[1])
            at = _skip(text, at + 1) if text[at] == "," else at
            index += 1
        if found is None:
            break
        start = found
    return start, decode(text, start)[1]


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
