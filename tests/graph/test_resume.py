"""Training by LLaMA Factory itself, killed, interrupted and driven into NaN: five runs of a random two-layer model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scratch
from scratch import Repo, content

sys.path.insert(0, str(scratch.ROOT / "tests" / "merge"))

import tiny_chat
import tiny_models

pytestmark = pytest.mark.slow
STEPS = 240

MODEL = """\
source: {{path: {folder}}}
template: smollm2
licence: none
architecture: llama
parameters: {parameters}
context: 256
shape: {{hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, intermediate: 160, vocab: 320, tied: true}}
end_token: <|im_end|>
tgi: true
"""
SCENARIO = f"""\
model: tiny
data:
  path: data/tiny/rows.csv
  columns: {{instruction: question, output: answer}}
  eval_share: 0
train:
  cutoff_len: 64
  lora_rank: 4
  per_device_train_batch_size: 2
  max_steps: {STEPS}
  save_strategy: epoch  # from a checkpoint inside an epoch transformers goes on with the rows in another order
  learning_rate: 1.0e-3
serve:
  max_input_tokens: 100
  max_total_tokens: 200
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    """Return a copy with real stage bodies, a tiny model and a scenario for it; its processes end with the tests."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_models.base(folder / "model", tied=True)
    tiny_chat.tokenizer(folder / "model")
    repo = tiny(folder / "repo", folder / "model")
    yield repo
    for pid in processes(repo):
        os.kill(pid, signal.SIGKILL)


def tiny(root: Path, model: Path) -> Repo:
    """Copy the repository and add the tiny model and its scenario."""
    core = str(max(os.sched_getaffinity(0)))  # one core, one thread: sums over two threads round differently
    repo = scratch.copy(root, real=True, prefix=("taskset", "--cpu-list", core))
    count = 320 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64) + 64
    (root / "configs/models/tiny.yaml").write_text(MODEL.format(folder=model, parameters=count))
    (root / "configs/scenarios/tiny.yaml").write_text(SCENARIO)
    (root / "configs/profiles/tiny.yaml").write_text("gpu: false\n")
    (root / "data/tiny").mkdir()
    rows = [f"What is {a} and {b}?,It is {a + b}." for a in range(6) for b in range(8)]
    (root / "data/tiny/rows.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    return repo


def train(repo: Repo, learning_rate: float = 1e-3) -> scratch.Made:
    """Make the adapter."""
    return repo.make("train", SCENARIO="tiny", PROFILE="tiny", SET=f"train.learning_rate={learning_rate}")


def start(repo: Repo, learning_rate: float = 1e-3) -> subprocess.Popen[str]:
    """Start a training and return once it has written its first checkpoint."""
    process = repo.start("train", SCENARIO="tiny", PROFILE="tiny", SET=f"train.learning_rate={learning_rate}")
    for _ in range(6000):
        if list(work(repo).glob("checkpoints/checkpoint-*/trainer_state.json")) or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    return process


def work(repo: Repo) -> Path:
    """Return the folder that an adapter is made in."""
    return repo.build / "tiny" / "tiny" / ".adapter.work"


def adapter(repo: Repo) -> Path:
    """Return the folder of the finished adapter."""
    return repo.build / "tiny" / "tiny" / "adapter"


def processes(repo: Repo) -> list[int]:
    """Return the processes that work in the repository."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == repo.root and (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def assert_no_process_is_left(repo: Repo) -> None:
    """Within five seconds nothing that make started is alive."""
    for _ in range(50):
        if not processes(repo):
            return
        time.sleep(0.1)
    pytest.fail(f"still alive: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in processes(repo)]}")


@pytest.fixture(scope="module")
def resumed(repo: Repo) -> scratch.Made:
    """Kill a training after its first checkpoint, and make it again."""
    process = start(repo)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_no_process_is_left(repo)
    assert not adapter(repo).exists()
    return train(repo)


def test_a_killed_training_resumes_and_finishes(repo: Repo, resumed: scratch.Made) -> None:
    """After kill -9 the next make says from which checkpoint it resumes; loss and kept YAML are as of one run."""
    assert resumed.code == 0, resumed.err
    assert re.search(r"^train   resumes from checkpoint-\d+$", resumed.out, re.M)
    losses = [json.loads(line) for line in (adapter(repo) / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses if "loss" in row] == [*range(1, STEPS + 1)]
    assert (adapter(repo) / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert not work(repo).exists()
    kept = (adapter(repo) / "run.yaml").read_text()
    assert "max_steps" in kept and "resume_from_checkpoint" not in kept  # it runs by hand, and the checkpoint is gone


def test_a_resumed_adapter_is_the_undisturbed_one(repo: Repo, resumed: scratch.Made, tmp_path: Path) -> None:
    """Killed, and resumed from the end of an epoch, each file, the loss curve too, is that of one trained in one go."""
    other = tiny(tmp_path / "other", repo.root.parent / "model")
    assert resumed.code == 0
    made = train(other)
    assert made.code == 0, made.err
    assert "resumes" not in made.out
    manifests = [(folder / "manifest.json").read_bytes() for folder in (adapter(other), adapter(repo))]
    assert manifests[0] == manifests[1]


def test_ctrl_c_ends_training_and_another_learning_rate_starts_afresh(repo: Repo, resumed: scratch.Made) -> None:
    """Ctrl-C leaves no process; a changed key then starts from step 0, and a NaN loss ends with code 7 and a remedy."""
    before = content(adapter(repo))
    process = start(repo, learning_rate=2e-3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "interrupted" in err
    assert_no_process_is_left(repo)
    assert list(work(repo).glob("checkpoints/checkpoint-*"))
    absurd = train(repo, learning_rate=1e20)
    assert absurd.code == 7, absurd.err
    assert "resumes" not in absurd.out
    assert re.search(r"^error: the loss is nan at step \d+; lower train.learning_rate", absurd.err, re.M)
    assert "Traceback" not in absurd.err
    assert_no_process_is_left(repo)
    assert content(adapter(repo)) == before, "the result of the earlier training stays"
