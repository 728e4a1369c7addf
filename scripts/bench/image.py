"""Import times in the container against the local environment, in turns: make bench-image BENCH='--runs 5'."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temper import child, containers, paths
from temper.containers import Container
from temper.images import provide

IMPORTS = """
import os, sys, time
start = time.monotonic()
import torch, peft, datasets, transformers.trainer, llamafactory.train.tuner
used = os.times()
print(time.monotonic() - start, used.user + used.system)
"""


def measured(argv: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of the imports in a process that `argv` starts."""
    done = subprocess.run([*argv, IMPORTS], capture_output=True, text=True, check=True, env=child.environment())
    wall, cpu = map(float, done.stdout.split()[-2:])
    return wall, cpu


def main() -> None:
    """Run both in turns and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--runtime", default="docker", choices=containers.ENGINES)
    given = parser.parse_args()
    paths.enter_root()
    engine = containers.find(given.runtime)
    reference = provide.ensure(engine, "temper-cpu", print)
    box = Container(reference, ["-c"], entrypoint="python3", environment=child.QUIET, more=("--rm",))
    ways = {"local": [".venv/bin/python", "-c"], given.runtime: containers.run_command(engine, box)}
    for argv in ways.values():
        measured(argv)  # warm caches
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, argv in ways.items():
            rows[name].append(measured(argv))
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name:<8} {wall:5.2f} s wall, {cpu:5.2f} s CPU")
    wall, cpu = (medians[given.runtime][at] / medians["local"][at] for at in (0, 1))
    print(f"ratio    {wall:5.2f} wall,   {cpu:5.2f} CPU")


if __name__ == "__main__":
    main()
