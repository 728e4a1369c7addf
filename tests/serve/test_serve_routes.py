"""The routes beside /generate and chats: their bodies, answers and errors as in TGI 3.3.7."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import serve_model
from serving import Running
from transformers import AutoTokenizer

TICK = {"inputs": "tick", "parameters": {"max_new_tokens": 3, "details": True}}
WHO = [{"role": "user", "content": "Who are you?"}]
WHO_TEXT = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"


def get(server: Running, path: str, **options: Any) -> httpx.Response:
    """Send a request without a body."""
    return httpx.request(options.pop("method", "GET"), server.url + path, trust_env=False, **options)


def events(text: str) -> list[Any]:
    """Return the data of a stream's events."""
    parts = text.split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
    return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


def test_the_root_answers_a_list_with_the_full_text(server: Running) -> None:
    """POST / is /generate in a list of one; return_full_text is true unless it is said to be false."""
    plain = server.post("/generate", TICK)
    rooted = server.post("/", TICK)
    text = plain.json()["generated_text"]
    assert rooted.json() == [{**plain.json(), "generated_text": "tick" + text}]
    assert rooted.headers["x-prompt-tokens"] == plain.headers["x-prompt-tokens"]
    asked = {**TICK["parameters"], "return_full_text": False}  # type: ignore[dict-item]
    assert server.post("/", {**TICK, "parameters": asked}).json() == [plain.json()]
    streamed = events(server.post("/", {**TICK, "stream": True}).text)
    assert [event["generated_text"] for event in streamed] == [None, None, "tick" + text]


def test_a_browser_at_the_root_is_sent_to_the_page(server: Running) -> None:
    """Everybody else gets the health answer; HEAD is answered wherever GET is."""
    sent = get(server, "/", headers={"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"})
    assert (sent.status_code, sent.headers["location"]) == (307, "/ui")
    for path in ("/", "/health", "/ping"):
        for method in ("GET", "HEAD"):
            answer = get(server, path, method=method)
            assert (answer.status_code, answer.content) == (200, b"")
    refused = get(server, "/", method="PUT")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")


def test_models_lists_the_one_model(server: Running) -> None:
    """/v1/models has the name that /info has."""
    model = {"id": "tiny", "object": "model", "created": 0, "owned_by": "tiny"}
    assert get(server, "/v1/models").json() == {"object": "list", "data": [model]}


@pytest.mark.parametrize("text", ["tick tock", "我是 a🔥b", ""])
def test_tokenize_counts_in_bytes(server: Running, text: str) -> None:
    """Tokens have their text and its place in bytes; the special one in front has neither; nothing is validated."""
    asked = {"inputs": text, "parameters": {"truncate": 1, "temperature": -1, "best_of": 99}}
    first, *tokens = server.post("/tokenize", asked).json()
    assert first == {"id": 0, "text": "", "start": 0, "stop": 0}
    raw = text.encode()
    assert all(token["text"].encode() == raw[token["start"] : token["stop"]] for token in tokens)
    covered = {byte for token in tokens for byte in range(token["start"], token["stop"])}
    assert covered == set(range(len(raw)))


