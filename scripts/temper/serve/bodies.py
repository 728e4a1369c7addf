"""The bodies clients send: fields, types and defaults as TGI 3.3.7 declares them (router/src/lib.rs).

Unknown fields are ignored, and so are `n`, `logit_bias`, `name` and `adapter_id`, which change nothing in TGI either
(a name that no adapter has is served by the base model there). Names of classes are those of its OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    RootModel,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from temper.serve.fields import (
    F32,
    I32,
    STRING,
    U32,
    U64,
    Flag,
    Text,
    Usize,
    compact,
    one_of,
    seen,
    struct,
    tag,
    untagged,
    wrong,
)


class GrammarType(BaseModel):
    """What an answer must match: a JSON schema or a regular expression."""

    type: Annotated[str, one_of("json", "json_object", "regex", "json_schema")]
    value: Any

    @model_validator(mode="after")
    def fitting(self) -> GrammarType:
        """Refuse a value of another kind than `type` says; that of a "json" is looked at later, as in TGI."""
        if self.type == "regex" and not isinstance(self.value, str):
            raise wrong(f"invalid type: {seen(self.value)}, expected a string")
        if self.type == "json_schema":
            if not isinstance(self.value, dict):
                raise wrong(f"invalid type: {seen(self.value)}, expected struct JsonSchemaConfig")
            if not isinstance(self.value.get("name", ""), str | None):
                raise wrong(f"invalid type: {seen(self.value['name'])}, expected a string")
            if "schema" not in self.value:
                raise wrong("missing field `schema`")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """Describe what is read; which schemas can be used is said when they are."""
        schema = struct("schema", name={"type": ["string", "null"]}, schema={})
        return {
            "oneOf": [
                struct("type", "value", type=tag("json", "json_object"), value={}),
                struct("type", "value", type=tag("regex"), value=STRING),
                struct("type", "value", type=tag("json_schema"), value=schema),
            ]
        }


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
    grammar: GrammarType | None = None
    adapter_id: Text | None = None


class GenerateRequest(BaseModel):
    """The body of /generate, /generate_stream and /tokenize."""

    inputs: Text
    # Without any parameters TGI samples; with an empty object it is greedy.
    parameters: GenerateParameters = Field(default_factory=lambda: GenerateParameters(do_sample=True))


class CompatGenerateRequest(GenerateRequest):
    """The body of /."""

    stream: Flag = False


class FunctionDefinition(BaseModel):
    """A function that may be called, or in a message one that was."""

    description: Text | None = None
    name: Text
    arguments: Any = Field(validation_alias=AliasChoices("arguments", "parameters"))

    def as_json(self) -> dict[str, Any]:
        """Return it as TGI writes it: the arguments are a text."""
        return {"description": self.description, "name": self.name, "arguments": compact(self.arguments)}


class Tool(BaseModel):
    """Something the model may call; TGI knows functions only, whatever the type says."""

    type: Text
    function: FunctionDefinition

    def as_json(self) -> dict[str, Any]:
        """Return it as TGI writes it."""
        return {"type": self.type, "function": self.function.as_json()}


class ToolCall(Tool):
    """A call the model made earlier in the conversation."""

    id: Text

    def as_json(self) -> dict[str, Any]:
        """Return it as TGI writes it."""
        return {"id": self.id, **super().as_json()}


class FunctionName(BaseModel):
    """A function that must be called."""

    name: str


def _choice(value: Any) -> str | FunctionName:
    match value:
        case None:
            return "auto"
        case "auto" | "none" | "required":
            return str(value)
        case str():
            return FunctionName(name=value)
        case {"type": "function", "function": {"name": str(name)}}:
            return FunctionName(name=name)
    raise wrong("data did not match any variant of untagged enum ToolTypeDeserializer")


_NAMED = struct("type", "function", type=tag("function"), function=struct("name", name=STRING))
ToolChoice = Annotated[
    str | FunctionName,
    BeforeValidator(_choice),
    WithJsonSchema({"anyOf": [{"type": ["string", "null"]}, _NAMED]}),
]
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


def _calls(value: Any) -> list[ToolCall]:
    try:
        return [ToolCall.model_validate(call) for call in value]
    except ValidationError:
        raise wrong(NO_BODY) from None


class Message(BaseModel):
    """One message of a conversation, its content flattened to text: earlier calls become their JSON."""

    role: Text
    content: str
    calls: list[ToolCall] = []
    unsupported: str | None = None
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def flatten(cls, value: Any) -> Any:
        """Join the parts of the content; leave a missing role to the field's own check."""
        if not isinstance(value, dict):
            return value
        named = {key: value[key] for key in ("role", "name") if key in value}
        if "role" not in value:
            return {**named, "content": ""}
        if value.get("content") is None and isinstance(value.get("tool_calls"), list):
            calls = _calls(value["tool_calls"])
            return {**named, "calls": calls, "content": compact([call.as_json() for call in calls])}
        text, unsupported = _text_of(value.get("content"))
        return {**named, "content": text, "unsupported": unsupported}

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """Describe messages as clients send them."""
        part = struct("type", "text", type=tag("text"), text=STRING)
        function = struct("name", "arguments", name=STRING, arguments={})
        calls = {"type": "array", "items": struct("id", "type", "function", id=STRING, type=STRING, function=function)}
        content = {"anyOf": [STRING, {"type": "array", "items": part}]}
        return {
            "anyOf": [
                struct("role", "content", role=STRING, content=content),
                struct("role", "tool_calls", role=STRING, tool_calls=calls),
            ]
        }


