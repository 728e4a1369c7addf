"""The bodies clients send: fields, types and defaults as TGI 3.3.7 declares them (router/src/lib.rs).

Types are as strict as TGI's (a number in quotes is refused) and refusals use the words of its JSON reader, serde.
Unknown fields are ignored, and so are `n`, `logit_bias` and `name`, which TGI reads and does not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, model_validator
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


def wrong(message: str) -> PydanticCustomError:
    """Return an error whose text is passed on as it is."""
    return PydanticCustomError("serde", "{message}", {"message": message})


def _integer(kind: str, low: int, high: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"invalid type: {seen(value)}, expected {kind}")
        if not low <= value <= high:
            raise wrong(f"invalid value: {seen(value)}, expected {kind}")
        return value

    return BeforeValidator(check)


def _plain(kind: str, accepts: Callable[[Any], bool]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise wrong(f"invalid type: {seen(value)}, expected {kind}")
        return value

    return BeforeValidator(check)


U32 = Annotated[int, _integer("u32", 0, 2**32 - 1)]
I32 = Annotated[int, _integer("i32", -(2**31), 2**31 - 1)]
U64 = Annotated[int, _integer("u64", 0, 2**64 - 1)]
Usize = Annotated[int, _integer("usize", 0, 2**64 - 1)]
F32 = Annotated[float, _plain("f32", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))]
Flag = Annotated[bool, _plain("a boolean", lambda value: isinstance(value, bool))]
Text = Annotated[str, _plain("a string", lambda value: isinstance(value, str))]


class GenerateParameters(BaseModel):
    """How to generate; every field as in TGI."""

    best_of: Usize | None = None
    temperature: F32 | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    top_k: I32 | None = None
    top_p: F32 | None = None
    typical_p: F32 | None = None
    do_sample: Flag = False
    max_new_tokens: U32 | None = None
    return_full_text: Flag | None = None
    stop: list[Text] = []
    truncate: Usize | None = None
    watermark: Flag = False
    details: Flag = False
    decoder_input_details: Flag = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: Any = None
    adapter_id: Text | None = None


class GenerateRequest(BaseModel):
    """The body of /generate and /generate_stream."""

    inputs: Text
    # Without any parameters TGI samples; with an empty object it is greedy.
    parameters: GenerateParameters = Field(default_factory=lambda: GenerateParameters(do_sample=True))


NO_BODY = "data did not match any variant of untagged enum MessageBody"


def _text_of(content: Any) -> tuple[str, str | None]:
    """Return a message's text and what in it is not supported; several texts are joined without a separator."""
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise wrong(NO_BODY)
    texts = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str()}}:
                return "", "`image_url` in messages is not supported by this server"
            case _:
                raise wrong(NO_BODY)
    return "".join(texts), None


class Message(BaseModel):
    """One message of a conversation, its content flattened to text."""

    role: Text
    content: str
    unsupported: str | None = None
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def flatten(cls, value: Any) -> Any:
        """Join the parts of the content; leave a missing role to the field's own check."""
        if not isinstance(value, dict) or "role" not in value:
            return value if not isinstance(value, dict) else {**value, "content": ""}
        if value.get("content") is None and isinstance(value.get("tool_calls"), list):
            return {**value, "content": "", "unsupported": "`tool_calls` in messages is not supported by this server"}
        text, unsupported = _text_of(value.get("content"))
        return {**value, "content": text, "unsupported": unsupported}


class StreamOptions(BaseModel):
    """What a chat stream carries besides the tokens."""

    include_usage: Flag = False


class ChatRequest(BaseModel):
    """The body of /v1/chat/completions."""

    model: Text | None = None
    messages: list[Message]
    frequency_penalty: F32 | None = None
    logit_bias: list[F32] | None = None
    logprobs: Flag | None = None
    top_logprobs: U32 | None = None
    max_tokens: U32 | None = Field(None, validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))
    n: U32 | None = None
    presence_penalty: F32 | None = None
    stop: list[Text] | None = None
    stream: Flag = False
    seed: U64 | None = None
    temperature: F32 | None = None
    top_p: F32 | None = None
    tools: list[Any] | None = None
    tool_prompt: Text | None = None
    tool_choice: Any = None
    response_format: Any = None
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def one_limit(cls, value: Any) -> Any:
        """Refuse both names of the same field."""
        if isinstance(value, dict) and "max_tokens" in value and "max_completion_tokens" in value:
            raise wrong("duplicate field `max_tokens`")
        return value
