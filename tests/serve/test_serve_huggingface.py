"""TGI's own client, huggingface_hub, with everything it can ask of this server."""

from __future__ import annotations

import os
import subprocess
import sys

import serve_model
from serving import Running

PROGRAM = """
import json, sys
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

client, answer = InferenceClient(sys.argv[1]), sys.argv[2]
greedy = {"max_new_tokens": 5, "do_sample": False}

# Texts, at the root.
whole = client.text_generation("tick", details=True, return_full_text=False, top_n_tokens=2, **greedy)
assert whole.details.finish_reason == "length" and len(whole.details.tokens) == len(whole.details.top_tokens) == 5
assert whole.details.top_tokens[0][0]["id"] == whole.details.tokens[0].id
assert client.text_generation("tick", **greedy) == "tick" + whole.generated_text
assert "".join(client.text_generation("tick", stream=True, **greedy)) == whole.generated_text
steps = list(client.text_generation("tick", stream=True, details=True, return_full_text=False, **greedy))
assert steps[-1].generated_text == whole.generated_text and steps[-1].details.generated_tokens == 5
best = client.text_generation("tick", details=True, best_of=2, do_sample=True, temperature=5.0, max_new_tokens=4)
assert len(best.details.best_of_sequences) == 1 and best.details.seed != best.details.best_of_sequences[0].seed
seen = client.text_generation("tick tock tick", details=True, decoder_input_details=True, truncate=2, **greedy)
assert len(seen.details.prefill) == 2 and seen.details.prefill[-1].logprob < 0
stopped = client.text_generation("tick", details=True, stop=[whole.details.tokens[1].text], **greedy)
assert stopped.details.finish_reason == "stop_sequence"
schema = {"properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["age"]}
held = {"max_new_tokens": 40, "return_full_text": False}
assert 1 <= json.loads(client.text_generation("tick", grammar={"type": "json", "value": schema}, **held))["age"] <= 9
assert client.text_generation("tick", grammar={"type": "regex", "value": "ab{3}"}, **held) == "abbb"
try:
    client.text_generation("tick", best_of=9, do_sample=True)
except ValidationError as error:
    assert "`best_of` must be > 0 and <= 2. Given: 9" in str(error)
else:
    raise AssertionError("no error")

# Chats.
asked = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 60}
chat = client.chat_completion(logprobs=True, top_logprobs=2, **asked)
assert chat.choices[0].message.content == answer and chat.usage.total_tokens > chat.usage.prompt_tokens
assert len(chat.choices[0].logprobs.content[0].top_logprobs) >= 2
format = {"type": "json", "value": schema}
assert 1 <= json.loads(client.chat_completion(response_format=format, **asked).choices[0].message.content)["age"] <= 9
tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object", **schema}}}
named = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "look"}}}
(call,) = client.chat_completion(**named, **asked).choices[0].message.tool_calls
assert call.function.name == "look" and 1 <= json.loads(call.function.arguments)["age"] <= 9
deltas = [part.choices[0].delta for part in client.chat_completion(stream=True, **named, **asked)]
pieces = [delta.tool_calls[0].function for delta in deltas]
assert pieces[0].name == "look" and json.loads("".join(piece.arguments for piece in pieces)) == json.loads(
    call.function.arguments
)
usage = {"stream_options": {"include_usage": True}}
parts = list(client.chat_completion(stream=True, **usage, **asked))
assert parts[-1].usage.completion_tokens == len(parts) - 1
assert "".join(part.choices[0].delta.content for part in parts[:-1]) == answer
assert client.chat_completion(tools=[tool], tool_choice="none", **asked).choices[0].message.content == answer
print("understood")
"""


def test_huggingface_hub_understands_everything(server: Running) -> None:
    """Texts and chats with details, choices, grammars, tools and streams, through the client unchanged."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    command = [sys.executable, "-c", PROGRAM, server.url, serve_model.ANSWERS["Who are you?"]]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60)
    assert done.stdout == "understood\n", done.stderr
