"""`python -m temper.merge`: merge an adapter into a base model by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from temper import errors
from temper.merge import make


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m temper.merge", description="Merge a LoRA adapter into a base model."
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model (safetensors)")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter, as PEFT saves it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; weights there are replaced")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="cast to this after merging (auto: the base's)",
    )
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest weight file, GB (10^9 bytes)")
    parser.add_argument("--end-token", help="the token that ends the chat template's turns, such as <|im_end|>")
    parser.add_argument("--template", default="", help="LLaMA Factory's template; for what is not plain LoRA")
    return parser.parse_args(argv)


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\rmerge   {done / 1e9:.2f} of {total / 1e9:.2f} GB", end=end, file=sys.stderr, flush=True)


def run() -> None:
    """Merge, and say what was done."""
    given = arguments()
    result = make(
        given.base,
        given.adapter,
        given.out,
        template=given.template,
        dtype=given.dtype,
        max_shard_bytes=int(given.shard_gb * 10**9),
        end_token=given.end_token,
        progress=_progress if sys.stderr.isatty() else None,
    )
    how = f"llamafactory-cli export, because {result['why']}" if result["why"] else "streaming"
    print(
        f"merge   {result['merged_tensors']} of {result['tensors']} tensors changed, {result['dtype']}, "
        f"{result['bytes'] / 1e9:.2f} GB in {result['shards']} file(s), by {how}"
    )
    if result["zero_adapter"]:
        print("merge   the adapter changes nothing: every product in it is zero", file=sys.stderr)


if __name__ == "__main__":
    errors.main(run)
