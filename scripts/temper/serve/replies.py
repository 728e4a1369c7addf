"""The JSON the server answers with: TGI 3.3.7's fields in TGI's order (router/src/lib.rs, chat.rs)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from temper.serve.engine import End, Step, Token
from temper.serve.validate import Limits

API_VERSION = "3.3.7"  # the TGI whose API this is
FINGERPRINT = f"{API_VERSION}-native"


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def info(model_id: str, limits: Limits) -> dict[str, Any]:
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


def generated(steps: list[Step], end: End, before: str, details: bool) -> dict[str, Any]:
    """Return the body of /generate; `before` is the prompt where the full text is wanted."""
    reply: dict[str, Any] = {"generated_text": before + end.text}
    if details:
        reply["details"] = {
            "finish_reason": end.reason,
            "generated_tokens": end.tokens,
            "seed": end.seed,
            "prefill": [{"id": token.id, "text": token.text, "logprob": token.logprob} for token in end.prefill],
            "tokens": [asdict(step.token) for step in steps],
        }
    return reply


def generated_event(index: int, step: Step, before: str, details: bool) -> dict[str, Any]:
    """Return one event of /generate_stream; `index` counts from 1."""
    end = step.end
    return {
        "index": index,
        "token": asdict(step.token),
        "generated_text": before + end.text if end else None,
        "details": {
            "finish_reason": end.reason,
            "generated_tokens": end.tokens,
            "seed": end.seed,
            "input_length": end.input_length,
        }
        if end and details
        else None,
    }


def _reason(end: End) -> str:
    """Return the reason as a chat shows it: only an end token is a "stop"."""
    return "stop" if end.reason == "eos_token" else end.reason


def _logprobs(tokens: list[Token]) -> dict[str, Any]:
    return {"content": [{"token": token.text, "logprob": token.logprob, "top_logprobs": []} for token in tokens]}


def _usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.input_length,
        "completion_tokens": end.tokens,
        "total_tokens": end.input_length + end.tokens,
    }


def chat(model: str, steps: list[Step], end: End, logprobs: bool) -> dict[str, Any]:
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
                "message": {"role": "assistant", "content": end.text},
                "logprobs": _logprobs([step.token for step in steps]) if logprobs else None,
                "finish_reason": _reason(end),
            }
        ],
        "usage": _usage(end),
    }


def _chunk(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage,
    }


def chat_events(model: str, step: Step, logprobs: bool, usage: bool) -> list[dict[str, Any]]:
    """Return the events of a chat stream for one token; after the last one, the usage where it is wanted."""
    end = step.end
    events = [
        _chunk(
            model,
            [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": "" if step.token.special else step.token.text},
                    "logprobs": _logprobs([step.token]) if logprobs else None,
                    "finish_reason": _reason(end) if end else None,
                }
            ],
            None,
        )
    ]
    if end and usage:
        events.append(_chunk(model, [], _usage(end)))
    return events
