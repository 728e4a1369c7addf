"""What this machine has and lacks for Temper, and the command that mends it. Needs nothing but Python."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from temper.errors import ConfigError
from temper.paths import BUILD, CONFIGS

Finding = tuple[str, str, str]  # "ok", "note" or "lack"; what was found; the remedy

NEED_DISK_GB, NEED_MEMORY_GB = 6, 4  # the environment takes 2.3 GB, a quickstart 1.2 GB, training 2.7 GB of memory
# The oldest driver that runs the locked CUDA 13 libraries, from NVIDIA's compatibility table.
CUDA_DRIVER = 580


def _python() -> Finding:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return (
            "lack",
            f"Python {version}, need 3.11 to 3.13",
            "apt-get install python3 python3-venv, or PYTHON=python3.11",
        )
    return "ok", f"Python {version}", ""


def _venv(runtime: str) -> Finding:
    name = ".venv" if runtime == "local" else ".venv-host"
    if Path(name, "installed").is_file():
        return "ok", f"environment {name}", ""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "lack", "no venv module", "apt-get install python3-venv"
    return "note", f"environment {name} is not made yet", "make install"


def _tool(name: str, package: str) -> Finding:
    if shutil.which(name):
        return "ok", name, ""
    return "lack", f"no {name}", f"apt-get install {package}"


def _disk() -> Finding:
    free = shutil.disk_usage(BUILD if BUILD.exists() else ".").free / 1e9
    kind = "ok" if free >= NEED_DISK_GB else "lack"
    return (
        kind,
        f"disk: {free:.0f} GB free, quickstart needs {NEED_DISK_GB}",
        "" if kind == "ok" else "free some, or BUILD=DIR",
    )


def _memory() -> Finding:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = int((re.search(r"MemAvailable:\s+(\d+)", text) or re.search(r"MemFree:\s+(\d+)", text))[1]) / 1e6  # type: ignore[index]
    kind = "ok" if free >= NEED_MEMORY_GB else "lack"
    return (
        kind,
        f"memory: {free:.0f} GB free, quickstart needs {NEED_MEMORY_GB}",
        "" if kind == "ok" else "stop other programs",
    )


def _processor() -> Finding:
    from temper.train import machine

    fast = (
        "bf16 in hardware"
        if machine.BF16_FLAGS & machine.cpu_flags()
        else "no bf16: trains in float32, 1.4 times slower"
    )
    return "ok", f"processor: {machine.cores()} cores, {fast}", ""


def _output(argv: list[str]) -> str | None:
    """Return what a program prints; None when it fails or takes longer than 20 s."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _engine(runtime: str) -> Finding:
    if runtime != "local":
        return _asked_for(runtime)
    for name in ("docker", "podman"):
        if shutil.which(name):
            if _output([name, "info"]) is not None:
                return "ok", f"container engine {name}", ""
            return "note", f"{name} is installed but does not answer", f"start it: systemctl start {name}"
    return "note", "no container engine", "apt-get install podman (not needed for RUNTIME=local)"


def _asked_for(runtime: str) -> Finding:
    """Examine the engine that RUNTIME names, as a stage would."""
    from temper import containers
    from temper.errors import TemperError

    try:
        engine = containers.find(runtime)
    except TemperError as error:
        what, _, remedy = str(error).rpartition("; ")
        return "lack", what, remedy
    return "ok", f"container engine {runtime}{', rootless' if engine.rootless else ''}", ""


def _needs_gpu(profile: str) -> bool:
    """Say whether a profile file asks for a GPU; ConfigError when there is none of that name."""
    path = CONFIGS / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path}: there is no profile named {profile}", f"there are: {there}")
    return bool(re.search(r"^gpu: *true\b", path.read_text(encoding="utf-8"), re.M))  # PyYAML may not be there yet


def _gpu(wanted: bool) -> list[Finding]:
    if not shutil.which("nvidia-smi"):
        kind = "lack" if wanted else "note"
        return [
            (
                kind,
                "no NVIDIA GPU or driver",
                f"install driver {CUDA_DRIVER} or newer" if wanted else "PROFILE=cpu needs none",
            )
        ]
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    listed = _output(query)
    if not listed:
        return [("lack" if wanted else "note", "nvidia-smi fails", "reinstall the NVIDIA driver, then reboot")]
    return [_card(line, wanted) for line in listed.strip().splitlines()]


def _card(line: str, wanted: bool) -> Finding:
    name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
    major = driver.partition(".")[0]
    new_enough = major.isdigit() and int(major) >= CUDA_DRIVER
    size = f"{int(memory) / 1024:.0f} GB" if memory.isdigit() else "memory shared with the processor"
    return (
        "ok" if new_enough else "lack" if wanted else "note",
        f"{name}, {size}, driver {driver}",
        "" if new_enough else f"the locked CUDA 13 needs driver {CUDA_DRIVER} or newer",
    )


def findings(profile: str, runtime: str) -> list[Finding]:
    """Examine this machine for a profile and a runtime."""
    gpu = _gpu(_needs_gpu(profile))
    return [
        _python(),
        _venv(runtime),
        _tool("make", "make"),
        _tool("git", "git"),
        _disk(),
        _memory(),
        _processor(),
        _engine(runtime),
        *gpu,
    ]


def report(profile: str, say: Callable[[str], None], runtime: str = "local") -> int:
    """Print the findings; return 11 when something needed is missing, else 0."""
    found = findings(profile, runtime)
    for kind, what, remedy in found:
        say(f"{kind:<5} {what}{'  ->  ' + remedy if remedy else ''}")
    lacking = sum(kind == "lack" for kind, _, _ in found)
    say(
        f"doctor  {lacking} thing{'s' if lacking != 1 else ''} missing for profile {profile}"
        if lacking
        else f"doctor  this machine is ready for profile {profile}"
    )
    return 11 if lacking else 0
