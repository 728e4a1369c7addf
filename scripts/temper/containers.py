"""Docker and podman: which engine there is, what it has, and the command line that starts a container as the caller.

A container sees the repository at its own path, read-only, and the build folder, writable; it has no capabilities, a
read-only root and, for stages, no network. Nothing here starts anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.errors import ConfigError, MachineError
from temper.paths import BUILD, ROOT

ENGINES = ("docker", "podman")
INSTALL = {"docker": "apt-get install docker.io", "podman": "apt-get install podman"}
# What the caller's shell says about processors, GPUs and machines of a run; everything else stays outside.
PASSED = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "FORCE_TORCHRUN", "TEMPER_BUILD", "WAIT")
SEVERAL_MACHINES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RDZV_ID", "MIN_NNODES", "MAX_NNODES")


@dataclass(frozen=True)
class Engine:
    """A container engine that answers."""

    name: str  # docker or podman
    rootless: bool = False
    cdi: bool = False  # GPUs are named as CDI devices

    def run(self, *words: str, check: bool = True) -> str:
        """Run the engine's client and return what it prints; MachineError with its last line when it fails."""
        if not shutil.which(self.name):
            raise MachineError(f"there is no {self.name} on this machine", INSTALL[self.name])
        done = subprocess.run([self.name, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode and check:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise MachineError(f"{self.name} {words[0]} failed: {said}", f"see: {self.name} info")
        return done.stdout


@dataclass(frozen=True)
class Container:
    """What a container is started with, whichever engine starts it."""

    image: str
    command: Sequence[str]
    name: str = ""
    network: str = "none"  # none, host or bridge
    publish: tuple[str, int, int] | None = None  # address and port of the host, port inside; with bridge only
    mounts: Mapping[Path, bool] = field(default_factory=dict)  # path of the host, the same inside; whether writable
    at: Mapping[Path, str] = field(default_factory=dict)  # path of the host, read-only at another place inside
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()  # variables whose values the engine takes from its own environment, unseen in `ps`
    workdir: str = "/tmp"
    entrypoint: str | None = None
    gpus: Sequence[str] = ()  # as NVIDIA_VISIBLE_DEVICES lists them; ("all",) for all
    shared_memory: int = 64 << 20  # bytes of /dev/shm
    as_root: bool = False  # only for images that run as no other user
    more: Sequence[str] = ()  # further words for the engine: --rm, --detach


def find(runtime: str) -> Engine:
    """Return the engine that RUNTIME names; MachineError when it is not there or does not answer."""
    if runtime not in ENGINES:
        raise ConfigError(f"RUNTIME={runtime} is none of local, docker and podman", "write RUNTIME=local")
    if not shutil.which(runtime):
        raise MachineError(f"there is no {runtime} on this machine", f"{INSTALL[runtime]}, or RUNTIME=local")
    done = subprocess.run([runtime, "info", "--format", "{{json .}}"], capture_output=True, text=True)
    try:
        info: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        info = {}
    said = [*(info.get("ServerErrors") or []), *([] if info and not done.returncode else done.stderr.splitlines())]
    if said or done.returncode:
        start = "systemctl start docker" if runtime == "docker" else "podman info"
        raise MachineError(
            f"{runtime} does not answer: {said[-1] if said else 'no message'}", f"{start}, or RUNTIME=local"
        )
    return Engine(runtime, _rootless(info), _cdi(runtime))


def any_engine(preferred: str) -> Engine:
    """Return the preferred engine, or with RUNTIME=local the first that answers."""
    if preferred in ENGINES:
        return find(preferred)
    silent: MachineError | None = None
    for name in filter(shutil.which, ENGINES):
        try:
            return find(name)
        except MachineError as error:
            silent = silent or error
    if silent:
        raise silent
    raise MachineError("a served image needs Docker or podman, and there is neither", "apt-get install podman")


def _rootless(info: Mapping[str, Any]) -> bool:
    docker = any("rootless" in option for option in info.get("SecurityOptions") or [])
    return docker or bool(((info.get("host") or {}).get("security") or {}).get("rootless"))


def _cdi(name: str) -> bool:
    """Say whether GPUs go by CDI names: always with podman, with Docker where only such a description is installed."""
    described = any(Path(folder).glob("nvidia*") for folder in ("/etc/cdi", "/var/run/cdi") if Path(folder).is_dir())
    return name == "podman" or (described and not shutil.which("nvidia-container-runtime"))


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that NVIDIA_VISIBLE_DEVICES leaves to a container: ("all",), indexes or UUIDs, or none."""
    listed = os.environ.get("NVIDIA_VISIBLE_DEVICES", "all").strip()
    return () if listed in ("", "none", "void") else tuple(part.strip() for part in listed.split(",") if part.strip())


def run_command(engine: Engine, box: Container, verb: str = "run") -> list[str]:
    """Return the whole command line; `verb` may be create."""
    words = [engine.name, verb, "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    words.append("--pull=never")  # images come by digest, before this
    words += [*box.more, f"--network={box.network}", *_identity(engine, box), f"--shm-size={box.shared_memory}"]
    words += ["--tmpfs=/tmp:rw,exec,nosuid,nodev,mode=1777", f"--workdir={box.workdir}"]
    words += [f"--name={box.name}"] if box.name else []
    if box.network == "none":
        words.append("--hostname=localhost")  # so that looking up one's own name asks nobody
    if box.publish and box.network == "bridge":
        address, outside, inside = box.publish
        words.append(f"--publish={f'[{address}]' if ':' in address else address}:{outside}:{inside}")
    words += _volumes(box)
    words += [f"--env={key}={value}" for key, value in box.environment.items()]
    words += [f"--env={key}" for key in box.secrets]
    words += _gpus(engine, box.gpus)
    words += [f"--entrypoint={box.entrypoint}"] if box.entrypoint is not None else []
    return [*words, box.image, *box.command]


def _identity(engine: Engine, box: Container) -> list[str]:
    """Make the files a container writes the caller's, whatever user namespace the engine has."""
    user = f"--user={os.getuid()}:{os.getgid()}"
    if box.as_root or (engine.name == "docker" and engine.rootless):
        return ["--user=0:0"]  # of a rootless engine: the caller
    return ["--userns=keep-id", user] if engine.rootless else [user]


def _volumes(box: Container) -> list[str]:
    """Return the mounts; `z` lets SELinux's container type read them and means nothing without SELinux."""
    inside = {**{path: (str(path), writable) for path, writable in box.mounts.items()}}
    inside |= {path: (place, False) for path, place in box.at.items()}
    for path in inside:
        if ":" in str(path):
            raise ConfigError(f"{path}: container engines cannot mount a path with a colon", "use another folder")
    return [f"--volume={path}:{place}:{'rw' if writable else 'ro'},z" for path, (place, writable) in inside.items()]


def _gpus(engine: Engine, gpus: Sequence[str]) -> list[str]:
    if not gpus:
        return []
    if engine.cdi:
        return [f"--device=nvidia.com/gpu={name}" for name in gpus]
    wanted = "all" if tuple(gpus) == ("all",) else f'"device={",".join(gpus)}"'
    return [f"--gpus={wanted}", "--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility"]


def repository(*data: Path) -> dict[Path, bool]:
    """Return the mounts of a stage: the repository read-only, the build folder writable, rows kept elsewhere."""
    build = (ROOT / BUILD).resolve()
    found = {ROOT: False, build: True}
    found |= {real: False for path in data if not (real := path.resolve()).is_relative_to(ROOT)}
    return found


def shared_memory(train: Mapping[str, Any], gpus: int) -> int:
    """Return the bytes of /dev/shm for training: batches that the loader's workers have ready, and NCCL's buffers.

    Three 8-byte values a token (ids, mask, labels), two batches ahead a worker; 1 GiB for each GPU.
    """
    tokens = int(train.get("per_device_train_batch_size") or 8) * int(train.get("cutoff_len") or 2048)
    workers = int(train.get("dataloader_num_workers") or 0)
    return (256 << 20) + workers * 2 * tokens * 24 * max(1, gpus) + gpus * (1 << 30)


def digests_of(engine: Engine, reference: str) -> list[str] | None:
    """Return the DiffIDs of an image that the engine has; None when it has none of that name."""
    found = engine.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", reference, check=False)
    try:
        return [str(digest).removeprefix("sha256:") for digest in json.loads(found)]
    except (ValueError, TypeError):
        return None
