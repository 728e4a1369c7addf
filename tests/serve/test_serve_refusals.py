"""What is refused, with TGI's status, words and shape; and what the server does when a request fails."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import serve_model
from serving import Running

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Who are you?"}]
LONG = "tick tock " * 600


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"temperature": -1, "repetition_penalty": 0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 1000. Given: 0"),
        ({"truncate": 1001}, "`truncate` must be strictly positive and less than 1000. Given: 1001"),
        ({"best_of": 3, "temperature": -1}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2, "temperature": -1, "top_k": 0}, "`temperature` must be strictly positive"),
        ({"best_of": 2, "repetition_penalty": 0}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "top_k": 5, "seed": 1, "top_n_tokens": 9}, "`seed` must not be set when `best_of` > 1"),
        ({"top_n_tokens": 6, "truncate": 0}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ],
)
def test_parameters_out_of_bounds_are_named(server: Running, given: dict[str, Any], said: str) -> None:
    """Each check of TGI answers 422 with its own words; a stream says the same in one event of a 200."""
    body = {"inputs": "tick", "parameters": given}
    response = server.post("/generate", body)
    expected = {"error": f"Input validation error: {said}", "error_type": "validation"}
    assert (response.status_code, response.json()) == (422, expected)
    if "best_of" in given:
        expected["error"] = "Input validation error: `best_of` != 1 is not supported when streaming tokens"
    stream = server.post("/generate_stream", body)
    assert (stream.status_code, stream.text.count("data:"), json.loads(stream.text[6:])) == (200, 1, expected)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": ""}, "`inputs` cannot be empty"),
        ({"inputs": "tick", "parameters": {"max_new_tokens": 2000}}, None),
        ({"inputs": LONG, "parameters": {"max_new_tokens": 1}}, "`inputs` must have less than 1000 tokens. Given: {n}"),
        (
            {"inputs": LONG, "parameters": {"max_new_tokens": 1100}},
            "`inputs` tokens + `max_new_tokens` must be <= 2000. Given: {n} `inputs` tokens and 1024 `max_new_tokens`",
        ),
    ],
)
def test_lengths_are_checked_in_tgis_order(server: Running, body: dict[str, Any], said: str | None) -> None:
    """Only 1024 new tokens are counted against the room, and the room comes before the prompt's own limit."""
    if said is None:  # 2000 would not fit beside the prompt, yet TGI accepts and stops when the room is used up
        with httpx.stream("POST", server.url + "/generate_stream", json=body, trust_env=False) as response:
            assert "error" not in next(response.iter_lines())
        return
    reply = server.post("/generate", body)
    number = reply.json()["error"].split("Given: ")[-1].split(" ")[0]
    assert reply.json()["error"] == "Input validation error: " + said.format(n=number)
    assert reply.status_code == 422 and ("{n}" not in said or int(number) > 1000)


