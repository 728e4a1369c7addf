"""`make plan`: what would run, why, and what it needs, without running it."""

from __future__ import annotations

import re

import pytest
from tests.graph import scratch
from tests.graph.scratch import Repo


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """Return a copy for these tests alone: they look at what is there."""
    made = scratch.copy(tmp_path_factory.mktemp("plan") / "repo", real=True)
    scratch.small_model(made)
    return made


def plan(repo: Repo, **settings: str) -> dict[str, str]:
    """Return what the plan says of each stage."""
    made = repo.make("plan", **settings)
    assert made.code == 0, made.err
    assert made.err == ""
    return dict(re.findall(r"^([a-z]+) +(.*)$", made.out, re.M))


def test_in_a_fresh_clone_every_stage_would_run(repo: Repo) -> None:
    """With nothing made, not even the model, the plan names all four stages, the reason, and what they need."""
    said = plan(repo)
    assert said["plan"] == "customer-service, profile cpu, model smollm2-135m, runtime local"
    for name in scratch.STAGES:
        assert said[name] == "would run: there is no result yet"
    out = repo.make("plan").out
    assert re.search(r"^needs   smollm2-135m: 134\.5 M parameters, \d+\.\d\d M trainable \(\d+\.\d%\)$", out, re.M)
    assert re.search(r"^        \d+ rows, about \d+ tokens in \d+ steps$", out, re.M)
    assert re.search(r"^        memory: \d+\.\d (MB|GB) to train \(free: .*\), \d+\.\d (MB|GB) to merge$", out, re.M)
    assert re.search(r"^        disk:   \d+\.\d (MB|GB) for weights \(free: ", out, re.M)
    assert re.search(r"^        time:   about \d+(\.\d)? (s|min|h) to train \(\d+ tokens/s, scaled from", out, re.M)


def test_planning_makes_nothing(repo: Repo) -> None:
    """After a plan there is no result, no model and no download, only the kept configuration."""
    plan(repo)
    made = {str(path.relative_to(repo.build)) for path in repo.build.rglob("*") if path.is_file()}
    assert made <= {"customer-service/cpu/.state/resolved.json", ".cache/digests.json"}


def test_a_stage_is_up_to_date_once_it_is_made(repo: Repo) -> None:
    """After `make data` the plan takes model and data off the list, and SET names a key with its old and new value."""
    name = "planned"
    (repo.root / "configs" / "scenarios" / f"{name}.yaml").write_text(repo.scenario.read_text(encoding="utf-8"))
    assert repo.make("data", SCENARIO=name).code == 0
    said = plan(repo, SCENARIO=name)
    assert said["model"] == said["data"] == "up to date"
    assert said["train"] == "would run: there is no result yet"
    assert plan(repo, SCENARIO=name, SET="data.eval_share=0.2")["data"] == "would run: eval_share: 0.1 -> 0.2"
    for other in ("train.lora_rank=4", "data.workers=2"):
        assert plan(repo, SCENARIO=name, SET=other)["data"] == "up to date"
    said = plan(repo, SCENARIO=name, MODEL="qwen2.5-0.5b")["data"]
    assert said == "would run: if model gives another result; tokens.model: smollm2-135m -> qwen2.5-0.5b"


def test_a_folder_of_rows_is_planned_for(repo: Repo) -> None:
    """Before anything is made the plan counts the rows of all files of a folder, those to evaluate on left out."""
    folder = repo.root / "planned rows"
    (folder / "more").mkdir(parents=True)
    for name, first in (("a.csv", 0), ("more/b.csv", 30), ("held.csv", 60)):
        rows = "".join(f"What is {n}?,It is {n}.\n" for n in range(first, first + 30))
        (folder / name).write_text(f"question,answer\n{rows}")
    (repo.root / "configs" / "scenarios" / "planned-folder.yaml").write_text(
        "# rows of a folder\nmodel: smollm2-135m\ndata: {path: planned rows, eval_path: planned rows/held.csv}\n"
    )
    out = repo.make("plan", SCENARIO="planned-folder").out
    assert re.search(r"^        60 rows, about \d+ tokens in \d+ steps$", out, re.M), out


def test_a_changed_file_is_named_with_its_digests(repo: Repo) -> None:
    """Another byte in the rows is a reason that names the file, the old and the new digest."""
    assert repo.make("data").code == 0
    repo.rows.write_text(repo.rows.read_text(encoding="utf-8") + "x-1,a new question,a new answer,t,en,new\n")
    said = plan(repo)["data"]
    assert re.fullmatch(r"would run: rows\.csv changed \([0-9a-f]{8} -> [0-9a-f]{8}\)", said)


def test_needs_follow_the_settings(repo: Repo) -> None:
    """Rank, epochs, model and profile change what the plan says is needed."""

    def figures(**settings: str) -> tuple[str, str]:
        out = repo.make("plan", **settings).out
        return re.findall(r"parameters, (\S+ M) trainable", out)[0], re.findall(r"in (\d+) steps", out)[0]

    rank, steps = figures(SET="train.lora_rank=8 train.num_train_epochs=2")
    assert figures(SET="train.lora_rank=16 train.num_train_epochs=4") == (
        f"{2 * float(rank.split()[0]):.2f} M",
        str(2 * int(steps)),
    )
    assert "qwen2.5-0.5b: 494.0 M parameters" in repo.make("plan", MODEL="qwen2.5-0.5b").out
    gpu = repo.make("plan", PROFILE="gpu-24g", SCENARIO="code-generation").out
    assert "qwen2.5-coder-7b-instruct: 7615.6 M parameters" in gpu
    assert "unknown to train (no run of this model on this machine has been measured yet)" in gpu


def test_bad_rows_are_found_by_the_plan(repo: Repo) -> None:
    """A plan over a file that cannot be read ends as making it would, with code 4."""
    (repo.root / "empty.csv").write_text("question,answer\n")
    made = repo.make("plan", SCENARIO="financial-qa", SET="data.path=empty.csv")
    assert made.code == 4
    assert made.err.startswith("error: empty.csv: no row is left to train on (0 read); ")
