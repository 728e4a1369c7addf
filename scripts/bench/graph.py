#!/usr/bin/env python3
"""Time a make with little or nothing to do beside DVC and Snakemake on an equal pipeline (`make bench-graph`).

Four stages over one large file and a configuration: model, data, train, merge. The bodies write small files, so that
what is timed is deciding what to run. Ours are the real Makefile and guard with the bodies of tests/graph.
The peers' environment is made once in build/bench-env, from docker/locks/bench.txt with every hash checked.
Exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "bench-env"
LOCK = ROOT / "docker" / "locks" / "bench.txt"
STUB = ROOT / "tests" / "graph" / "stub_temper.py"
INPUTS = ("rows.csv", "scenario.yaml", "profile.yaml", "model.yaml", "lock.txt")
CHANGES = ("no-op", "touch every input", "mtimes shuffled", "last stage's key changed")
TARGETS = (("no-op", "DVC", 40), ("no-op", "Snakemake", 40), ("touch every input", "DVC", 2))  # times faster than
# Of the make that runs this; the last would have every Python here compile its modules anew.
NOT_OURS = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
Run = tuple[float, float, int]  # wall seconds, CPU seconds of all processes, stage bodies run

# The peers' stages: deps, params of scenario.yaml, output. Each body is one short shell command.
STAGES = {
    "model": (("model.yaml", "lock.txt"), (), "model.out"),
    "data": (("rows.csv", "lock.txt"), ("data",), "data.out"),
    "train": (("model.out", "data.out", "profile.yaml", "lock.txt"), ("train",), "train.out"),
    "merge": (("model.out", "data.out", "train.out", "lock.txt"), ("merge",), "merge.out"),
}


@dataclass(frozen=True)
class Tool:
    """One way to run the pipeline: its folder, its inputs there in the order of INPUTS, its command."""

    name: str
    folder: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        """A file with a line for each stage body that ran."""
        return self.folder / "ran.log"

    def ran(self) -> int:
        """Count the stage bodies run so far."""
        return len(self.log.read_text().split()) if self.log.exists() else 0


def peers_environment() -> Path:
    """Make build/bench-env if it is not there from the current lock; return its folder of programs."""
    digest, note = hashlib.sha256(LOCK.read_bytes()).hexdigest(), ENVIRONMENT / "lock.sha256"
    if not note.is_file() or note.read_text() != digest:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes")
        subprocess.run([ENVIRONMENT / "bin" / "python", *install, "-r", LOCK], check=True)
        note.write_text(digest)
    return ENVIRONMENT / "bin"


def scenario(shard_gb: float) -> str:
    """Return the scenario with its last stage's key."""
    return (
        "model: smollm2-135m\n"
        "data:\n  path: rows.csv\n  columns: {instruction: question, output: answer}\n"
        "train: {lora_rank: 8, num_train_epochs: 3}\n"
        f"merge: {{shard_gb: {shard_gb}}}\n"
    )


def ours(folder: Path, rows: Path) -> Tool:
    """Copy the Makefile and what it calls, with a scenario over the large file."""
    for part in ("Makefile", "scripts", "configs", "docker/locks"):
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    os.link(rows, folder / "rows.csv")
    (folder / "configs/scenarios/bench.yaml").write_text(scenario(5))
    names = (
        "rows.csv",
        "configs/scenarios/bench.yaml",
        "configs/profiles/cpu.yaml",
        "configs/models/smollm2-135m.yaml",
        "docker/locks/cpu.txt",
    )
    settings = ("SCENARIO=bench", f"VENV={ROOT / '.venv'}", f"TEMPER={sys.executable} {STUB}")
    environment = {"STUB_DATA": "1", "STUB_LOGS": str(folder)}
    return Tool("make", folder, tuple(folder / name for name in names), ("make", "merge", *settings), environment)


def peer_inputs(folder: Path, rows: Path) -> tuple[Path, ...]:
    """Write the same inputs as ours for a peer."""
    folder.mkdir(parents=True)
    os.link(rows, folder / "rows.csv")
    (folder / "scenario.yaml").write_text(scenario(5))
    for name, source in (
        ("profile.yaml", "configs/profiles/cpu.yaml"),
        ("lock.txt", "docker/locks/cpu.txt"),
        ("model.yaml", "configs/models/smollm2-135m.yaml"),
    ):
        shutil.copy2(ROOT / source, folder / name)
    return tuple(folder / name for name in INPUTS)


def body(stage: str, out: str) -> str:
    """Return a peer's stage body."""
    read = " ".join(dep for dep in STAGES[stage][0])
    return f"echo {stage} >>ran.log; head -qc 1000 {read} >{out}"