@pytest.mark.parametrize(
    ("path", "raw", "status", "said"),
    [
        ("/generate", b"nope", 400, "Failed to parse the request body as JSON: expected ident at line 1 column 2"),
        ("/generate", b"{}", 422, "missing field `inputs` at line 1 column 2"),
        (
            "/generate",
            b'{"inputs": 1}',
            422,
            "inputs: invalid type: integer `1`, expected a string at line 1 column 12",
        ),
        (
            "/generate",
            b'{"inputs":"a","parameters":null}',
            422,
            "parameters: invalid type: null, expected struct GenerateParameters at line 1 column 31",
        ),
        (
            "/generate_stream",
            b'{"inputs":"a",\n"parameters":{"max_new_tokens":-1}}',
            422,
            "parameters.max_new_tokens: invalid value: integer `-1`, expected u32 at line 2 column 33",
        ),
        (
            "/generate",
            b'{"inputs":"a","parameters":{"max_new_tokens":"5"}}',
            422,
            'parameters.max_new_tokens: invalid type: string "5", expected u32 at line 1 column 48',
        ),
        (
            "/generate",
            b'{"inputs":"a","parameters":{"stop":null}}',
            422,
            "parameters.stop: invalid type: null, expected a sequence at line 1 column 39",
        ),
        (
            CHAT,
            b'{"messages":[],"stop":"a"}',
            422,
            'stop: invalid type: string "a", expected a sequence at line 1 column 25',
        ),
        (
            CHAT,
            b'{"messages":[],"stream_options":null}',
            422,
            "stream_options: invalid type: null, expected struct StreamOptions at line 1 column 36",
        ),
        (
            CHAT,
            b'{"messages":[{"role":"user"}]}',
            422,
            "messages[0]: data did not match any variant of untagged enum MessageBody at line 1 column 28",
        ),
        (
            CHAT,
            b'{"messages":[],"max_tokens":1,"max_completion_tokens":1}',
            422,
            "duplicate field `max_tokens` at line 1",
        ),
        (
            "/generate",
            b'{"inputs":"' + b"a" * 2_000_000 + b'"}',
            413,
            "Failed to buffer the request body: length limit exceeded",
        ),
    ],
)
def test_a_body_that_is_no_request_gets_plain_text(
    server: Running, path: str, raw: bytes, status: int, said: str
) -> None:
    """Rejections come before validation, in plain text, with the place in the body."""
    response = httpx.post(server.url + path, content=raw, headers={"content-type": "application/json"}, trust_env=False)
    prefix = "Failed to deserialize the JSON body into the target type: " if status == 422 else ""
    assert response.status_code == status and response.text.startswith(prefix + said)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_only_json_is_read(server: Running) -> None:
    """Another media type is 415, a JSON one under another name is fine."""
    refused = httpx.post(server.url + "/generate", content=b"{}", trust_env=False)
    assert (refused.status_code, refused.text) == (415, "Expected request with `Content-Type: application/json`")
    named = {"content-type": "application/vnd.api+json; charset=utf-8"}
    taken = httpx.post(server.url + "/generate", content=b'{"inputs":""}', headers=named, trust_env=False)
    assert taken.json()["error_type"] == "validation"


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"tools": [], "tool_choice": "look"}, "tool_error", "Tool error: Tool with name look not found"),
        (
            {"tools": [], "response_format": {"type": "regex", "value": "a"}},
            "tool_error",
            "Tool error: Grammar and tools are mutually exclusive",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "template_error",
            "Template error: syntax error: no tools here (in <string>:1)",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "validation",
            "Input validation error: `image_url` in messages is not supported by this server",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_chats_that_cannot_become_a_prompt_are_refused_before_a_stream_opens(
    server: Running, more: dict[str, Any], kind: str, said: str, stream: bool
) -> None:
    """Template and tool errors are real 422s even for a stream."""
    response = server.post(CHAT, {"messages": USER, "stream": stream, **more})
    assert (response.status_code, response.json()) == (422, {"error": said, "error_type": kind})


def test_a_chat_stream_words_its_errors_as_openai_does(server: Running) -> None:
    """A parameter error in a chat stream is an event with a message and 422, then [DONE]."""
    body = {"messages": USER, "stream": True, "top_logprobs": 6}
    error = "Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 6"
    event = json.dumps({"error": {"message": error, "http_status_code": 422}}, separators=(",", ":"))
    assert server.post(CHAT, body).text == f"data: {event}\n\ndata: [DONE]\n\n"
    assert server.post(CHAT, {**body, "stream": False}).json() == {"error": error, "error_type": "validation"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/generate", 405), ("POST", "/health", 405), ("GET", "/health/", 404)],
)
def test_unknown_paths_and_methods_have_empty_bodies(server: Running, method: str, path: str, status: int) -> None:
    """404 and 405 carry no text."""
    response = httpx.request(method, server.url + path, trust_env=False)
    assert (response.status_code, response.content) == (status, b"")


def test_a_failed_generation_is_424_and_does_not_last(server: Running) -> None:
    """A model that fails on one request says so, and health finds out that it still works."""
    failed = server.post("/generate", {"inputs": serve_model.OUTSIDE, "parameters": {"max_new_tokens": 2}})
    assert failed.status_code == 424 and failed.json()["error_type"] == "generation"
    assert failed.json()["error"].startswith("Request failed during generation: IndexError")
    assert httpx.get(server.url + "/health", trust_env=False).status_code == 200
    assert server.post("/generate", {"inputs": "tick", "parameters": {"max_new_tokens": 2}}).status_code == 200


def test_the_log_has_a_line_per_request_and_no_text_of_it(server: Running) -> None:
    """A line names time, request, route, status, tokens and milliseconds; prompts and queries stay out."""
    server.post(
        "/generate?secret=1",
        {"inputs": "tick secret", "parameters": {"max_new_tokens": 2}},
        headers={"x-request-id": "probe-7"},
    )
    server.post("/secret", {})
    server.post("/generate", {"inputs": "tick", "parameters": {"stop": ["secret"] * 9}})
    text = server.log.read_text()
    assert "secret" not in text and "tick" not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    line = next(line for line in lines if line["id"] == "probe-7")
    assert list(line) == ["time", "id", "method", "route", "status", "prompt_tokens", "generated_tokens", "ms"]
    assert (line["route"], line["status"], line["generated_tokens"]) == ("/generate", 200, 2)
