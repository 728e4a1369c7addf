"""The merge gate: a merged model is accepted only if a server would see what training saw.

    python -m temper.merge.gate --base DIR --adapter DIR --merged DIR --template NAME

Each part has a module of its own: checkpoint (files), parity (prompts), weights and logits, golden (answers).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper import errors
from temper.errors import GateError
from temper.merge import checkpoint, conversations, golden, logits, lora, parity, served, weight_files, weights
from temper.merge.outcome import Outcome, attempt, failed, line, passed
from temper.merge.served import Message

SEQUENCES, LENGTH = 4, 32  # token sequences whose logits are compared


def examine(
    base: Path,
    adapter: Path,
    merged: Path,
    template: str,
    end_token: str | None,
    train_args: dict[str, Any],
    max_new_tokens: int = 48,
    prompts: list[list[Message]] | None = None,
    say: Callable[[str], None] = print,
    tgi: bool = True,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Run every check and return the report, and the golden prompts unless an earlier check failed. Writes nothing."""
    found: list[Outcome] = []

    def note(*outcomes: Outcome) -> None:
        for outcome in outcomes:
            found.append(outcome)
            say(line(outcome))

    note(*checkpoint.check(base, merged, end_token, tgi))
    note(*parity.check(base, merged, template, train_args, tgi))
    if found[0]["ok"]:  # whole weight files
        note(attempt("weights", lambda: weights.check_tensors(base, adapter, merged), weights.AGAIN))
    answers = None
    if all(outcome["ok"] for outcome in found):
        asked = [*(list(messages) for messages in golden.DEFAULT), *(prompts or [])]
        computed, answers = _computed(base, adapter, merged, asked, max_new_tokens)
        note(*computed)
    else:
        say("gate    logits, golden     not run: mend the failed checks first")
    return {
        "ok": all(outcome["ok"] for outcome in found),
        "template": template,
        "end_token": end_token,
        "tgi": tgi,
        "checks": found,
    }, answers


def _computed(
    base: Path, adapter: Path, merged: Path, asked: list[list[Message]], max_new_tokens: int
) -> tuple[list[Outcome], dict[str, Any]]:
    """Run the checks that need a model: one in memory at a time, the merged one read once for both."""
    small, stored = weights.is_small(merged), weight_files.main_dtype(weight_files.tensors(merged)) or "float32"
    dtype = "float32" if small else stored
    tokenizer, model = conversations.load_tokenizer(merged), logits.load_model(merged, dtype)
    sequences = [(golden.prompt_ids(tokenizer, messages) * LENGTH)[:LENGTH] for messages in asked[:SEQUENCES]]
    compare = small or lora.beyond(adapter) != ""
    mine = logits.compute(model, sequences) if compare else None
    answers = golden.record(model, tokenizer, asked, max_new_tokens, served.eos_ids(merged, tgi=False))
    del model
    gc.collect()
    outcomes = [_golden(answers)]
    if compare:
        outcomes.insert(
            0, attempt("logits", lambda: logits.check(base, adapter, mine, sequences, stored, dtype), weights.AGAIN)
        )
    return outcomes, answers


def _golden(answers: dict[str, Any]) -> Outcome:
    tokens = sum(len(answer["completion_ids"]) for answer in answers["prompts"])
    empty = [answer["messages"][-1]["content"] for answer in answers["prompts"] if not answer["text"].strip()]
    numbers = {"prompts": len(answers["prompts"]), "tokens": tokens, "empty": len(empty)}
    if len(empty) == len(answers["prompts"]):
        return failed("golden", "the merged model answers nothing to every prompt", weights.RETRAIN, **numbers)
    return passed(
        "golden",
        f"{len(answers['prompts'])} prompts answered, {tokens} tokens, greedy in {answers['dtype']}",
        **numbers,
    )


def refusal(merged: Path, report: dict[str, Any]) -> GateError:
    """Return the error that lists every failed check with its remedy."""
    bad = [outcome for outcome in report["checks"] if not outcome["ok"]]
    lines = "".join(f"\n  {outcome['name']}: {outcome['message']}; {outcome['remedy']}" for outcome in bad)
    return GateError(f"{merged}: {len(bad)} of {len(report['checks'])} checks of the gate failed{lines}")


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a report or golden prompts as JSON, with sorted keys, for people and digests alike."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check(
    base: Path,
    adapter: Path,
    merged: Path,
    template: str,
    end_token: str | None,
    train_args: dict[str, Any],
    max_new_tokens: int = 48,
    prompts: list[list[Message]] | None = None,
    say: Callable[[str], None] = print,
    tgi: bool = True,
) -> dict[str, Any]:
    """Check a merged folder, write its golden.json, and return the report.

    `train_args`: LLaMA Factory's arguments of the training run; `prompts`: conversations from the training data that
    are recorded beside the default ones; `tgi`: whether TGI may serve it. Raises GateError naming every failed check.
    """
    report, answers = examine(base, adapter, merged, template, end_token, train_args, max_new_tokens, prompts, say, tgi)
    if not report["ok"] or answers is None:
        raise refusal(merged, report)
    write(merged / golden.FILE, answers)
    return report


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m temper.merge.gate", description=__doc__.splitlines()[0])
    for name, what in (("base", "base model's folder"), ("adapter", "adapter's folder"), ("merged", "merged folder")):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument("--template", required=True, help="LLaMA Factory's template the adapter was trained with")
    parser.add_argument("--end_token", help="the token that ends an answer")
    parser.add_argument("--train_args", type=Path, metavar="FILE", help="YAML the adapter was trained with")
    parser.add_argument("--max_new_tokens", type=int, default=48, help="longest golden answer, tokens")
    parser.add_argument("--no_tgi", action="store_true", help="the model will not be served by TGI")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="write the golden prompts here")
    return parser.parse_args(argv)


def run(argv: list[str]) -> int:
    """Check a folder for a person: one line per check; the folder itself is not written to. GateError on a failure."""
    import yaml

    given = options(argv)
    train_args = yaml.safe_load(given.train_args.read_text(encoding="utf-8")) if given.train_args else {}
    report, answers = examine(
        given.base,
        given.adapter,
        given.merged,
        given.template,
        given.end_token,
        train_args,
        given.max_new_tokens,
        tgi=not given.no_tgi,
    )
    if given.report:
        write(given.report, report)
    if not report["ok"]:
        raise refusal(given.merged, report)
    if given.golden and answers:
        write(given.golden, answers)
    return 0


if __name__ == "__main__":
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    errors.main(lambda: run(sys.argv[1:]))
