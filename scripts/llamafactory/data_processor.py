#!/usr/bin/env python3
"""Turn a table of questions and answers into the rows LLaMA Factory trains on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import errors
from temper.data import process


def share(text: str) -> float:
    """Read a number from 0 to 1; ValueError otherwise."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", required=True, type=Path, help="CSV, TSV, JSON or JSONL file")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--instruction_col", default="instruction", help="column with the question")
    parser.add_argument("--output_col", default="output", help="column with the answer")
    parser.add_argument("--input_col", help="column with material that belongs to the question")
    parser.add_argument("--system_col", help="column with a system prompt")
    parser.add_argument("--system", help="one system prompt for every row that has none")
    parser.add_argument("--encoding", default="utf-8", help="of the file")
    parser.add_argument("--eval_share", type=share, default=0.1, help="share of questions held out, 0 to 1")
    parser.add_argument("--max_rejected", type=share, default=0.005, help="largest share of unusable rows, 0 to 1")
    parser.add_argument("--quiet", action="store_true", help="say nothing unless it fails")
    return parser.parse_args()


def run() -> int:
    """Process the rows and say what became of them."""
    given = options()
    columns = {
        "instruction": given.instruction_col,
        "output": given.output_col,
        "input": given.input_col,
        "system": given.system_col,
    }
    account = process.process(
        given.input, given.output, columns, given.encoding, given.system, given.eval_share, given.max_rejected
    )
    if not given.quiet:
        print(f"{account}\nwritten to {given.output}")
    return 0


if __name__ == "__main__":
    errors.main(run)
