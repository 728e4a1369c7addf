"""JSON values as TGI reads them: as strict as its reader, serde, refused in its words, and their JSON schemas."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError


def seen(value: Any) -> str:
    """Name a JSON value as serde does."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
    return "sequence" if isinstance(value, list) else "map"


def compact(value: Any) -> str:
    """Return a value as JSON without blanks, as serde writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def wrong(message: str) -> PydanticCustomError:
    """Return an error whose text is passed on as it is."""
    return PydanticCustomError("serde", "{message}", {"message": message})


class _Integer(NamedTuple):
    """A whole number within bounds."""

    kind: str
    low: int
    high: int

    def __call__(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"invalid type: {seen(value)}, expected {self.kind}")
        if not self.low <= value <= self.high:
            raise wrong(f"invalid value: {seen(value)}, expected {self.kind}")
        return value

    def schema(self) -> WithJsonSchema:
        return WithJsonSchema({"type": "integer", "minimum": self.low, "maximum": self.high})


def _plain(kind: str, accepts: Callable[[Any], bool]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise wrong(f"invalid type: {seen(value)}, expected {kind}")
        return value

    return BeforeValidator(check)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_u32, _i32 = _Integer("u32", 0, 2**32 - 1), _Integer("i32", -(2**31), 2**31 - 1)
_u64, _usize = _Integer("u64", 0, 2**64 - 1), _Integer("usize", 0, 2**64 - 1)
U32 = Annotated[int, BeforeValidator(_u32), _u32.schema()]
I32 = Annotated[int, BeforeValidator(_i32), _i32.schema()]
U64 = Annotated[int, BeforeValidator(_u64), _u64.schema()]
Usize = Annotated[int, BeforeValidator(_usize), _usize.schema()]
F32 = Annotated[float, _plain("f32", lambda value: _is_number(value) and abs(value) <= sys.float_info.max)]
Flag = Annotated[bool, _plain("a boolean", lambda value: isinstance(value, bool))]
Text = Annotated[str, _plain("a string", lambda value: isinstance(value, str))]
OBJECT = {"type": "object"}
STRING = {"type": "string"}


def one_of(*names: str) -> BeforeValidator:
    """Check the tag of a tagged enum."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise wrong(f"invalid type: {seen(value)}, expected variant identifier")
        if value not in names:
            raise wrong(f"unknown variant `{value}`, expected one of {', '.join(f'`{name}`' for name in names)}")
        return value

    return BeforeValidator(check)


def struct(*required: str, **fields: Any) -> dict[str, Any]:
    """Return the JSON schema of an object."""
    return {**OBJECT, "required": list(required), "properties": fields}


def tag(*names: str) -> dict[str, Any]:
    """Return the JSON schema of a word that is one of these."""
    return {**STRING, "enum": list(names)}


def untagged(name: str, *kinds: type[BaseModel]) -> BeforeValidator:
    """Take the first kind that fits."""

    def check(value: Any) -> Any:
        for kind in kinds:
            with suppress(ValidationError):
                return kind.model_validate(value)
        raise wrong(f"data did not match any variant of untagged enum {name}")

    return BeforeValidator(check)
