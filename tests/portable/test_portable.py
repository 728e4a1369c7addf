"""With determinism: portable an adapter comes out the same on three types of CPU, two of them emulated by qemu-user."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.serve import serve_model
from tests.serve.serving import environment

from temper import determinism

ROOT = Path(__file__).resolve().parents[2]
QEMU = shutil.which("qemu-x86_64")
CPUINFO = Path("/proc/cpuinfo").read_text()
PORTABLE = {"determinism": "portable", "gpu": False}
ROWS = [
    f'{{"instruction": "What is {a} and {b}?", "input": "", "output": "{a + b}."}}' for a in range(4) for b in (1, 2)
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines emulate other types of CPU"),
    pytest.mark.skipif(not QEMU and not os.environ.get("CI"), reason="apt-get install qemu-user"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny base model and rows."""
    made = tmp_path_factory.mktemp("portable")
    serve_model.make(made / "model")
    (made / "train.jsonl").write_text("\n".join(ROWS) + "\n")
    (made / "dataset_info.json").write_text('{"train": {"file_name": "train.jsonl"}}')
    return made


def trained(folder: Path, name: str, cpu: str = "", portable: bool = True, threads: int = 1) -> dict[str, str]:
    """Train two steps, on an emulated type of CPU if one is named; return the sha256 of weights and config."""
    config = PORTABLE if portable else {**PORTABLE, "determinism": "machine"}
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(folder / "model"),
        "template": "smollm2",
        "dataset": "train",
        "dataset_dir": str(folder),
        "output_dir": str(folder / name),
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": 4,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1.0e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "disabled",
        **determinism.arguments(config),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(arguments))
    inherited = {key: value for key, value in environment().items() if key not in determinism.NOT_INHERITED}
    own = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    emulated = [str(QEMU), "-cpu", cpu] if cpu else []
    done = subprocess.run(
        [*emulated, sys.executable, "-m", "llamafactory.cli", "train", str(folder / f"{name}.yaml")],
        cwd=ROOT,
        env={**inherited, **own, **determinism.variables(config)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = folder / name
    return {
        file: hashlib.sha256((made / file).read_bytes()).hexdigest()
        for file in ("adapter_model.safetensors", "adapter_config.json")
    }


@pytest.fixture(scope="module")
def here(folder: Path) -> dict[str, str]:
    """Return what this machine's own CPU makes."""
    return trained(folder, "here")


@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
def test_another_type_of_cpu_gives_the_same_bytes(folder: Path, here: dict[str, str], cpu: str) -> None:
    """Weights and config of the adapter have the sha256 that this machine's CPU gives them."""
    assert trained(folder, cpu, cpu) == here


def test_threads_asked_for_give_the_same_bytes(folder: Path, here: dict[str, str]) -> None:
    """The shell's number of threads does not matter: with two, MKL's products would differ for this model."""
    assert trained(folder, "threads", threads=2) == here


def test_it_is_the_settings_that_do_it(folder: Path, here: dict[str, str]) -> None:
    """Without them this machine's own CPU makes other weights: the comparison can fail."""
    usual = trained(folder, "usual", portable=False)
    assert usual["adapter_model.safetensors"] != here["adapter_model.safetensors"]


@pytest.mark.skipif("GenuineIntel" not in CPUINFO, reason="measured on Intel only, docs/reproducibility.md")
def test_the_number_of_threads_changes_nothing(folder: Path) -> None:
    """In the usual mode too one and two threads give the same adapter."""
    one, two = (trained(folder, f"usual-{threads}", portable=False, threads=threads) for threads in (1, 2))
    assert one == two


@pytest.mark.skipif(" avx512f " not in CPUINFO, reason="this processor has no AVX-512")
def test_it_is_the_width_of_the_vectors_that_does_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the stage's variable a processor with AVX-512 gives another adapter for another number of threads."""
    monkeypatch.setattr(determinism, "_any_threads", dict)
    one, two = (trained(folder, f"wide-{threads}", portable=False, threads=threads) for threads in (1, 2))
    assert one != two
