"""`make reproduce` builds everything again beside what is there, and says where and why the two part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scratch import Repo


def test_equal_work_gives_equal_bytes(made: Repo) -> None:
    """Every stage runs again, elsewhere; every digest is the same, the exit code is 0, and nothing is left behind."""
    before = made.contents()
    done = made.make("reproduce")
    assert done.code == 0, done.err
    assert done.ran == ["model", "data", "train", "merge"]
    assert [line.split()[0] for line in done.out.splitlines() if line.endswith("files, the same bytes")] == [
        "model", "data", "train", "merge",
    ]  # fmt: skip
    assert made.contents() == before
    assert not (made.build / "reproduce").exists()


def test_the_first_stage_that_differs_is_named_with_the_key(made: Repo, tmp_path: Path) -> None:
    """Against a manifest from elsewhere a changed setting shows as its key, old and new, and both stay."""
    kept = shutil.copytree(made.here, tmp_path / "elsewhere")
    done = made.make("reproduce", MANIFEST=str(kept), SET="train.learning_rate=7.0e-4")
    assert done.code == 15, done.out + done.err
    assert "data    " in done.out and "the same bytes" in done.out
    assert "train   adapter_model.safetensors: " in done.out
    assert "train is the first stage that differs: train.learning_rate: " in done.err
    assert "-> 0.0007" in done.err
    assert (made.build / "reproduce" / "customer-service" / "cpu" / "adapter").is_dir()


@pytest.mark.parametrize(("stage", "folder"), [("data", "data"), ("merge", "merged")])
def test_one_manifest_is_enough(made: Repo, stage: str, folder: str) -> None:
    """The manifest.json of one result is compared, and only what it needs is built."""
    manifest = made.here / folder / "manifest.json"
    done = made.make("reproduce", MANIFEST=str(manifest))
    assert done.code == 0, done.err
    assert done.ran[-1] == stage
    assert done.out.count("the same bytes") == 1


def test_changed_rows_are_the_reason(made: Repo, tmp_path: Path) -> None:
    """Other bytes of data are named by file and digest, at the data stage."""
    kept = shutil.copytree(made.here, tmp_path / "elsewhere")
    made.rows.write_text(made.rows.read_text(encoding="utf-8") + "x1,What is new?,A new row.,contact,en,new row\n")
    done = made.make("reproduce", MANIFEST=str(kept))
    assert done.code == 15
    assert "data is the first stage that differs: rows.csv changed (" in done.err


def test_other_bytes_from_equal_work_are_put_down_to_the_machine(made: Repo, tmp_path: Path) -> None:
    """Where all that is recorded is equal, the error says so rather than inventing a reason; versions count as one."""
    kept = shutil.copytree(made.here, tmp_path / "elsewhere")
    for change, said in (({}, "so it is the hardware"), ({"torch": "2.0"}, "torch: 2.0 -> ")):
        path = kept / "adapter" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["outputs"]["adapter_model.safetensors"]["sha256"] = "0" * 64
        manifest["tools"] |= change
        path.write_text(json.dumps(manifest))
        done = made.make("reproduce", MANIFEST=str(path))
        assert done.code == 15
        assert "adapter_model.safetensors: 000000000000, now " in done.out
        assert said in done.err


def test_what_is_no_manifest_is_named(made: Repo, tmp_path: Path) -> None:
    """A folder without results, and a file that is something else, are errors before anything is built."""
    (tmp_path / "x.json").write_text("[]")
    for path, said in ((tmp_path, "no manifest of model, data, train, merge is there"), (tmp_path / "x.json", "is no")):
        done = made.make("reproduce", MANIFEST=str(path))
        assert (done.code, done.ran) == (6, [])
        assert said in done.err


def test_verify_notices_a_link_that_is_not_the_one_used(made: Repo) -> None:
    """A result made from other data than lies there now is named, though every file is as its own manifest says."""
    assert made.make("verify").code == 0
    made.rows.write_text(made.rows.read_text(encoding="utf-8") + "x1,What is new?,A new row.,contact,en,new row\n")
    assert made.make("data").code == 0
    done = made.make("verify")
    assert done.code == 6
    assert "train   it was made from another build/customer-service/cpu/data/train.jsonl (" in done.out
