"""TGI's own older client, text-generation 0.7.0, in an environment of its own: it needs another huggingface_hub."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import serve_model
from serving import Running

LOCK = Path(__file__).resolve().parents[2] / "docker" / "locks" / "test-text-generation.txt"
PROGRAM = """
import asyncio, json, sys
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError

client, answer = Client(sys.argv[1]), sys.argv[2]
whole = client.generate("tick", max_new_tokens=5, top_n_tokens=2, decoder_input_details=True)
assert whole.details.finish_reason == "length" and whole.details.generated_tokens == len(whole.details.tokens) == 5
assert whole.details.prefill[-1].logprob < 0 and len(whole.details.top_tokens) == 5 and whole.details.seed is None
assert whole.generated_text == "".join(token.text for token in whole.details.tokens)
*steps, last = client.generate_stream("tick", max_new_tokens=5)
assert [step.token for step in (*steps, last)] == whole.details.tokens and not any(step.details for step in steps)
assert last.generated_text == whole.generated_text and last.details.generated_tokens == 5
full = client.generate("tick", max_new_tokens=5, return_full_text=True, stop_sequences=[whole.details.tokens[1].text])
assert full.details.finish_reason == "stop_sequence" and full.generated_text.startswith("tick")
drawn = [client.generate("tick", do_sample=True, seed=7, temperature=5.0, top_k=9, typical_p=0.9) for _ in range(2)]
assert drawn[0] == drawn[1] and drawn[0].details.seed == 7
best = client.generate("tick", best_of=2, do_sample=True, repetition_penalty=1.1, frequency_penalty=0.1, top_p=0.9)
assert len(best.details.best_of_sequences) == 1
assert client.generate("tick", grammar={"type": "regex", "value": "ab{3}"}).generated_text == "abbb"
chat = client.chat([{"role": "user", "content": "Who are you?"}], max_tokens=60, temperature=0.01, seed=1)
assert chat.choices[0].message.content == answer and chat.usage["completion_tokens"] > 5
for refused in (lambda: client.generate("tick", top_n_tokens=9), lambda: list(client.generate_stream("a" * 9000))):
    try:
        refused()
    except ValidationError as error:
        assert "Input validation error: `" in str(error)
    else:
        raise AssertionError("no error")

async def beside():
    other = AsyncClient(sys.argv[1])
    one, steps = await asyncio.gather(other.generate("tick", max_new_tokens=5), streamed(other))
    assert one.details.tokens == [step.token for step in steps] == whole.details.tokens

async def streamed(other):
    return [step async for step in other.generate_stream("tick", max_new_tokens=5)]

asyncio.run(beside())
print("understood")
"""


def test_text_generation_understands_everything(server: Running, tmp_path: Path) -> None:
    """Texts, steps, details, parameters, a chat and errors, through the client unchanged, waiting and asynchronous."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-r", str(LOCK)], check=True)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "proxy" not in name.lower()}
    command = [str(python), "-c", PROGRAM, server.url, serve_model.ANSWERS["Who are you?"]]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60)
    assert done.stdout == "understood\n", done.stderr
