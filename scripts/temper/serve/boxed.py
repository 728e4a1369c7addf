"""A server in a container: how it is started, whether it lives, what it last said, how it ends; beside process.py.

The container is created, recorded and only then started, so that none runs unrecorded; one that was created before
its maker was killed has the same name as the next, which replaces it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper import containers
from temper.containers import Container, Engine
from temper.errors import MachineError
from temper.serve import process

Record = dict[str, Any]


@dataclass(frozen=True)
class Box:
    """A server in a container that is to be."""

    engine: Engine
    container: Container
    folder: Path
    host: str
    port: int
    dtype: str  # what it computes in
    api_key: str | None = field(default=None, repr=False)
    probe: Callable[[str, str | None], None] | None = None  # a further question to ask once it answers

    def launch(self, log: Path, note: Callable[[Record], None]) -> None:
        """Create the container, note it, start it, and let what it says flow into `log`."""
        remove(self.engine, self.container.name)
        made = self._create()
        note({"engine": self.engine.name, "container": made, "name": self.container.name, "image": self._image(made)})
        self.engine.run("start", made)
        process.spawn([self.engine.name, "logs", "--follow", made], dict(os.environ), log)

    def _create(self) -> str:
        command = containers.run_command(self.engine, self.container, "create")
        secrets = dict.fromkeys(self.container.secrets, self.api_key or "")
        done = subprocess.run(command, env={**os.environ, **secrets}, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            raise MachineError(f"{self.engine.name} create failed: {said}", f"see: {self.engine.name} info")
        return done.stdout.strip().splitlines()[-1]

    def _image(self, made: str) -> str:
        """Return the digest that the image was asked for by, else its ID."""
        if digest := self.container.image.partition("@")[2]:
            return digest
        found = self.engine.run("inspect", "--format", "{{.Image}}", made).strip()
        return f"sha256:{found.removeprefix('sha256:')}"

    def asked(self) -> tuple[str | None, str]:
        """Return the key that it wants and the dtype it computes in."""
        return self.api_key, self.dtype

    def check(self, url: str) -> None:
        """Ask what else must be right besides the golden prompts."""
        if self.probe:
            self.probe(url, self.api_key)


def named(record: Record) -> str:
    """Return how a person finds it."""
    return f"{record['engine']} container {record['name']}, image {record['image']}"


def owns_port(record: Record) -> bool:
    """Say yes: the engine, or the server in it, fails to start on a port that is taken."""
    return True


def alive(record: Record) -> bool:
    """Return whether the recorded container runs; MachineError when the engine does not say."""
    try:
        found = Engine(record["engine"]).run("inspect", "--format", "{{.State.Running}}", record["container"])
    except MachineError as error:
        if "no such" in str(error).lower():
            return False
        raise
    return found.strip() == "true"


def said(record: Record, log: Path) -> list[str]:
    """Return the last lines it has written, from the engine: what flows into `log` may be late."""
    words = [record["engine"], "logs", "--tail", "50", record["container"]]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode("utf-8", "replace").splitlines()


def end(record: Record, grace_s: float) -> None:
    """Ask it to end, kill it after `grace_s` seconds, and remove it."""
    engine = Engine(record["engine"])
    engine.run("stop", "-t", str(round(grace_s)), record["container"], check=False)
    remove(engine, record["container"])


def remove(engine: Engine, name: str) -> None:
    """Remove a container and what it wrote; do nothing when there is none."""
    try:
        engine.run("rm", "--force", "--volumes", name)
    except MachineError as error:
        if "no such" not in str(error).lower():
            raise
