"""The JSON the server answers with: TGI 3.3.7's fields in TGI's order (router/src/lib.rs, chat.rs)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from temper.serve import shapes
from temper.serve.engine import End, Step, Token
from temper.serve.fields import compact
from temper.serve.tools import Call
from temper.serve.validate import Limits

API_VERSION = "3.3.7"  # the TGI whose API this is
FINGERPRINT = f"{API_VERSION}-native"


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    steps: list[Step]
    end: End

    def mean_logprob(self) -> float:
        """Return the mean log probability of its tokens."""
        known = (step.token.logprob for step in self.steps)
        return sum(float("-inf") if value is None else value for value in known) / len(self.steps)


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + compact(value).encode() + b"\n\n"


def info(model_id: str, limits: Limits) -> shapes.Info:
    """Return the body of /info."""
    return {
        "model_id": model_id,
        "model_sha": None,
        "model_pipeline_tag": None,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": 1,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "text-generation-router",
        "version": API_VERSION,
        "sha": None,
        "docker_label": None,
    }


def models(model_id: str) -> shapes.ModelsInfo:
    """Return the body of /v1/models."""
    return {"object": "list", "data": [{"id": model_id, "object": "model", "created": 0, "owned_by": model_id}]}


def headers(kind: str, characters: int, arrived: float, end: End) -> dict[str, str]:
    """Return the x-… headers of a complete answer; times in ms, x-compute-time in s."""
    now = time.monotonic()
    inference = now - end.started
    spans = {
        "total": now - arrived,
        "validation": end.queued - arrived,
        "queue": end.started - end.queued,
        "inference": inference,
    }
    return {
        "x-compute-type": kind,
        "x-compute-time": repr(now - arrived),
        "x-compute-characters": str(characters),
        **{f"x-{name}-time": str(int(max(span, 0) * 1000)) for name, span in spans.items()},
        "x-time-per-token": str(int(inference * 1000 / end.tokens)),
        "x-prompt-tokens": str(end.input_length),
        "x-generated-tokens": str(end.tokens),
    }


def _token(token: Token) -> shapes.Token:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _sequence(answer: Answer) -> shapes.Sequence:
    end = answer.end
    found: shapes.Sequence = {
        "finish_reason": end.reason,
        "generated_tokens": end.tokens,
        "seed": end.seed,
        "prefill": [{"id": token.id, "text": token.text, "logprob": token.logprob} for token in end.prefill],
        "tokens": [_token(step.token) for step in answer.steps],
    }
    if any(step.top for step in answer.steps):
        found["top_tokens"] = [list(map(_token, step.top)) for step in answer.steps]
    return found


def generated(answer: Answer, losers: Sequence[Answer] | None, before: str, details: bool) -> shapes.GenerateResponse:
    """Return the body of /generate.

    `losers` are the answers that best_of found worse, None where it was not asked for; `before` is the prompt where the
    full text is wanted.
    """
    text = before + answer.end.text
    if not details:
        return {"generated_text": text}
    described = cast(shapes.Details, _sequence(answer))
    if losers is not None:
        described["best_of_sequences"] = [
            {"generated_text": before + each.end.text, **_sequence(each)} for each in losers
        ]
    return {"generated_text": text, "details": described}


def generated_event(index: int, step: Step, before: str, details: bool) -> shapes.StreamResponse:
    """Return one event of /generate_stream; `index` counts from 1."""
    end = step.end
    found: shapes.StreamResponse = {
        "index": index,
        "token": _token(step.token),
        "generated_text": before + end.text if end else None,
        "details": _stream_details(end) if end and details else None,
    }
    if step.top:
        found["top_tokens"] = list(map(_token, step.top))
    return found


def _stream_details(end: End) -> shapes.StreamDetails:
    return {
        "finish_reason": end.reason,
        "generated_tokens": end.tokens,
        "seed": end.seed,
        "input_length": end.input_length,
    }


def finish_reason(end: End) -> str:
    """Return the reason as OpenAI's clients know it: only an end token is a "stop"."""
    return "stop" if end.reason == "eos_token" else end.reason


def _logprobs(steps: Sequence[Step]) -> shapes.ChatCompletionLogprobs:
    return {
        "content": [
            {
                "token": step.token.text,
                "logprob": step.token.logprob,
                "top_logprobs": [{"token": each.text, "logprob": each.logprob} for each in step.top],
            }
            for step in steps
        ]
    }


def usage(ends: Sequence[End]) -> shapes.Usage:
    """Return the tokens of all answers together."""
    prompt, completion = sum(end.input_length for end in ends), sum(end.tokens for end in ends)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat(model: str, answer: Answer, call: Call | None, logprobs: bool) -> shapes.ChatCompletion:
    """Return the body of /v1/chat/completions."""
    return {
        "object": "chat.completion",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": _called(call) if call else {"role": "assistant", "content": answer.end.text},
                "logprobs": _logprobs(answer.steps) if logprobs else None,
                "finish_reason": finish_reason(answer.end),
            }
        ],
        "usage": usage([answer.end]),
    }


def _called(call: Call) -> shapes.ToolCallMessage:
    function: shapes.FunctionCall = {"description": None, "name": call.name, "arguments": call.arguments}
    return {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}


def text_delta(step: Step) -> shapes.TextMessage:
    """Return what a token adds to a chat's answer."""
    return {"role": "assistant", "content": "" if step.token.special else step.token.text}


def call_delta(name: str | None, arguments: str, number: str) -> shapes.ToolCallDelta:
    """Return what a token adds to a tool call; the name comes once, the call's number each time."""
    function: shapes.Function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "tool_calls": [{"index": 0, "id": number, "type": "function", "function": function}],
    }


def chat_event(
    model: str, delta: shapes.TextMessage | shapes.ToolCallDelta, step: Step, logprobs: bool
) -> shapes.ChatCompletionChunk:
    """Return one event of a chat stream."""
    choice: shapes.ChatCompletionChoice = {
        "index": 0,
        "delta": delta,
        "logprobs": _logprobs([step]) if logprobs else None,
        "finish_reason": finish_reason(step.end) if step.end else None,
    }
    return _chunk(model, [choice], None)


def usage_event(model: str, end: End) -> shapes.ChatCompletionChunk:
    """Return the event after the last token, where it is wanted."""
    return _chunk(model, [], usage([end]))


def _chunk(
    model: str, choices: list[shapes.ChatCompletionChoice], used: shapes.Usage | None
) -> shapes.ChatCompletionChunk:
    return {
        "object": "chat.completion.chunk",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": used,
    }


def completion(model: str, ends: Sequence[End]) -> shapes.CompletionFinal:
    """Return the body of /v1/completions, with a choice for each prompt."""
    choices = [_completed(index, end.text, finish_reason(end)) for index, end in enumerate(ends)]
    return {**_completion_chunk(model, choices), "usage": usage(ends)}


def completion_event(model: str, index: int, step: Step) -> shapes.Chunk | shapes.CompletionFinal:
    """Return one event of a stream of completions; the last of each prompt has the usage and the reason as it is."""
    end = step.end
    chunk = _completion_chunk(model, [_completed(index, step.token.text, end.reason if end else "")])
    return {**chunk, "usage": usage([end])} if end else chunk


def _completed(index: int, text: str, reason: str) -> shapes.CompletionComplete:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _completion_chunk(model: str, choices: list[shapes.CompletionComplete]) -> shapes.Chunk:
    return {
        "object": "text_completion",
        "id": "",
        "created": int(time.time()),
        "choices": choices,
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }
