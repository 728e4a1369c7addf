"""Answers held to a grammar, and tools in a chat: TGI 3.3.7's forms, streams and errors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import serve_model
from serving import Running

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Who are you?"}]
PERSON = {
    "$defs": {"colour": {"enum": ["red", "green"]}},
    "properties": {
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "colours": {"type": "array", "items": {"$ref": "#/$defs/colour"}, "minItems": 1, "maxItems": 2},
        "nested": {"properties": {"ok": {"type": "boolean"}}, "required": ["ok", "not listed"]},
    },
    "required": ["age", "colours", "nested"],
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """Return a tool all of whose arguments are needed."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"To {name}", "parameters": parameters}}


LOOK = tool("look", at={"enum": ["你好", "b"]}, times={"type": "integer", "minimum": 3, "maximum": 5})
REST = tool("rest")


def ask(server: Running, **more: Any) -> Any:
    """Return the answer to a greedy chat request."""
    return server.post(CHAT, {"messages": USER, "temperature": 0, "max_tokens": 80, **more})


def held(server: Running, grammar: Any, **given: Any) -> dict[str, Any]:
    """Return an answer held to a grammar."""
    asked = {"max_new_tokens": 120, "details": True, "grammar": grammar, **given}
    reply = server.post("/generate", {"inputs": "tick", "parameters": asked})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("kind", ["json", "json_object", "json_schema", "text"])
@pytest.mark.parametrize("given", [{}, {"do_sample": True, "temperature": 5.0, "seed": 5}])
def test_a_schema_is_kept(server: Running, kind: str, given: dict[str, Any]) -> None:
    """However unlikely to the model, the answer is JSON with the schema's properties in their order, and it ends."""
    value = {"json_schema": {"name": "person", "schema": PERSON}, "text": json.dumps(PERSON)}.get(kind, PERSON)
    reply = held(server, {"type": "json" if kind == "text" else kind, "value": value}, **given)
    found = json.loads(reply["generated_text"])
    assert list(found) == ["age", "colours", "nested"] and 1 <= found["age"] <= 99
    assert set(found["colours"]) <= {"red", "green"} and 1 <= len(found["colours"]) <= 2
    assert list(found["nested"]) == ["ok"] and isinstance(found["nested"]["ok"], bool)
    assert reply["details"]["finish_reason"] == "eos_token"
    assert all(token["logprob"] is not None for token in reply["details"]["tokens"])


def test_a_regular_expression_is_kept(server: Running) -> None:
    """Also by a stream, and with the likeliest tokens, of which none breaks it."""
    pattern = r"((25[0-5]|1\d\d|[1-9]?\d)\.){3}(你|🔥){2}"
    grammar = {"type": "regex", "value": pattern}
    reply = held(server, grammar, top_n_tokens=5)
    assert re.fullmatch(pattern, reply["generated_text"])
    first = reply["details"]["top_tokens"][0]
    assert len(first) >= 5 and all(token["text"] in "0123456789" for token in first)
    body = {"inputs": "tick", "parameters": {"max_new_tokens": 120, "grammar": grammar}}
    events = server.post("/generate_stream", body).text.split("\n\n")
    assert json.loads(events[-2][6:])["generated_text"] == reply["generated_text"]


def test_penalties_come_before_the_grammar(server: Running) -> None:
    """A penalty may change the choice among allowed tokens, never beyond them."""
    reply = held(server, {"type": "regex", "value": "[ab]{12}"}, repetition_penalty=3.0, frequency_penalty=2.0)
    assert re.fullmatch("[ab]{12}", reply["generated_text"])


