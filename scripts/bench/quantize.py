#!/usr/bin/env python3
"""What weights in 8 bits cost and give, beside the merged weights: answers, perplexity, speed and memory.

    make bench-bits SCENARIO=customer-service
    make bench-bits BENCH='--model build/models/smollm2-135m --rows 50'

Perplexity is that of the answers of the held-out split (data/eval.jsonl), each after its question in the model's chat
template. Golden prompts are those recorded by the merge. Speed is one request's, greedy, through the server's engine;
transformers.generate is the peer. Each runs in a process of its own, one after the other, on the same rows.
Writes result.json into build/bench-bits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors
from temper.errors import ResultError
from temper.paths import BUILD, enter_root
from temper.serve.load import EIGHT_BITS

WAYS = ("generate", "auto", EIGHT_BITS)
LONGEST = 1024  # tokens of a row that count
SPEED = 64  # tokens
Message = dict[str, str]


def conversations(file: Path, rows: int) -> list[tuple[list[Message], str]]:
    """Return the questions with what came before, and their answers; ResultError when there are none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[:rows]
    except OSError as error:
        raise ResultError(f"{file} cannot be read ({error.strerror})", "run: make data") from None
    found = []
    for row in map(json.loads, lines):
        turns = row.get("messages") or [
            *([{"role": "system", "content": row["system"]}] if row.get("system") else []),
            {"role": "user", "content": "\n".join(filter(None, [row["instruction"], row.get("input")]))},
            {"role": "assistant", "content": row["output"]},
        ]
        found.append((turns[:-1], turns[-1]["content"]))
    if not found:
        raise ResultError(f"{file} holds no rows", "name another with BENCH='--data FILE'")
    return found


def ids(tokenizer: Any, turns: list[Message], answer: str = "") -> list[int]:
    """Return a conversation as the server reads it, with an answer behind it."""
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text + answer, add_special_tokens=False))


def measure(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return one way's log probabilities of all answers, its golden answers, its speed and its peak memory."""
    import torch

    from temper.serve import runner
    from temper.serve.load import load

    loaded = load(given.model, EIGHT_BITS if way == EIGHT_BITS else "auto", given.threads)
    tokenizer, logprobs = loaded.tokenizer, list[float]()
    if way == EIGHT_BITS:
        from temper.serve import llama_cpp

        run: Any = llama_cpp.Quantised(loaded.model, 1, 2 * LONGEST)
    elif way == "auto":
        run = runner.make(loaded.model, 4 * LONGEST)
    else:
        run = None  # generate keeps its own keys and values
    if run:
        for turns, answer in conversations(given.data, given.rows):
            before, whole = ids(tokenizer, turns), ids(tokenizer, turns, answer)[:LONGEST]
            place = run.start((), len(whole))
            logits = run.forward([(place, whole)], every=True).log_softmax(-1)
            run.finish(place)
            logprobs += [float(logits[at - 1, whole[at]]) for at in range(len(before), len(whole))]
    file, asked = given.model / "golden.json", ids(tokenizer, [{"role": "user", "content": "How are you today?"}])
    recorded: dict[str, Any] = {"prompts": [], "max_new_tokens": 0}
    if file.is_file():
        recorded = json.loads(file.read_text(encoding="utf-8"))
    answers = [
        _answer(loaded, run, prompt["prompt_ids"], recorded["max_new_tokens"], loaded.eos)[0]
        for prompt in recorded["prompts"]
    ]
    speed = max(_answer(loaded, run, asked, SPEED, frozenset())[1] for _ in range(3))
    return {
        "way": f"{way} ({loaded.dtype})",
        "tokens": len(logprobs),
        "perplexity": math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None,
        "same": sum(
            made == prompt["completion_ids"] for made, prompt in zip(answers, recorded["prompts"], strict=True)
        ),
        "golden": len(answers),
        "tokens_per_s": speed,
        "threads": torch.get_num_threads(),
    }


def _answer(loaded: Any, run: Any, asked: list[int], most: int, eos: frozenset[int]) -> tuple[list[int], float]:
    """Return a greedy answer and its tokens per second, from the second on; by generate where nothing runs it."""
    import torch

    if not run:
        tensor, out, took = torch.tensor([asked]), list[int](), list[float]()
        given = {"do_sample": False, "eos_token_id": sorted(eos) or None, "pad_token_id": 0}
        given["attention_mask"] = torch.ones_like(tensor)
        for count in (1, most):
            began = time.perf_counter()
            out = loaded.model.generate(tensor, max_new_tokens=count, **given)[0, len(asked) :].tolist()
            took.append(time.perf_counter() - began)
        return out, (len(out) - 1) / (took[1] - took[0]) if len(out) > 1 else 0.0
    place = run.start((), len(asked) + most)
    out = [int(run.forward([(place, asked)])[0].argmax())]
    began = time.perf_counter()
    while len(out) < most and out[-1] not in eos:
        out.append(int(run.forward([(place, out[-1:])])[0].argmax()))
    seconds = time.perf_counter() - began
    run.finish(place)
    return out, (len(out) - 1) / seconds if len(out) > 1 else 0.0


def run() -> int:
    """Measure each way in a process of its own and print the table."""
    enter_root()
    given = options()
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return 0
    conversations(given.data, 1)
    found = []
    for way in WAYS:
        print(f"{way} …", file=sys.stderr)
        process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--only", way], stdout=subprocess.PIPE)
        assert process.stdout
        text = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise ResultError(f"{way} ended with status {status}", "its own words are above")
        found.append({**json.loads(text), "peak_mb": used.ru_maxrss / 1000})
    out = BUILD / "bench-bits"
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{table(found)}\n\n{given.model}, {found[0]['threads']} threads; written: {out}/result.json")
    return 0


def table(found: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown; ratios are to transformers.generate, perplexity to the merged weights."""
    plain = next(one for one in found if one["way"].startswith("auto"))
    lines = ["| | perplexity | golden answers as recorded | tokens/s | peak MB |", "|---|---|---|---|---|"]
    for one in found:
        moved = (
            f"{one['perplexity']:.4f} ({one['perplexity'] / plain['perplexity'] - 1:+.2%})" if one["tokens"] else "-"
        )
        speed = f"{one['tokens_per_s']:.1f} ({one['tokens_per_s'] / found[0]['tokens_per_s']:.2f})"
        lines.append(f"| {one['way']} | {moved} | {one['same']} of {one['golden']} | {speed} | {one['peak_mb']:.0f} |")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    here = BUILD / os.environ.get("SCENARIO", "customer-service") / os.environ.get("PROFILE", "cpu")
    add("--model", type=Path, default=here / "merged", metavar="DIR", help="default: %(default)s")
    add("--data", type=Path, default=here / "data" / "eval.jsonl", metavar="FILE", help="default: %(default)s")
    add("--rows", type=int, default=100, help="of the held-out split (default: %(default)s)")
    add("--threads", type=int, help="default: as torch chooses")
    add("--only", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    errors.main(run)
