"""Experiment trackers get an evaluation's figures, in files under the build folder."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from tests.serve.serving import environment, free_port

from temper import tracking
from temper.errors import MachineError
from temper.serve import ports

ROOT = Path(__file__).resolve().parents[2]

VALUES = {"eval/gain": 0.4375, "eval/heldout/correct/tuned": 0.5}


@pytest.mark.parametrize(
    ("given", "names"),
    [("none", []), ("wandb", ["wandb"]), (["tensorboard", "mlflow"], ["tensorboard", "mlflow"]), (None, [])],
)
def test_a_train_section_names_its_trackers(given: object, names: list[str]) -> None:
    """`report_to` may be a word, a list or nothing."""
    assert tracking.asked({"report_to": given}) == names


def test_a_tracker_that_is_not_installed_is_named() -> None:
    """The error says which, and how to get it."""
    with pytest.raises(MachineError, match=r"comet_ml is not installed here; make install EXTRA=track, and RUN"):
        tracking.refuse_absent(["comet_ml"])


@pytest.mark.filterwarnings("ignore")  # of the trackers
def test_every_tracker_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard and mlflow give the numbers back; wandb and swanlab hold them for a later sync."""
    for name, value in tracking.environment(tmp_path, "x").items():
        monkeypatch.setenv(name, value)  # which takes them away again
    tracking.figures(list(tracking.TRACKERS), tmp_path, "customer-service-cpu", VALUES)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == VALUES
    import mlflow

    [run] = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("temper").experiment_id])
    assert run.data.metrics == VALUES
    assert run.info.run_name == "customer-service-cpu eval"
    for tracker, pattern in (("wandb", "**/offline-run-*/run-*.wandb"), ("swanlab", "**/*.swanlab")):
        [kept] = (tmp_path / tracker).glob(pattern)
        assert b"eval/heldout/correct/tuned" in kept.read_bytes(), tracker


@pytest.mark.slow
def test_training_writes_for_every_tracker(tiny: Path, tmp_path: Path) -> None:
    """`report_to` passes through: LLaMA Factory's own run stands in each tracker's files, and sends nothing."""
    (tmp_path / "train.jsonl").write_text('{"instruction": "Who?", "input": "", "output": "I."}\n' * 8)
    (tmp_path / "dataset_info.json").write_text('{"train": {"file_name": "train.jsonl"}}')
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(tiny),
        "template": "smollm2",
        "dataset": "train",
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "adapter"),
        "finetuning_type": "lora",
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": list(tracking.TRACKERS),
        "logging_dir": str(tmp_path / "track" / "tensorboard"),
        "run_name": "tiny",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(arguments))
    program = ["scripts/llamafactory/train_model.py", "--config", str(tmp_path / "c.yaml")]
    env = {name: value for name, value in environment().items() if name != "WANDB_SERVICE"}  # of the test before
    done = subprocess.run([sys.executable, *program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {path.relative_to(tmp_path / "track").parts[0]: path for path in (tmp_path / "track").rglob("*.*")}
    assert kept.keys() == set(tracking.TRACKERS)
    assert list((tmp_path / "track").glob("tensorboard/events.out.tfevents.*"))
    assert b"train/loss" in b"".join(path.read_bytes() for path in (tmp_path / "track").glob("wandb/**/run-*.wandb"))
    assert b"train/loss" in b"".join(path.read_bytes() for path in (tmp_path / "track").glob("swanlab/**/*.swanlab"))
    assert list((tmp_path / "track" / "mlflow").glob("*/*/metrics/loss"))


@pytest.mark.slow
def test_tensorboard_shows_them_on_loopback(tmp_path: Path) -> None:
    """The goal serves what was written, on loopback only; without anything written it says what to do."""
    port = free_port()
    words = ["-m", "temper", "tensorboard", "--scenario", "customer-service", "--profile", "cpu", "--port", str(port)]
    env = {**environment(), "TEMPER_BUILD": str(tmp_path)}
    none = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (none.returncode, "nothing was written; run: make train SET=" in none.stderr) == (6, True)
    (tmp_path / "customer-service" / "cpu" / "track" / "tensorboard").mkdir(parents=True)
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as showing:
        try:
            until = time.monotonic() + 60
            while ports.holder(port) is None:
                assert showing.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/environment", timeout=30) as answer:
                assert b"track/tensorboard" in answer.read()
            listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
            assert f"0100007F:{port:04X}" in {line.split()[1] for line in listening}
            assert f"00000000:{port:04X}" not in {line.split()[1] for line in listening}
        finally:
            showing.terminate()