def test_a_chat_may_have_a_response_format(server: Running) -> None:
    """response_format is a grammar with TGI's key, `value`; a cut answer is cut JSON."""
    asked = {"type": "json_object", "value": PERSON}
    choice = ask(server, response_format=asked).json()["choices"][0]
    assert json.loads(choice["message"]["content"])["age"] and choice["finish_reason"] == "stop"
    cut = ask(server, response_format=asked, max_tokens=4).json()["choices"][0]
    assert cut["message"]["content"].startswith("{") and cut["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ({"type": "json", "value": {}}, "grammar is not valid: Grammar must have a 'properties' field"),
        ({"type": "json_schema", "value": {"schema": True}}, "grammar is not valid: Grammar must have a"),
        ({"type": "json", "value": "{"}, "grammar is not valid: EOF while parsing an object at line 1 column 1"),
        ({"type": "json", "value": 3}, "grammar is not supported"),
        ({"type": "json", "value": {"properties": 1}}, "grammar is not valid: properties must be an object"),
        (
            {"type": "json", "value": {"properties": {"a": {"type": "number", "minimum": 2, "maximum": 1}}}},
            "grammar is not valid: ",
        ),
        ({"type": "json", "value": {"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}}, "grammar is not valid: "),
        ({"type": "regex", "value": "("}, "grammar is not valid: unclosed group"),
        ({"type": "regex", "value": r"(a)\1"}, "grammar is not valid: backreferences are not supported"),
    ],
)
def test_grammars_that_cannot_be_kept_are_refused(server: Running, grammar: Any, said: str) -> None:
    """422 with TGI's words where it has such; nothing is fetched for a schema."""
    schema = grammar["value"]
    if isinstance(schema, dict) and "a" in (schema.get("properties") or {} if schema.get("properties") != 1 else {}):
        schema["required"] = ["a"]
    reply = server.post("/generate", {"inputs": "tick", "parameters": {"grammar": grammar}})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
    assert reply.json()["error"].startswith(f"Input validation error: {said}")


@pytest.mark.parametrize("choice", ["required", "look", {"type": "function", "function": {"name": "look"}}])
def test_a_tool_is_called(server: Running, choice: Any) -> None:
    """The message has the call and no content; arguments are JSON text as the tool's parameters say."""
    tools = [LOOK] if choice == "required" else [REST, LOOK]
    reply = ask(server, tools=tools, tool_choice=choice, logprobs=True).json()
    (found,) = reply["choices"]
    assert found["finish_reason"] == "stop" and list(found["message"]) == ["role", "tool_calls"]
    (call,) = found["message"]["tool_calls"]
    assert list(call) == ["id", "type", "function"] and (call["id"], call["type"]) == ("0", "function")
    assert (call["function"]["description"], call["function"]["name"]) == (None, "look")
    arguments = json.loads(call["function"]["arguments"])
    assert list(arguments) == ["at", "times"] and arguments["at"] in ("你好", "b") and 3 <= arguments["times"] <= 5
    said = "".join(token["token"] for token in found["logprobs"]["content"]).removesuffix("<|im_end|>")
    assert json.loads(said) == {"function": {"_name": "look", **arguments}}
    assert reply["usage"]["completion_tokens"] == len(found["logprobs"]["content"])


def test_a_call_is_streamed_in_pieces(server: Running) -> None:
    """First the name and a brace, then the arguments without the last brace; no finish_reason comes, as in TGI."""
    messages = [
        *USER,
        {
            "role": "assistant",
            "tool_calls": [{"id": "4", "type": "function", "function": {"name": "a", "arguments": {}}}],
        },
    ]
    asked = {"messages": messages, "tools": [LOOK], "tool_choice": "look"}
    body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    *events, done = ask(server, **body).text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    *chunks, last = [json.loads(event[6:]) for event in events]
    assert last["choices"] == [] and last["usage"]["total_tokens"] > last["usage"]["completion_tokens"] > 5
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
    assert calls[0] == {"index": 0, "id": "5", "type": "function", "function": {"name": "look", "arguments": "{"}}
    assert all(call["function"]["name"] is None and call["id"] == "5" for call in calls[1:])
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    whole = ask(server, **asked).json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == json.loads(whole)


def test_calls_are_numbered_on_or_named_anew(server: Running) -> None:
    """Where earlier calls have other names than numbers, or too long ones, the new one has one name of its own."""
    for before in ("call_x", "9" * 200):
        earlier = {"id": before, "type": "function", "function": {"name": "a", "arguments": {}}}
        messages = [{"role": "assistant", "tool_calls": [earlier]}, *USER]
        reply = ask(server, messages=messages, tools=[LOOK], tool_choice="look", stream=True)
        events = [json.loads(event[6:]) for event in reply.text.split("\n\n")[:-2]]
        names = {event["choices"][0]["delta"]["tool_calls"][0]["id"] for event in events}
        assert len(names) == 1 and re.fullmatch(r"[0-9a-f-]{36}", names.pop())


@pytest.mark.parametrize("stream", [False, True])
def test_no_tool_is_a_second_free_answer(server: Running, stream: bool) -> None:
    """With "auto" and no tools but no_tool the model can only decline; then it answers as if it had none."""
    reply = ask(server, tools=[], stream=stream)
    if stream:
        events = [json.loads(event[6:]) for event in reply.text.split("\n\n")[:-2]]
        said = "".join(event["choices"][0]["delta"]["content"] for event in events)
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        plain, found = ask(server).json(), reply.json()
        said = found["choices"][0]["message"]["content"]
        assert found["usage"] == plain["usage"] and found["choices"] == plain["choices"]
    assert said == serve_model.ANSWERS["Who are you?"]


def test_auto_may_call_or_answer(server: Running) -> None:
    """By default the model chooses between the tools and a plain answer."""
    message = ask(server, tools=[LOOK, REST]).json()["choices"][0]["message"]
    called = [call["function"]["name"] for call in message.get("tool_calls", [])]
    assert called in (["look"], ["rest"]) or message["content"]


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": [], "tool_choice": "required"}])
def test_tools_may_be_left_out(server: Running, more: dict[str, Any]) -> None:
    """The model is told of no tools and answers freely."""
    reply = ask(server, **{"tools": [LOOK], **more}).json()
    assert reply["choices"][0]["message"]["content"] == serve_model.ANSWERS["Who are you?"]


def test_the_model_reads_of_the_tools(server: Running) -> None:
    """A template that does not ask for tools gets them behind the last message, as JSON, with the prompt for them."""
    asked = {"messages": USER, "tools": [REST], "tool_prompt": "Choose."}
    shown = server.post("/chat_tokenize", asked).json()["templated_text"]
    listed = shown.split("Who are you?\n---\n")[1].split("\nChoose.<|im_end|>")[0]
    parameters = REST["function"]["parameters"]
    first, second = json.loads(listed)
    assert first["function"] == {
        "description": "To rest",
        "name": "rest",
        "arguments": json.dumps(parameters, separators=(",", ":")),
    }
    assert second["function"]["name"] == "no_tool"


def test_a_cut_call_is_a_tool_error(server: Running) -> None:
    """An answer that was cut is no call: 422 with what there was; a stream ends without more."""
    reply = ask(server, tools=[LOOK], tool_choice="look", max_tokens=12)
    assert (reply.status_code, reply.json()["error_type"]) == (422, "tool_error")
    assert reply.json()["error"].startswith("Tool error: Failed to parse generated text: EOF while parsing")
    assert reply.json()["error"].endswith('"') and '\\"function\\"' in reply.json()["error"]
    assert ask(server, tools=[LOOK], tool_choice="look", max_tokens=3, stream=True).text == "data: [DONE]\n\n"


def test_arguments_that_no_answer_can_have_are_refused(server: Running) -> None:
    """A tool whose parameters contradict is a validation error, not an endless answer."""
    impossible = tool("never", n={"type": "integer", "minimum": 2, "maximum": 1})
    reply = ask(server, tools=[impossible], tool_choice="never")
    assert reply.status_code == 422
    assert reply.json()["error"].startswith("Input validation error: grammar is not valid: Unsatisfiable schema")
