"""The HTTP contract: the five routes answer as TGI 3.3.7 does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
from serving import Running
from transformers import AutoTokenizer

CHAT = "/v1/chat/completions"
QUESTIONS = list(serve_model.ANSWERS)


def user(question: str, **more: Any) -> dict[str, Any]:
    """Return a greedy chat request with one question."""
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **more}


def events(response: httpx.Response) -> list[Any]:
    """Return a stream's events, having checked its framing to the byte."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-accel-buffering"] == "no"
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


def test_health_is_an_empty_200(server: Running) -> None:
    """/health has no body; probes look at the status only."""
    response = httpx.get(server.url + "/health", trust_env=False)
    assert (response.status_code, response.content) == (200, b"")


def test_info_has_exactly_the_fields_of_tgi(server: Running) -> None:
    """/info names the model and the limits clients plan with."""
    info = httpx.get(server.url + "/info", trust_env=False).json()
    assert list(info) == [
        "model_id",
        "model_sha",
        "model_pipeline_tag",
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_input_tokens",
        "max_total_tokens",
        "validation_workers",
        "max_client_batch_size",
        "router",
        "version",
        "sha",
        "docker_label",
    ]
    assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == ("tiny", 1000, 2000)


@pytest.mark.parametrize("text", ["tick tock", "def add", "我是"])
def test_greedy_tokens_equal_those_of_transformers(server: Running, folder: Path, text: str) -> None:
    """/generate without sampling makes the very tokens of transformers.generate, special tokens in front included."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    expected, _ = serve_model.reference(folder, ids, 40)
    reply = server.post("/generate", {"inputs": text, "parameters": {"max_new_tokens": 40, "details": True}})
    assert [token["id"] for token in reply.json()["details"]["tokens"]] == expected
    assert reply.headers["x-prompt-tokens"] == str(len(ids))


@pytest.mark.parametrize("question", QUESTIONS)
def test_chat_answers_what_the_model_learnt(server: Running, folder: Path, question: str) -> None:
    """A chat is put through the template without further special tokens, and ends with the end token."""
    reply = server.post(CHAT, user(question, logprobs=True)).json()
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": serve_model.ANSWERS[question]}
    assert choice["finish_reason"] == "stop"
    assert [list(reply), reply["object"], reply["id"], reply["model"], reply["system_fingerprint"]] == [
        ["object", "id", "created", "model", "system_fingerprint", "choices", "usage"],
        "chat.completion",
        "",
        "tiny",
        "3.3.7-native",
    ]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(tokens) == serve_model.ANSWERS[question] + "<|im_end|>"
    prompt = len(serve_model.prompt_ids(AutoTokenizer.from_pretrained(folder), question))
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len(tokens),
        "total_tokens": prompt + len(tokens),
    }


def test_generate_gives_details_and_headers(server: Running) -> None:
    """Details hold each token with its log probability; headers hold counts and times."""
    body = {
        "inputs": "tick",
        "parameters": {"max_new_tokens": 3, "details": True, "decoder_input_details": True, "return_full_text": True},
    }
    response = server.post("/generate", body)
    reply = response.json()
    details = reply["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 3, None)
    assert reply["generated_text"] == "tick" + "".join(token["text"] for token in details["tokens"])
    assert all(
        list(token) == ["id", "text", "logprob", "special"] and token["logprob"] <= 0 for token in details["tokens"]
    )
    assert details["prefill"][0] == {"id": 0, "text": "<|endoftext|>", "logprob": None}
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])
    assert {name: response.headers[name] for name in ("x-compute-characters", "x-generated-tokens")} == {
        "x-compute-characters": "4",
        "x-generated-tokens": "3",
    }
    for name in ("total", "validation", "queue", "inference"):
        assert int(response.headers[f"x-{name}-time"]) >= 0
    assert float(response.headers["x-compute-time"]) > 0 and response.headers["x-compute-type"] == "cpu"
    assert server.post("/generate", {"inputs": "tick", "parameters": {"max_new_tokens": 1}}).json().keys() == {
        "generated_text"
    }


def test_stream_carries_a_token_an_event_and_the_text_last(server: Running) -> None:
    """/generate_stream counts events from 1, gives text and details once, and ends without [DONE]."""
    body = {"inputs": "tick", "parameters": {"max_new_tokens": 4, "details": True}}
    found = events(server.post("/generate_stream", body))
    assert [event["index"] for event in found] == [1, 2, 3, 4]
    assert all(list(event) == ["index", "token", "generated_text", "details"] for event in found)
    assert all(event["generated_text"] is None and event["details"] is None for event in found[:-1])
    assert found[-1]["generated_text"] == "".join(event["token"]["text"] for event in found)
    assert found[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 4,
        "seed": None,
        "input_length": int(server.post("/generate", body).headers["x-prompt-tokens"]),
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_chat_stream_never_splits_a_character(server: Running, question: str) -> None:
    """Characters of several tokens come out whole; role is in each delta, usage last, then [DONE]."""
    found = events(server.post(CHAT, user(question, stream=True, stream_options={"include_usage": True})))
    assert found.pop() == "data: [DONE]"
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == len(found)
    choices = [event["choices"][0] for event in found]
    assert "\ufffd" not in "".join(choice["delta"]["content"] for choice in choices)
    assert "".join(choice["delta"]["content"] for choice in choices) == serve_model.ANSWERS[question]
    assert all(choice["delta"]["role"] == "assistant" and choice["logprobs"] is None for choice in choices)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all(event["usage"] is None and event["object"] == "chat.completion.chunk" for event in found)


def test_a_cut_character_is_left_out(server: Running) -> None:
    """Whatever the limit cuts, the text is a beginning of the whole answer."""
    whole = serve_model.ANSWERS["你是谁？"]
    for limit in range(1, 40, 3):
        reply = server.post(CHAT, user("你是谁？", max_tokens=limit)).json()["choices"][0]
        assert whole.startswith(reply["message"]["content"]) and reply["finish_reason"] == "length"
    assert reply["message"]["content"]


def test_length_is_tested_before_the_end_token(server: Running) -> None:
    """A limit that the end token just reaches is "length", as in TGI."""
    used = server.post(CHAT, user("Who are you?")).json()["usage"]["completion_tokens"]
    assert server.post(CHAT, user("Who are you?", max_tokens=used)).json()["choices"][0]["finish_reason"] == "length"
    assert server.post(CHAT, user("Who are you?", max_tokens=used + 1)).json()["choices"][0]["finish_reason"] == "stop"


def test_stop_sequences_may_span_tokens_and_stay_in_the_text(server: Running) -> None:
    """A stop sequence must end where a token ends; it is part of the text and the reason is stop_sequence."""
    content = server.post(CHAT, user("Who are you?", logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    pieces = [token["token"] for token in content]

    def stopped(*stop: str) -> tuple[str, str]:
        choice = server.post(CHAT, user("Who are you?", stop=list(stop))).json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    across = pieces[2][-1] + pieces[3] + pieces[4]  # begins inside a token, ends with another
    assert stopped("not in it", across) == ("".join(pieces[:5]), "stop_sequence")
    assert stopped(pieces[0]) == (pieces[0], "stop_sequence")
    assert len(pieces[4]) > 1
    assert stopped(across[:-1]) == (serve_model.ANSWERS["Who are you?"], "stop")  # ends inside a token
    assert stopped(".*") == (serve_model.ANSWERS["Who are you?"], "stop")  # text, not a pattern


def test_a_seed_repeats_a_sampled_answer(server: Running) -> None:
    """Equal seeds give equal answers, others differ, and the seed is reported when one was used."""

    def sample(seed: int | None) -> dict[str, Any]:
        given = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 20, "details": True, "seed": seed}
        return dict(server.post("/generate", {"inputs": "tick", "parameters": given}).json())

    one, again, other, free = sample(2**64 - 1), sample(2**64 - 1), sample(1), sample(None)
    assert one == again and one["details"]["seed"] == 2**64 - 1
    assert len({reply["generated_text"] for reply in (one, other, free)}) == 3
    assert isinstance(free["details"]["seed"], int)
    # Without any parameters TGI samples; with empty ones it is greedy.
    assert (
        server.post("/generate", {"inputs": "Who", "parameters": {"details": True, "max_new_tokens": 1}}).json()[
            "details"
        ]["seed"]
        is None
    )
    chats = [
        server.post(CHAT, {**user("Who are you?", seed=seed, max_tokens=8), "temperature": 9.0}).json()["choices"][0][
            "message"
        ]["content"]
        for seed in (3, 3, 4)
    ]
    assert chats[0] == chats[1] != chats[2]


def test_a_final_assistant_message_is_continued(server: Running) -> None:
    """The answer goes on where the caller's assistant message ends."""
    body = user("Who are you?")
    body["messages"].append({"role": "assistant", "content": "I am a small"})
    reply = server.post(CHAT, body).json()
    assert reply["choices"][0]["message"]["content"] == " model that answers quickly and stops on time."