class StreamOptions(BaseModel):
    """What a chat stream carries besides the tokens."""

    include_usage: Flag = False


class ChatRequest(BaseModel):
    """The body of /v1/chat/completions and /chat_tokenize."""

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
    tools: list[Tool] | None = None
    tool_prompt: Text | None = None
    tool_choice: ToolChoice = "auto"
    response_format: GrammarType | None = None
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def one_limit(cls, value: Any) -> Any:
        """Refuse both names of the same field."""
        if isinstance(value, dict) and "max_tokens" in value and "max_completion_tokens" in value:
            raise wrong("duplicate field `max_tokens`")
        return value


def _prompts(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case []:
            raise wrong("Empty array detected. Do not use an empty array for the prompt.")
        case list() if all(isinstance(each, str) for each in value):
            return value
    raise wrong("data did not match any variant of untagged enum PromptDeserializer")


class CompletionRequest(BaseModel):
    """The body of /v1/completions."""

    model: Text | None = None
    prompt: Annotated[
        list[str],
        BeforeValidator(_prompts),
        WithJsonSchema({"anyOf": [STRING, {"type": "array", "items": STRING, "minItems": 1}]}),
    ]
    max_tokens: U32 | None = None
    temperature: F32 | None = None
    top_p: F32 | None = None
    stream: Flag = False
    seed: U64 | None = None
    suffix: Text | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    stop: list[Text] | None = None


class GenerateVertexInstance(BaseModel):
    """A text to continue; of the parameters only the length and the seed count, as in TGI."""

    inputs: Text
    parameters: GenerateParameters | None = None


VertexInstance = Annotated[
    GenerateVertexInstance | ChatRequest, untagged("VertexInstance", GenerateVertexInstance, ChatRequest)
]


class VertexRequest(BaseModel):
    """The body of /vertex."""

    instances: Annotated[list[VertexInstance], Field(json_schema_extra={"minItems": 1})]


class SagemakerRequest(
    RootModel[
        Annotated[
            CompatGenerateRequest | ChatRequest | CompletionRequest,
            untagged("SagemakerRequest", CompatGenerateRequest, ChatRequest, CompletionRequest),
        ]
    ]
):
    """The body of /invocations: that of /, of a chat or of a completion, the first that fits."""
