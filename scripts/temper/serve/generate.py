"""TGI's own routes for texts: /, /generate, /generate_stream, /tokenize; and /invocations and /vertex of the clouds."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from temper.serve import answers, chat, completions, reading, replies, shapes
from temper.serve.answers import server_of
from temper.serve.bodies import (
    ChatRequest,
    CompatGenerateRequest,
    CompletionRequest,
    GenerateParameters,
    GenerateRequest,
    GenerateVertexInstance,
    SagemakerRequest,
    VertexRequest,
)
from temper.serve.faults import Fault
from temper.serve.validate import Prompt


async def generate(request: Request) -> Response:
    """Continue a text."""
    body = await reading.read(request, GenerateRequest)
    reply, headers = await _generated(request, body)
    return JSONResponse(reply, headers=headers)


async def generate_stream(request: Request) -> Response:
    """Continue a text, one event per token; any fault is an event too."""
    return _streamed(request, await reading.read(request, GenerateRequest))


async def compat_generate(request: Request) -> Response:
    """Continue a text, in a list of one or as a stream; the full text unless that is not wanted."""
    return await _compat(request, await reading.read(request, CompatGenerateRequest))


async def invocations(request: Request) -> Response:
    """Answer what SageMaker passes on: the body of /, of a chat or of a completion."""
    body = (await reading.read(request, SagemakerRequest)).root
    if isinstance(body, ChatRequest):
        return await chat.answer(request, body)
    if isinstance(body, CompletionRequest):
        return await completions.answer(request, body)
    return await _compat(request, body)


async def vertex(request: Request) -> Response:
    """Answer all instances that Vertex AI passes on; one that fails fails all, with its own error (in TGI 500)."""
    body = await reading.read(request, VertexRequest)
    server_of(request).metrics.request()
    if not body.instances:
        raise Fault(422, "Input validation error", "Input validation error")
    asked = [await _of_instance(request, instance) for instance in body.instances]
    done = await answers.unless_gone(request, answers.together(answers.complete(request, *each) for each in asked))
    predictions: shapes.VertexResponse = {"predictions": [each.answer.end.text for each in done]}
    return JSONResponse(predictions)


async def tokenize(request: Request) -> Response:
    """Return a text's tokens with their places."""
    body = await reading.read(request, GenerateRequest)
    return JSONResponse(await _tokens(request, Prompt(body.inputs, special_tokens=True)))


async def chat_tokenize(request: Request) -> Response:
    """Return a conversation as the model reads it."""
    body = await reading.read(request, ChatRequest)
    server_of(request).metrics.request()
    prompt = (await chat.prepare(request, body)).prompt
    reply: shapes.ChatTokenizeResponse = {
        "tokenize_response": await _tokens(request, prompt),
        "templated_text": prompt.text,
    }
    return JSONResponse(reply)


async def _generated(request: Request, body: GenerateRequest) -> tuple[shapes.GenerateResponse, dict[str, str]]:
    given = body.parameters
    work = answers.complete(request, Prompt(body.inputs, special_tokens=True), given)
    done = await answers.unless_gone(request, work)
    details = given.details or given.decoder_input_details
    return replies.generated(done.answer, done.losers, _before(body), details), done.headers


def _streamed(request: Request, body: GenerateRequest) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        index, given = 0, body.parameters
        try:
            async with aclosing(answers.stream(request, Prompt(body.inputs, special_tokens=True), given)) as steps:
                async for step in steps:
                    index += step is not None
                    yield (
                        replies.event(replies.generated_event(index, step, _before(body), given.details))
                        if step
                        else answers.KEEP_ALIVE
                    )
        except Fault as fault:
            yield replies.event(fault.body())

    return answers.streaming(events(), len(body.inputs))


def _before(body: GenerateRequest) -> str:
    return body.inputs if body.parameters.return_full_text else ""


async def _compat(request: Request, body: CompatGenerateRequest) -> Response:
    if body.parameters.return_full_text is None:
        body.parameters.return_full_text = True
    if body.stream:
        return _streamed(request, body)
    reply, headers = await _generated(request, body)
    return JSONResponse([reply], headers=headers)


async def _of_instance(
    request: Request, instance: GenerateVertexInstance | ChatRequest
) -> tuple[Prompt, GenerateParameters]:
    if isinstance(instance, ChatRequest):
        asked = await chat.prepare(request, instance)
        return asked.prompt, asked.given
    given = instance.parameters or GenerateParameters()
    parameters = GenerateParameters(do_sample=True, max_new_tokens=given.max_new_tokens, seed=given.seed)
    return Prompt(instance.inputs, special_tokens=True), parameters


async def _tokens(request: Request, prompt: Prompt) -> list[shapes.SimpleToken]:
    tokenizer = server_of(request).engine.loaded.tokenizer

    def tokens() -> list[shapes.SimpleToken]:
        if not tokenizer.is_fast:  # a slow one knows no places
            ids = tokenizer(prompt.text, add_special_tokens=prompt.special_tokens)["input_ids"]
            return [{"id": token, "text": "", "start": 0, "stop": 0} for token in ids]
        found = tokenizer(prompt.text, add_special_tokens=prompt.special_tokens, return_offsets_mapping=True)
        at = list(itertools.accumulate((len(each.encode()) for each in prompt.text), initial=0))  # characters, in bytes
        return [
            {"id": token, "text": prompt.text[start:stop], "start": at[start], "stop": at[stop]}
            for token, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    return await server_of(request).in_pool(tokens)