def test_chat_tokenize_shows_what_the_model_reads(server: Running) -> None:
    """The template is filled in, no special token is added, and each token has its place."""
    reply = server.post("/chat_tokenize", {"messages": WHO}).json()
    assert reply["templated_text"] == WHO_TEXT
    assert "".join(token["text"] for token in reply["tokenize_response"]) == WHO_TEXT
    used = server.post("/v1/chat/completions", {"messages": WHO, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    assert len(reply["tokenize_response"]) == used
    assert server.post("/chat_tokenize", {"messages": [{"role": "tool", "content": "x"}]}).json() == {
        "error": "Template error: syntax error: no tools here (in <string>:1)",
        "error_type": "template_error",
    }


def test_completions_answer_each_prompt(server: Running) -> None:
    """Several prompts have a choice each and one usage; the headers are sums."""
    body = {"prompt": ["tick tock", "Who"], "max_tokens": 4, "temperature": 0, "model": "mine"}
    reply = server.post("/v1/completions", body)
    found = reply.json()
    assert list(found) == ["object", "id", "created", "choices", "model", "system_fingerprint", "usage"]
    assert (found["object"], found["id"], found["model"]) == ("text_completion", "", "tiny")
    singles = [
        server.post("/generate", {"inputs": text, "parameters": {"max_new_tokens": 4}}) for text in body["prompt"]
    ]
    texts = [single.json()["generated_text"] for single in singles]
    assert found["choices"] == [
        {"index": at, "text": text, "logprobs": None, "finish_reason": "length"} for at, text in enumerate(texts)
    ]
    prompt = sum(int(single.headers["x-prompt-tokens"]) for single in singles)
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}
    assert (reply.headers["x-prompt-tokens"], reply.headers["x-generated-tokens"]) == (str(prompt), "8")
    assert reply.headers["x-compute-characters"] == "12" and "x-compute-time" not in reply.headers


def test_completions_stream_each_prompt(server: Running) -> None:
    """Pieces have an empty reason and no usage; the last of each prompt has both, the reason as TGI itself calls it."""
    body = {"prompt": [WHO_TEXT, "tick"], "max_tokens": 30, "temperature": 0, "stream": True}
    *found, done = events(server.post("/v1/completions", body).text)
    assert done == "[DONE]" and all(event["object"] == "text_completion" for event in found)
    for index, reason in enumerate(["eos_token", "length"]):
        *pieces, last = [event for event in found if event["choices"][0]["index"] == index]
        assert all("usage" not in piece and piece["choices"][0]["finish_reason"] == "" for piece in pieces)
        assert last["choices"][0]["finish_reason"] == reason
        assert last["usage"]["completion_tokens"] == len(pieces) + 1
    said = "".join(event["choices"][0]["text"] for event in found if event["choices"][0]["index"] == 0)
    plain = server.post("/v1/completions", {**body, "prompt": WHO_TEXT, "stream": False}).json()["choices"][0]
    assert (said, plain["finish_reason"]) == (plain["text"] + "<|im_end|>", "stop")


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (
            {"suffix": ""},
            422,
            {
                "error": "Suffix is not supported and can be achieved by preprocessing the prompt.",
                "error_type": "suffix not supported",
            },
        ),
        (
            {"prompt": ["a"] * 5},
            422,
            {
                "error": "Number of prompts exceeds the maximum allowed batch size of 4",
                "error_type": "batch size exceeded",
            },
        ),
        (
            {"prompt": ["a", ""]},
            422,
            {"error": "Input validation error: `inputs` cannot be empty", "error_type": "validation"},
        ),
    ],
)
def test_completions_that_cannot_be_made(server: Running, more: dict[str, Any], status: int, said: Any) -> None:
    """Each fault has TGI's own words and type."""
    reply = server.post("/v1/completions", {"prompt": "a", **more})
    assert (reply.status_code, reply.json()) == (status, said)


def test_a_fault_in_one_streamed_completion_leaves_the_others(server: Running) -> None:
    """The prompt that fails says so in an event; the other is complete."""
    body = {"prompt": ["", "tick"], "max_tokens": 2, "stream": True}
    *found, done = events(server.post("/v1/completions", body).text)
    fault = {"error": {"message": "Input validation error: `inputs` cannot be empty", "http_status_code": 422}}
    assert done == "[DONE]" and found.count(fault) == 1 and len(found) == 3


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            "/v1/completions",
            {"prompt": []},
            "prompt: Empty array detected. Do not use an empty array for the prompt. at line 1 column 12",
        ),
        (
            "/v1/completions",
            {"prompt": [1]},
            "prompt: data did not match any variant of untagged enum PromptDeserializer at line 1 column 13",
        ),
        ("/invocations", {}, "data did not match any variant of untagged enum SagemakerRequest at line 1 column 2"),
        (
            "/vertex",
            {"instances": [{}]},
            "instances[0]: data did not match any variant of untagged enum VertexInstance at line 1 column 16",
        ),
        ("/tokenize", {}, "missing field `inputs` at line 1 column 2"),
        (
            "/chat_tokenize",
            {"messages": [], "tools": [{"type": "function", "function": {"name": "a"}}]},
            "tools[0].function: missing field `arguments` at line 1 column 66",
        ),
        (
            "/chat_tokenize",
            {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format: missing field `value` at line 1 column 83",
        ),
    ],
)
def test_bodies_of_other_shapes_are_rejected_in_plain_text(server: Running, path: str, body: Any, said: str) -> None:
    """The place and the words are those of TGI's JSON reader."""
    raw = json.dumps(body, separators=(",", ":"))
    reply = httpx.post(server.url + path, content=raw, headers={"content-type": "application/json"}, trust_env=False)
    assert reply.status_code == 422
    assert reply.text == f"Failed to deserialize the JSON body into the target type: {said}"


