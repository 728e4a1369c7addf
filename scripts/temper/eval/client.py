"""What evaluation asks of a server: an answer to a conversation, and how likely a text is.

Any engine: the CPU server of this repository and TGI 3.3.7 (POST /chat_tokenize, /generate with decoder_input_details;
TGI wants --enable-prefill-logprobs), and vLLM (POST /tokenize, /detokenize, /v1/completions with prompt_logprobs).
Standard library only, as serve.golden; a loopback address is asked past any proxy.
"""

from __future__ import annotations

import time
import urllib.error
from dataclasses import dataclass
from typing import Any

from temper.errors import ServeError
from temper.serve import direct

TRIES, WAIT_S, TIMEOUT_S = 4, 0.5, 600
STOPS = 4  # stop texts that TGI takes; the others cut an answer here
Messages = list[dict[str, str]]


class Refused(Exception):
    """The server refuses this request for good, such as a prompt that is too long; says why."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer; times are in seconds from sending to the last byte."""

    text: str
    tokens: int
    finish_reason: str
    seconds: float


@dataclass(frozen=True)
class Likelihood:
    """The negative log likelihood of an answer, in nats, summed over its tokens."""

    nats: float
    tokens: int


class Client:
    """One server."""

    def __init__(self, url: str, engine: str, key: str | None = None, model: str = "tgi") -> None:
        """Know the server at `url`, its engine (local, tgi or vllm) and the name its model answers to."""
        self.url, self.engine, self.key, self.model = url.rstrip("/"), engine, key, model

    def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """Return the greedy answer; Refused when it cannot be had, ServeError when the server does not answer."""
        began = time.monotonic()
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        reply = self._post("/v1/chat/completions", body)
        choice = reply["choices"][0]
        return Answer(
            choice["message"]["content"] or "",
            reply["usage"]["completion_tokens"],
            choice["finish_reason"],
            time.monotonic() - began,
        )

    def likelihood(self, messages: Messages, answer: str) -> Likelihood | None:
        """Return how likely `answer` (its end token included by the caller) is; None where the server does not tell."""
        if self.engine == "vllm":
            before = self._post("/tokenize", {"messages": messages, "add_generation_prompt": True})["tokens"]
            told = self._told_ids(before, answer)
        else:
            asked = self._chat_tokenize(messages)
            before = [token["id"] for token in asked["tokenize_response"]]
            told = self._told_text(before, asked["templated_text"] + answer)
        return Likelihood(-sum(log for _, log in told), len(told)) if told else None

    def templated(self, messages: Messages) -> str:
        """Return a conversation as the server's template writes it, with the beginning of an answer."""
        if self.engine == "vllm":
            ids = self._post("/tokenize", {"messages": messages, "add_generation_prompt": True})["tokens"]
            return str(self._post("/detokenize", {"tokens": ids})["prompt"])
        return str(self._chat_tokenize(messages)["templated_text"])

    def complete(self, text: str, max_tokens: int, stops: list[str]) -> str:
        """Return how the model goes on with a text, greedily, up to the first of `stops`."""
        if self.engine == "vllm":
            body = {"model": self.model, "prompt": text, "max_tokens": max_tokens, "temperature": 0, "stop": stops}
            said = self._post("/v1/completions", body)["choices"][0]["text"]
        else:
            parameters = {"max_new_tokens": max_tokens, "stop": stops[:STOPS]}
            said = self._post("/generate", {"inputs": text, "parameters": parameters})["generated_text"]
        return str(said)[: min((at for stop in stops if (at := said.find(stop)) >= 0), default=len(said))]

    def continuation(self, context: str, rest: str) -> tuple[float, bool]:
        """Return the log likelihood of `rest` after `context`, and whether greedy decoding says it."""
        if self.engine == "vllm":
            before = self._post("/tokenize", {"prompt": context})["tokens"] if context else []
            told = self._told_ids(before, rest)
        else:
            tokens = self._post("/tokenize", {"inputs": context}) if context else []
            told = self._told_text([token["id"] for token in tokens], context + rest)
        if not told:
            raise ServeError(f"{self.url} does not tell how likely a text is", "see make logs")
        return sum(log for _, log in told), bool(context) and self._says(context, [token for token, _ in told])

    def _says(self, context: str, ids: list[int]) -> bool:
        """Say whether greedy decoding after `context` gives these tokens."""
        if self.engine == "vllm":
            body = {"model": self.model, "prompt": context, "max_tokens": len(ids), "temperature": 0}
            made = self._post("/v1/completions", body)["choices"][0]["text"]
            return bool(made == self._post("/detokenize", {"tokens": ids})["prompt"])
        details = self._details(context, {"max_new_tokens": len(ids)})
        return [token["id"] for token in details["tokens"]] == ids

    def _chat_tokenize(self, messages: Messages) -> Any:
        return self._post("/chat_tokenize", {"model": self.model, "messages": messages})

    def _details(self, text: str, parameters: dict[str, Any]) -> Any:
        return self._post("/generate", {"inputs": text, "parameters": {"details": True, **parameters}})["details"]

    def _told_text(self, before: list[int], text: str) -> list[tuple[int, float]]:
        """Return each token of `text` behind the tokens `before`, with its log probability."""
        tokens = self._details(text, {"max_new_tokens": 1, "decoder_input_details": True})["prefill"]
        first = _after(before, [token["id"] for token in tokens])
        return [(token["id"], token["logprob"]) for token in tokens[first:] if token["logprob"] is not None]

    def _told_ids(self, before: list[int], rest: str) -> list[tuple[int, float]]:
        ids = before + self._post("/tokenize", {"prompt": rest, "add_special_tokens": False})["tokens"]
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        known = self._post("/v1/completions", body)["choices"][0]["prompt_logprobs"]
        return [(ids[at], known[at][str(ids[at])]["logprob"]) for at in range(max(1, len(before)), len(ids))]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON reply; a busy or restarting server is asked again."""
        for attempt in range(TRIES):
            try:
                return direct.post(self.url + path, body, self.key, TIMEOUT_S)
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300]
                if error.code in (400, 413, 422):
                    raise Refused(said) from None
                problem = f"{error.code} {said}"
            except (OSError, ValueError) as error:
                problem = str(error)
            time.sleep(WAIT_S * 2**attempt)
        raise ServeError(
            f"{self.url}{path} did not answer: {problem}", "what was answered so far is kept; run make eval again"
        )


def _after(before: list[int], ids: list[int]) -> int:
    """Return where in `ids` the answer begins: behind what they have in common with the prompt's own tokens.

    A server may put a token in front of a text (its beginning) that the template holds already.
    """
    return max(shift + _common(before, ids[shift:]) for shift in (0, 1))


def _common(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
