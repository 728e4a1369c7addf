"""Several answers to choose from, the likeliest tokens, the watermark: sampling beyond the one token of each step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from serving import Running, admitted

from temper.serve import sampling
from temper.serve.validate import Valid


def generate(server: Running, **given: Any) -> dict[str, Any]:
    """Return the details of a short answer."""
    reply = admitted(server, {"inputs": "tick", "parameters": {"max_new_tokens": 6, "details": True, **given}})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def mean(tokens: list[dict[str, Any]]) -> float:
    """Return the mean log probability of tokens."""
    return float(sum(token["logprob"] for token in tokens) / len(tokens))


def test_best_of_gives_the_likeliest_and_shows_the_other(server: Running) -> None:
    """Of several answers with seeds of their own the one with the highest mean log probability is given."""
    replies = [generate(server, best_of=2, temperature=9.0, return_full_text=True) for _ in range(5)]
    for reply in replies:
        won, (lost,) = reply["details"], reply["details"]["best_of_sequences"]
        assert mean(won["tokens"]) >= mean(lost["tokens"])
        assert won["seed"] != lost["seed"] and won["prefill"] == lost["prefill"] == []
        assert reply["generated_text"].startswith("tick") and lost["generated_text"].startswith("tick")
        assert list(lost) == [
            "generated_text",
            "finish_reason",
            "generated_tokens",
            "seed",
            "prefill",
            "tokens",
        ]
    assert len({reply["generated_text"] for reply in replies}) > 1
    again = generate(server, temperature=9.0, seed=replies[0]["details"]["seed"])
    assert again["details"]["tokens"] == replies[0]["details"]["tokens"]


def test_best_of_zero_or_one_is_one_answer(server: Running) -> None:
    """0 counts as 1 without a stream, as in TGI, and nothing is said of other answers."""
    for best_of in (0, 1, None):
        assert "best_of_sequences" not in generate(server, best_of=best_of)["details"]


def test_each_of_several_answers_takes_a_place(server: Running) -> None:
    """Two answers are two requests to the engine: the log counts the tokens of both."""
    server.post(
        "/generate",
        {"inputs": "tick", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 5}},
        headers={"x-request-id": "two-answers"},
    )
    line = next(line for line in server.log.read_text().splitlines() if '"two-answers"' in line)
    assert json.loads(line)["generated_tokens"] > 5


def test_top_tokens_are_the_likeliest_of_each_place(server: Running) -> None:
    """They come in order, the greedy token first, with the same log probability; streams and chats have them too."""
    details = generate(server, top_n_tokens=3)["details"]
    assert len(details["top_tokens"]) == len(details["tokens"])
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert top[0] == token and len(top) >= 3
        assert [each["logprob"] for each in top] == sorted((each["logprob"] for each in top), reverse=True)
    body = {"inputs": "tick", "parameters": {"max_new_tokens": 6, "top_n_tokens": 3}}
    streamed = [json.loads(line[6:]) for line in server.post("/generate_stream", body).text.split("\n\n")[:-1]]
    assert [event["top_tokens"] for event in streamed] == details["top_tokens"]
    assert list(streamed[0]) == ["index", "token", "generated_text", "details", "top_tokens"]
    assert "top_tokens" not in generate(server, top_n_tokens=0)["details"]
    chat = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 3}
    logged = server.post("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2}).json()
    for place in logged["choices"][0]["logprobs"]["content"]:
        assert place["top_logprobs"][0] == {"token": place["token"], "logprob": place["logprob"]}
        assert len(place["top_logprobs"]) >= 2


def test_ties_at_the_last_rank_all_count() -> None:
    """A step may hold more than n; a token that cannot come is never among them."""
    wanted = Valid([0], 5, [], False, 0, top=2)
    token, logprob, top = sampling.Chooser(wanted)([0], torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0]))
    assert token == 1 and [each for each, _ in top] == [1, 2, 3] and top[0][1] == logprob
    ruled_out = sampling.Chooser(Valid([0], 5, [], False, 0, top=3, top_k=1))([0], torch.tensor([1.0, 3.0, 2.0]))
    assert ruled_out.top == [(1, 0.0)]


def test_the_watermark_prefers_the_tokens_its_key_names() -> None:
    """By the token before, the same half of the vocabulary gains 2 each time; another token names another half."""
    plain = torch.zeros(1000)
    marked = sampling._watermark(plain, [4, 7])
    assert torch.equal(marked, sampling._watermark(plain, [5, 7])) and marked.sum() == 1000
    assert set(marked.tolist()) == {0.0, 2.0}
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(15485863 * 7))
    assert torch.equal(marked.nonzero().flatten(), order[:500].sort().values)
    assert not torch.equal(marked, sampling._watermark(plain, [7, 4]))


@pytest.mark.parametrize("given", [{"watermark": True}, {"adapter_id": "none-of-this-name"}])
def test_fields_that_were_refused_are_taken(server: Running, given: dict[str, Any]) -> None:
    """A watermark changes the choice of tokens, a name of no adapter nothing."""
    changed = generate(server, **given)["details"]["tokens"] != generate(server)["details"]["tokens"]
    assert changed is ("watermark" in given)