def test_invocations_take_three_kinds_of_bodies(server: Running) -> None:
    """A text, a chat or a completion, the text first; streams too."""
    text = server.post("/invocations", {**TICK, "messages": WHO, "prompt": "x"}).json()
    assert text == server.post("/", TICK).json()
    chat = server.post("/invocations", {"messages": WHO, "temperature": 0, "prompt": "x"}).json()
    assert chat["choices"][0]["message"]["content"] == serve_model.ANSWERS["Who are you?"]
    completion = server.post("/invocations", {"prompt": "tick", "max_tokens": 2, "temperature": 0}).json()
    assert completion["object"] == "text_completion"
    assert events(server.post("/invocations", {"messages": WHO, "stream": True}).text)[-1] == "[DONE]"


def test_vertex_answers_all_instances(server: Running) -> None:
    """Texts and chats may be mixed; no instance is an error of its own; one that fails fails all."""
    instances = [
        {"inputs": "tick", "parameters": {"max_new_tokens": 2, "seed": 3}},
        {"messages": WHO, "temperature": 0},
    ]
    predictions = server.post("/vertex", {"instances": instances}).json()["predictions"]
    assert len(predictions) == 2 and predictions[1] == serve_model.ANSWERS["Who are you?"]
    none = server.post("/vertex", {"instances": []})
    assert none.status_code == 422
    assert none.json() == {"error": "Input validation error", "error_type": "Input validation error"}
    failed = server.post("/vertex", {"instances": [*instances, {"inputs": ""}]})
    assert failed.json()["error"] == "Input validation error: `inputs` cannot be empty"


def test_earlier_tool_calls_become_their_json(server: Running) -> None:
    """An assistant's calls are shown to the model as TGI shows them, arguments as a text."""
    call = {"id": "0", "type": "function", "function": {"name": "look", "parameters": {"at": "这"}}}
    messages = [*WHO, {"role": "assistant", "content": None, "tool_calls": [call]}, *WHO]
    shown = server.post("/chat_tokenize", {"messages": messages}).json()["templated_text"]
    function = '{"description":null,"name":"look","arguments":"{\\"at\\":\\"这\\"}"}'
    assert f'<|im_start|>assistant\n[{{"id":"0","type":"function","function":{function}}}]<|im_end|>' in shown


def test_the_document_names_every_route_and_the_page_lists_it(server: Running) -> None:
    """The OpenAPI document has each route with bodies and errors; /docs needs nothing from elsewhere."""
    document = get(server, "/api-doc/openapi.json").json()
    assert set(document["paths"]) == {
        *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/invocations", "/vertex"),
        *("/tokenize", "/chat_tokenize", "/health", "/ping", "/info", "/v1/models", "/metrics"),
    }
    assert set(document["paths"]["/"]) == {"get", "post"}
    used = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {name.split('"')[0] for name in used} == set(document["components"]["schemas"])
    generate = document["paths"]["/generate"]["post"]
    assert set(generate["responses"]) == {*("200", "400", "408", "413", "415", "422", "424", "429", "500")}
    page = get(server, "/docs", follow_redirects=True)
    assert page.url.path == "/docs/" and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "POST /v1/chat/completions" in page.text and "http://" not in page.text and "https://" not in page.text


def test_answers_have_the_shapes_the_document_says(server: Running, folder: Any) -> None:
    """Every field of an answer is in its schema, and every required one in the answer."""
    schemas = get(server, "/api-doc/openapi.json").json()["components"]["schemas"]
    given = {"max_new_tokens": 2, "details": True, "do_sample": True, "best_of": 2, "top_n_tokens": 1}
    reply = server.post("/generate", {"inputs": "tick", "parameters": given}).json()
    for value, name in (
        (reply, "GenerateResponse"),
        (reply["details"], "Details"),
        (reply["details"]["best_of_sequences"][0], "BestOfSequence"),
        (reply["details"]["top_tokens"][0][0], "Token"),
        (get(server, "/info").json(), "Info"),
        (server.post("/v1/chat/completions", {"messages": WHO, "logprobs": True}).json(), "ChatCompletion"),
        (server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).json(), "CompletionFinal"),
    ):
        assert set(schemas[name]["required"]) <= set(value) <= set(schemas[name]["properties"]), name
    known = len(AutoTokenizer.from_pretrained(folder)("tick")["input_ids"])
    assert len(server.post("/tokenize", {"inputs": "tick"}).json()) == known