def dvc(folder: Path, rows: Path, programs: Path) -> Tool:
    """Write dvc.yaml; keys of the scenario are DVC's params."""
    inputs, lines = peer_inputs(folder, rows), ["stages:"]
    for stage, (deps, keys, out) in STAGES.items():
        lines += [f"  {stage}:", f"    cmd: {body(stage, out)}", f"    deps: [{', '.join(deps)}]", f"    outs: [{out}]"]
        lines += [f"    params: [{{scenario.yaml: [{', '.join(keys)}]}}]"] if keys else []
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
    own = {name: str(folder / ".own" / name) for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR")}
    environment = {"DVC_NO_ANALYTICS": "1", **own}
    init = [str(programs / "dvc"), "init", "--no-scm", "--quiet"]
    subprocess.run(init, cwd=folder, env=os.environ | environment, check=True)
    return Tool("DVC", folder, inputs, (str(programs / "dvc"), "repro", "--quiet"), environment)


def snakemake(folder: Path, rows: Path, programs: Path) -> Tool:
    """Write a Snakefile; keys of the scenario are Snakemake's params."""
    inputs = peer_inputs(folder, rows)
    lines = ['configfile: "scenario.yaml"', 'rule all:\n    input: "merge.out"']
    for stage, (deps, keys, out) in STAGES.items():
        lines += [f"rule {stage}:", f"    input: {', '.join(map(repr, deps))}", f"    output: {out!r}"]
        lines += [f"    params: {', '.join(f'config[{key!r}]' for key in keys)}"] if keys else []
        lines += [f"    shell: {body(stage, out)!r}"]
    (folder / "Snakefile").write_text("\n".join(lines) + "\n")
    command = (str(programs / "snakemake"), "--cores", "1", "--quiet", "all")
    return Tool("Snakemake", folder, inputs, command, {"XDG_CACHE_HOME": str(folder / ".own")})


def timed(tool: Tool) -> Run:
    """Run the pipeline once."""
    kept = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    before, started = tool.ran(), perf_counter()
    process = subprocess.Popen(tool.command, cwd=tool.folder, env=kept | tool.environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{tool.name} ended with code {process.returncode}: {' '.join(tool.command)}")
    return seconds, used.ru_utime + used.ru_stime, tool.ran() - before


def touch(tool: Tool) -> None:
    """Give every input the time of now."""
    for path in tool.inputs:
        path.touch()


def shuffle(tool: Tool) -> None:
    """Give every input and every result a random time of the last year."""
    now = tool.inputs[0].stat().st_mtime
    made = [path for path in tool.folder.rglob("*") if path.is_file() and path.suffix in (".out", ".done", ".jsonl")]
    for path in (*tool.inputs, *made, *tool.folder.glob("build/bench/cpu/*/*")):
        at = now - random.uniform(0, 365 * 86400)
        os.utime(path, (at, at))


def change_key(tool: Tool) -> None:
    """Change a key that only the last stage reads."""
    tool.inputs[1].write_text(scenario(round(random.uniform(1, 40), 6)))


def measure(tools: list[Tool], repeats: int) -> dict[tuple[str, str], list[Run]]:
    """Time each tool under each change, taking turns so that a busy spell meets all of them."""
    prepare: dict[str, Callable[[Tool], None]] = dict(
        zip(CHANGES, (lambda tool: None, touch, shuffle, change_key), strict=True)
    )
    found: dict[tuple[str, str], list[Run]] = {}
    for change, before in prepare.items():
        for tool in tools:
            timed(tool)  # current again, whatever the last change left
            timed(tool)
        for _ in range(repeats):
            for tool in tools:
                before(tool)
                found.setdefault((tool.name, change), []).append(timed(tool))
    return found


def report(found: dict[tuple[str, str], list[Run]], tools: list[Tool]) -> dict[tuple[str, str], float]:
    """Print the medians; return the median wall seconds."""
    wall = {key: statistics.median(run[0] for run in runs) for key, runs in found.items()}
    print(f"{'median wall s (CPU s) [bodies]':<28}" + "".join(f"{tool.name:>24}" for tool in tools))
    for change in CHANGES:
        line = f"{change:<28}"
        for tool in tools:
            runs = found[tool.name, change]
            bodies = sorted({run[2] for run in runs})
            cpu = statistics.median(run[1] for run in runs)
            line += f"{wall[tool.name, change]:>10.4f} ({cpu:.3f}) [{'-'.join(map(str, bodies))}]".rjust(24)
        print(line)
    return wall


def targets(wall: dict[tuple[str, str], float]) -> bool:
    """Print the ratios that are promised; return whether all hold."""
    met = True
    for change, peer, wanted in TARGETS:
        ratio = wall[peer, change] / wall["make", change]
        verdict = "met" if ratio >= wanted else "MISSED"
        met &= ratio >= wanted
        print(f"{change}: {ratio:.1f} times faster than {peer} (target {wanted}: {verdict})")
    return met


def main() -> int:
    """Set up the three pipelines, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the data file (default: 500)")
    parser.add_argument("--repeats", type=int, default=7, help="runs per tool and change (default: 7)")
    given = parser.parse_args()
    programs, folder = peers_environment(), ROOT / "build" / "bench" / "graph"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        rows, block = folder / "rows.csv", os.urandom(1_000_000)
        with open(rows, "wb") as file:
            for number in range(given.megabytes):
                file.write(number.to_bytes(8, "big") + block[8:])
        tools = [
            ours(folder / "make", rows),
            dvc(folder / "dvc", rows, programs),
            snakemake(folder / "snakemake", rows, programs),
        ]
        load = os.getloadavg()[0]
        print(f"four stages over one file of {given.megabytes} MB; {os.cpu_count()} cores, load {load:.1f}")
        return 0 if targets(report(measure(tools, given.repeats), tools)) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
