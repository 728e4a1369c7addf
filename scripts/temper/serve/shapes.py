"""The shapes of the answers, named as in TGI's OpenAPI document: replies.py fills them, openapi.py publishes them."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import WithJsonSchema
from typing_extensions import TypedDict  # typing's own is not understood by pydantic before Python 3.12

FinishReason = Annotated[str, WithJsonSchema({"type": "string", "enum": ["length", "eos_token", "stop_sequence"]})]


class ErrorResponse(TypedDict):
    """Why a request that was understood cannot be answered."""

    error: str
    error_type: str


class APIError(TypedDict):
    """What went wrong, in a stream; the status is always 422."""

    message: str
    http_status_code: int


class OpenaiErrorEvent(TypedDict):
    """The event of a stream to /v1/… that cannot go on."""

    error: APIError


class PrefillToken(TypedDict):
    """A token of the prompt; the first has no log probability."""

    id: int
    text: str
    logprob: float | None


class Token(PrefillToken):
    """A token of an answer."""

    special: bool


class Sequence(TypedDict):
    """How an answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class BestOfSequence(Sequence):
    """An answer that was found worse than the one given."""

    generated_text: str


class Details(Sequence):
    """How the given answer came about."""

    best_of_sequences: NotRequired[list[BestOfSequence]]


class GenerateResponse(TypedDict):
    """A text that was continued."""

    generated_text: str
    details: NotRequired[Details]


class StreamDetails(TypedDict):
    """How a streamed answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(TypedDict):
    """An event of a streamed answer: one token; the last has the whole text."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: str | None
    details: StreamDetails | None


class Usage(TypedDict):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletionTopLogprob(TypedDict):
    """A token that was likely."""

    token: str
    logprob: float | None


class ChatCompletionLogprob(ChatCompletionTopLogprob):
    """A token that was chosen, and those that were likely."""

    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(TypedDict):
    """The tokens of a chat's answer."""

    content: list[ChatCompletionLogprob]


class TextMessage(TypedDict):
    """An answer in words."""

    role: str
    content: str


class FunctionCall(TypedDict):
    """The function that is called; its arguments are JSON text."""

    description: str | None
    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool."""

    id: str
    type: str
    function: FunctionCall


class ToolCallMessage(TypedDict):
    """An answer that calls tools."""

    role: str
    tool_calls: list[ToolCall]


class ChatCompletionComplete(TypedDict):
    """A chat's answer and why it ended."""

    index: int
    message: TextMessage | ToolCallMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """The answer to a conversation."""

    object: Literal["chat.completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionComplete]
    usage: Usage


class Function(TypedDict):
    """A piece of a call; the name comes with the first."""

    name: str | None
    arguments: str


class DeltaToolCall(TypedDict):
    """What a token adds to a call."""

    index: int
    id: str
    type: str
    function: Function


class ToolCallDelta(TypedDict):
    """What a token adds to an answer that calls a tool."""

    role: str
    tool_calls: list[DeltaToolCall]


class ChatCompletionChoice(TypedDict):
    """What a token adds to a chat's answer."""

    index: int
    delta: TextMessage | ToolCallDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str | None


class ChatCompletionChunk(TypedDict):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: Usage | None


class CompletionComplete(TypedDict):
    """The text for one prompt, or a piece of it."""

    index: int
    text: str
    logprobs: None
    finish_reason: str


class Chunk(TypedDict):
    """An event of a stream of completions."""

    object: Literal["text_completion"]
    id: str
    created: int
    choices: list[CompletionComplete]
    model: str
    system_fingerprint: str


class CompletionFinal(Chunk):
    """Texts for all prompts, or the last event for one of them."""

    usage: Usage


class SimpleToken(TypedDict):
    """A token of a text; places are in bytes."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(TypedDict):
    """A conversation as the model reads it."""

    tokenize_response: list[SimpleToken]
    templated_text: str


class VertexResponse(TypedDict):
    """The texts for all instances."""

    predictions: list[str]


class ModelInfo(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsInfo(TypedDict):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelInfo]


class Info(TypedDict):
    """The model and the limits of this server."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