def test_content_may_come_in_parts_and_the_model_name_is_echoed(server: Running) -> None:
    """Text parts are joined; a model name other than "tgi" comes back as it was sent."""
    body = user("", model="mine")
    body["messages"][0]["content"] = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]
    reply = server.post(CHAT, body).json()
    assert (reply["model"], reply["choices"][0]["message"]["content"]) == ("mine", serve_model.ANSWERS["Who are you?"])


def test_truncate_keeps_the_last_tokens(server: Running) -> None:
    """Truncate n counts and uses the last n tokens of the prompt."""
    reply = server.post("/generate", {"inputs": "tick tock " * 300, "parameters": {"truncate": 7, "max_new_tokens": 1}})
    assert reply.headers["x-prompt-tokens"] == "7"


def test_official_client_understands_everything(server: Running) -> None:
    """huggingface_hub's InferenceClient, TGI's own client, works unchanged for all it offers here."""
    import os
    import subprocess
    import sys

    program = f"""
from huggingface_hub import InferenceClient
client = InferenceClient({server.url!r})
plain, streamed = (InferenceClient({server.url!r} + path) for path in ("/generate", "/generate_stream"))
reply = plain.text_generation("tick", details=True, max_new_tokens=5, do_sample=False)
assert reply.details.finish_reason == "length" and len(reply.details.tokens) == 5
steps = list(streamed.text_generation("tick", details=True, stream=True, max_new_tokens=5, do_sample=False))
assert steps[-1].generated_text == reply.generated_text and steps[-1].details.generated_tokens == 5
messages = [{{"role": "user", "content": "Who are you?"}}]
answer = {serve_model.ANSWERS["Who are you?"]!r}
whole = client.chat_completion(messages, temperature=0, max_tokens=50, logprobs=True)
assert whole.choices[0].message.content == answer and whole.choices[0].finish_reason == "stop"
parts = list(client.chat_completion(messages, temperature=0, max_tokens=50, stream=True))
assert "".join(part.choices[0].delta.content for part in parts) == answer
from huggingface_hub.errors import ValidationError
try:
    plain.text_generation("tick", top_p=1.0, max_new_tokens=5)
except ValidationError as error:
    assert "`top_p` must be > 0.0 and < 1.0" in str(error)
else:
    raise AssertionError("no error")
print("understood")
"""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "understood\n", done.stderr
