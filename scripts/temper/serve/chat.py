"""The route /v1/chat/completions: conversations, with tools and without."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from temper.serve import answers, chat_template, faults, reading, replies, shapes, tools
from temper.serve.answers import Completed, Events, server_of
from temper.serve.bodies import ChatRequest, GenerateParameters, Tool
from temper.serve.engine import Step
from temper.serve.faults import Fault
from temper.serve.tools import Call
from temper.serve.validate import Prompt

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Asked:
    """A conversation as a prompt; with `calls` the answer is to be read as a tool call."""

    prompt: Prompt
    given: GenerateParameters
    calls: bool


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    return await answer(request, await reading.read(request, ChatRequest))


async def answer(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation whose body has been read."""
    server = server_of(request)
    server.metrics.request()
    asked = await prepare(request, body)
    model = server.model_id if body.model in (None, "tgi") else str(body.model)
    if body.stream:
        return answers.streaming(_events(request, body, asked, model), len(asked.prompt.text))
    done, call = await answers.unless_gone(request, _whole(request, body, asked))
    return JSONResponse(replies.chat(model, done.answer, call, bool(body.logprobs)), headers=done.headers)


async def prepare(request: Request, body: ChatRequest) -> Asked:
    """Return a conversation as a prompt; Fault for tools that are not there and messages the template refuses."""
    server = server_of(request)
    try:
        return await server.in_pool(
            lambda: _asked(body, server.engine.loaded.tokenizer, server.engine.loaded.chat_template)
        )
    except Fault as fault:
        if fault.kind == "template_error":
            server.metrics.failed("template")
        raise


def _asked(body: ChatRequest, tokenizer: object, template: str | None) -> Asked:
    if body.response_format is not None and body.tools is not None:
        raise faults.tool("Grammar and tools are mutually exclusive")
    for message in body.messages:
        if message.unsupported:
            raise faults.invalid(message.unsupported)
    offered = tools.offered(body)
    text = chat_template.render(tokenizer, template, body.messages, offered, body.tool_prompt)
    return Asked(Prompt(text, special_tokens=False), _parameters(body, offered), bool(offered))


def _parameters(body: ChatRequest, offered: list[Tool]) -> GenerateParameters:
    greedy = body.temperature == 0
    return GenerateParameters(
        temperature=None if greedy else body.temperature,
        do_sample=not greedy,
        details=True,
        # TGI's own mapping: OpenAI's -2 to 2 onto a factor of 0 to 4.
        repetition_penalty=None if body.presence_penalty is None else body.presence_penalty + 2.0,
        frequency_penalty=body.frequency_penalty,
        top_p=body.top_p,
        max_new_tokens=body.max_tokens,
        stop=body.stop or [],
        seed=body.seed,
        top_n_tokens=body.top_logprobs,
        grammar=tools.grammar(offered) if offered else body.response_format,
    )


def _plain(body: ChatRequest) -> ChatRequest:
    """Return the request for when the model has chosen to call nothing."""
    return body.model_copy(update={"tools": None})


async def _whole(request: Request, body: ChatRequest, asked: Asked) -> tuple[Completed, Call | None]:
    done = await answers.complete(request, asked.prompt, asked.given)
    if not asked.calls:
        return done, None
    call = tools.parse(done.answer.end.text)
    if call.name != tools.NO_TOOL:
        return done, call
    body = _plain(body)
    return await _whole(request, body, await prepare(request, body))


async def _events(request: Request, body: ChatRequest, asked: Asked, model: str) -> Events:
    try:
        async with aclosing(_chunks(request, body, asked, model)) as events:
            async for event in events:
                yield event
    except Fault as fault:
        yield replies.event(fault.chat_event())
    yield DONE


async def _chunks(request: Request, body: ChatRequest, asked: Asked, model: str) -> Events:
    pieces, number = tools.Pieces() if asked.calls else None, _number(body)
    async with aclosing(answers.stream(request, asked.prompt, asked.given)) as steps:
        async for step in steps:
            if step is None:
                yield answers.KEEP_ALIVE
                continue
            for delta in _called(pieces, step, number) if pieces else [replies.text_delta(step)]:
                yield replies.event(replies.chat_event(model, delta, step, bool(body.logprobs)))
            if pieces and pieces.name == tools.NO_TOOL:
                break
            if step.end and body.stream_options.include_usage:
                yield replies.event(replies.usage_event(model, step.end))
        else:
            return
    body = _plain(body)
    async with aclosing(_chunks(request, body, await prepare(request, body), model)) as events:
        async for event in events:
            yield event


def _called(pieces: tools.Pieces, step: Step, number: str) -> Iterator[shapes.ToolCallDelta]:
    """Yield what a token adds to a call: at first its name and a brace, then pieces of the arguments."""
    named = pieces.name is not None
    text = pieces.push(step.token.text)
    if pieces.name == tools.NO_TOOL or not text:
        return
    if not named:
        yield replies.call_delta(pieces.name, text[0], number)
        text = text[1:]
    if text:
        yield replies.call_delta(None, text, number)


def _number(body: ChatRequest) -> str:
    """Return the number of the next call in a conversation; a new name where earlier calls have no numbers."""
    names = [call.id for message in body.messages for call in message.calls]
    if all(re.fullmatch("[0-9]{1,18}", name) for name in names):
        return str(max((int(name) + 1 for name in names), default=0))
    return str(uuid.uuid4())
