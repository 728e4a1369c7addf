"""What this machine trains best with: bfloat16 or not, and how many threads."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

# CPU flags that mean bfloat16 products in hardware; without them bfloat16 is emulated and slower than float32.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is aarch64's


def cpu_flags() -> set[str]:
    """Return the CPU's feature flags as the kernel names them."""
    return set(_cpuinfo("flags", "features").split())


def processor() -> str | None:
    """Return the CPU's name as the kernel has it; None where it has none."""
    return _cpuinfo("model name") or None


def _cpuinfo(*fields: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.lower().startswith(fields):
            return line.partition(":")[2].strip()
    return ""


def cores() -> int:
    """Return the cores this process may use: its affinity, and its control group's quota if that is less."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def _ticks() -> tuple[int, int]:
    values = [int(value) for value in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:]]
    return values[3] + values[4], sum(values)  # idle and iowait, all


def threads(sample_s: float = 0.5) -> int:
    """Return OMP_NUM_THREADS where the caller set it, else as many threads as cores are idle now, at least one.

    Two torch threads on a busy two-core machine ran at a sixth of one thread's speed: each step waits for the slower.
    """
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given):
        return int(given)
    idle, total = _ticks()
    time.sleep(sample_s)
    idle_after, total_after = _ticks()
    share = (idle_after - idle) / max(1, total_after - total)
    return max(1, min(cores(), round(share * (os.cpu_count() or 1))))


def choose(use_cpu: bool) -> dict[str, Any]:
    """Return {"bf16": bool, "threads": int} for this machine; on a GPU bf16 from compute capability 8.0 up.

    On a GPU also what its bits depend on: model, driver, versions of CUDA, cuDNN and NCCL.
    """
    if use_cpu:
        return {"bf16": bool(BF16_FLAGS & cpu_flags()), "threads": threads()}
    import torch

    chosen = {"bf16": False, "threads": max(1, cores() // 2)}
    if not torch.cuda.is_available():
        return chosen
    libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nccl": torch.cuda.nccl.version()}
    named = {name: ".".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in libraries.items()}
    gpu = {"gpu": torch.cuda.get_device_name(), "driver": driver(), **named}
    return {**chosen, "bf16": torch.cuda.is_bf16_supported(), **gpu}


def driver(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of NVIDIA's kernel module; None where it is not known."""
    try:
        found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"), re.M)
    except OSError:
        return None
    return found[1] if found else None


def thread_environment(count: int) -> dict[str, str]:
    """Return the variables that hold every math library to `count` threads that sleep rather than spin."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}
