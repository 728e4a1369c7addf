#!/usr/bin/env python3
"""Turn rows of questions and answers into the rows LLaMA Factory trains on; every row is accounted for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors, reexec
from temper.data.options import FIELDS, STEPS, Options


def share(text: str) -> float:
    """Read a number from 0 to 1; ValueError otherwise."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def steps(text: str) -> frozenset[str]:
    """Read step names with commas between them, or with a minus before each that is left out."""
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name.lstrip("-") not in STEPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no step {unknown[0]!r}; there are: {', '.join(STEPS)}")
    left_out = {name[1:] for name in names if name.startswith("-")}
    named = {name for name in names if not name.startswith("-")}
    return frozenset((named or set(STEPS)) - left_out) | {"read", "write"}


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add: Callable[..., object] = parser.add_argument
    add(
        "--input",
        required=True,
        type=Path,
        nargs="+",
        metavar="PATH",
        help="CSV, TSV, XLSX, JSON, JSONL or Parquet files, also with .gz or .zst, or folders of them",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    add("--eval_input", type=Path, nargs="+", default=[], metavar="PATH", help="rows to evaluate on, never trained on")
    add("--instruction_col", help="column with the question (default: found by its name)")
    add("--output_col", help="column with the answer (default: found by its name)")
    add("--input_col", help="column with material that belongs to the question")
    add("--system_col", help="column with a system prompt")
    add("--history_col", help="column with earlier turns, a list of [question, answer]")
    add("--system", default="", help="one system prompt for every row that has none")
    add("--encoding", default="auto", help="of the files: auto, utf-8, gb18030, utf-16 or another codec of Python")
    add("--eval_share", type=share, default=0.1, help="share of questions held out, 0 to 1")
    add("--max_rejected", type=share, default=0.005, help="largest share of unusable rows, 0 to 1")
    add("--personal", choices=("report", "mask", "drop"), default="report", help="what is done about personal data")
    add("--max_chars", type=int, default=100_000, help="longest question or answer, characters")
    add(
        "--steps",
        type=steps,
        default=frozenset(STEPS),
        metavar="NAME,…",
        help=f"only these steps, or with -NAME all but these, of {', '.join(STEPS)}",
    )
    add("--model", type=Path, metavar="DIR", help="base model whose tokenizer counts; without one nothing is counted")
    add("--model_name", default="", help="how the report calls it (default: the folder's name)")
    add("--cutoff_len", type=int, default=1024, help="tokens that training keeps of a row")
    add("--engine", choices=("local", "ray"), default="local", help="what the work is spread with")
    add("--workers", type=int, default=0, help="processes; 0: as many as there are cores")
    add("--quiet", action="store_true", help="say nothing unless it fails or takes long")
    return parser.parse_args()


def run() -> int:
    """Process the rows and say what became of them."""
    given = options()
    reexec.into_environment()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices: threads only take time
    from temper.data import process

    wanted = Options(
        columns={name: getattr(given, f"{name}_col") for name in FIELDS},
        encoding=given.encoding,
        system=given.system,
        eval_share=given.eval_share,
        max_rejected=given.max_rejected,
        personal=given.personal,
        max_chars=given.max_chars,
        steps=given.steps,
        model=given.model,
        model_name=given.model_name,
        cutoff_len=given.cutoff_len,
        engine=given.engine,
        workers=given.workers,
    )
    account = process.process(given.input, given.output, wanted, given.eval_input, _say)
    if not given.quiet:
        print(f"{account}\nwritten to {given.output}; see report.html there")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    errors.main(run)
