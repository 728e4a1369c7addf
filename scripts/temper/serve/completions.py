"""The route /v1/completions: one text or a few, continued side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from temper.serve import answers, faults, reading, replies
from temper.serve.answers import Completed, Events, server_of
from temper.serve.bodies import CompletionRequest, GenerateParameters
from temper.serve.chat import DONE
from temper.serve.faults import Fault
from temper.serve.validate import Prompt


async def completions(request: Request) -> Response:
    """Continue texts, in one piece or as a stream."""
    return await answer(request, await reading.read(request, CompletionRequest))


async def answer(request: Request, body: CompletionRequest) -> Response:
    """Continue the texts of a body that has been read."""
    server = server_of(request)
    server.metrics.request()
    try:
        _check(body, server.engine.limits.max_client_batch_size)
    except Fault:
        server.metrics.failed("validation")
        raise
    prompts, given = [Prompt(text, special_tokens=True) for text in body.prompt], _parameters(body)
    if body.stream:
        characters = sum(len(prompt.text) for prompt in prompts)
        return answers.streaming(_events(request, prompts, given), characters)
    work = answers.together(answers.complete(request, prompt, given) for prompt in prompts)
    done = await answers.unless_gone(request, work)
    reply = replies.completion(server.model_id, [each.answer.end for each in done])
    return JSONResponse(reply, headers=_headers(done))


def _check(body: CompletionRequest, limit: int) -> None:
    if body.suffix is not None:
        raise faults.suffix()
    if len(body.prompt) > limit:
        raise faults.too_many_prompts(limit)


def _parameters(body: CompletionRequest) -> GenerateParameters:
    greedy = body.temperature == 0
    return GenerateParameters(
        temperature=None if greedy else body.temperature,
        do_sample=not greedy,
        details=True,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        top_p=body.top_p,
        max_new_tokens=body.max_tokens,
        stop=body.stop or [],
        seed=body.seed,
    )


def _headers(done: Sequence[Completed]) -> dict[str, str]:
    """Return the headers of all texts together: what can be added is, x-compute-time is left out, as in TGI."""
    first, *_ = [each.headers for each in done]
    names = [name for name in first if name not in ("x-compute-type", "x-compute-time")]
    sums = {name: str(sum(int(each.headers[name]) for each in done)) for name in names}
    return {"x-compute-type": first["x-compute-type"], **sums}


async def _events(request: Request, prompts: Sequence[Prompt], given: GenerateParameters) -> Events:
    streams = [_of_one(request, index, prompt, given) for index, prompt in enumerate(prompts)]
    async with aclosing(answers.merged(streams)) as events:
        async for event in events:
            yield event
    yield DONE


async def _of_one(request: Request, index: int, prompt: Prompt, given: GenerateParameters) -> Events:
    model = server_of(request).model_id
    try:
        async with aclosing(answers.stream(request, prompt, given)) as steps:
            async for step in steps:
                yield replies.event(replies.completion_event(model, index, step)) if step else answers.KEEP_ALIVE
    except Fault as fault:
        yield replies.event(fault.chat_event())
