"""Where a stage's program runs: the local environment, or a container of the pinned image."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper import child, determinism, digests
from temper.errors import MachineError
from temper.paths import BUILD, ROOT

if TYPE_CHECKING:
    from temper.containers import Container  # a stage that finds itself current needs no engine

CUDA_PYTHON = Path(".venv-cuda/bin/python")


def image(config: dict[str, Any]) -> str:
    """Return the name of the image that a profile's stages run in."""
    return "temper-cuda" if config["gpu"] else "temper-cpu"


def in_image(config: dict[str, Any]) -> bool:
    """Say whether stages run on the locked image's files: in a container, or in a Nix build, which is inside."""
    return bool(config.get("runtime", "local") != "local")


def in_container(config: dict[str, Any]) -> bool:
    """Say whether stages run in containers: not in a Nix build; anywhere else RUNTIME=nix is no engine, and refused."""
    return in_image(config) and not (config["runtime"] == "nix" and "NIX_BUILD_TOP" in os.environ)


def digest(config: dict[str, Any]) -> str:
    """Return the digest of the image that stages run in; "" for the local environment."""
    if not in_image(config):
        return ""
    from temper.images import pinned

    return pinned.digest(image(config))


def describe(config: dict[str, Any]) -> str:
    """Say in words where stages run."""
    if not in_image(config):
        return "local"
    return f"{config['runtime']}, {image(config)} {digest(config)[:19]}".rstrip()


def tools(config: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of packages in the image that stages run in."""
    from temper.images import parts

    listed = {part.name: part.version for part in parts.read(image(config))}
    python = {"python": listed["python3.11"].partition("-")[0]}
    return python | {name: listed[name] for name in names if name in listed}


def run(config: dict[str, Any], program: Path, *arguments: str) -> int:
    """Run one of the repository's programs as a stage's body and return its exit code.

    In a container it ends with this process, however this process ends.
    """
    if not in_container(config):
        inherited = child.environment().items()
        own = {name: value for name, value in inherited if name not in determinism.NOT_INHERITED}
        return child.run([_python(config), str(program), *arguments], own | determinism.variables(config))
    from temper import containers
    from temper.images import provide

    engine = containers.find(config["runtime"])
    reference = provide.ensure(engine, image(config), lambda line: print(line, flush=True))
    argv = containers.run_command(engine, box(config, reference, [str(program), *arguments]))
    code = child.run(argv, dict(os.environ), hold=True)
    if code == 125:  # the engine's own: it has said why
        raise MachineError(f"{engine.name} could not start the container", "see its message above")
    return code


def box(config: dict[str, Any], reference: str, argv: Sequence[str]) -> Container:
    """Describe the container of a stage's program."""
    from temper import containers
    from temper.config import cached

    gpus = containers.visible_gpus() if config["gpu"] else ()
    several = int(os.environ.get("NNODES") or 1) > 1  # machines that talk to each other need a network
    passed = [name for name in (*containers.PASSED, *(containers.SEVERAL_MACHINES if several else ()))]
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    here = f"{ROOT}/{BUILD}/{config['scenario']}/{config['profile']}"
    return containers.Container(
        image=reference,
        command=["python3", "-m", "temper.lifeline", "python3", *argv],
        name=f"temper-{digests.of_value(here)[:8]}-{os.getpid()}",
        network="host" if several else "none",
        mounts=containers.repository(*map(Path, cached.inputs(config["data"]))),
        environment={
            **child.QUIET,
            "PYTHONPATH": f"{ROOT}/scripts",
            "PYTHONDONTWRITEBYTECODE": "1",
            "USER": "temper",
            **environment,
            **determinism.variables(config),
        },
        workdir=str(ROOT),
        gpus=gpus,
        shared_memory=containers.shared_memory(config["train"], max(1, len(gpus)) if gpus else 0),
        more=("--rm", "--interactive"),
    )


def _python(config: dict[str, Any]) -> str:
    """Return the interpreter of the local runtime: this one, or the CUDA environment's for a GPU profile."""
    if not config["gpu"]:
        return sys.executable
    if not CUDA_PYTHON.exists():
        raise MachineError(
            f"profile {config['profile']} needs the CUDA environment", f"run: make install PROFILE={config['profile']}"
        )
    return str(CUDA_PYTHON)
