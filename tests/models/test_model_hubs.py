"""Fetching from hubs and folders, against a real server on loopback and through the hubs' own clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import closed_port, tiny
from loopback_hub import COMMIT, REPOSITORY, Hub

Run = Callable[..., tuple[int, str, str]]
TAKEN = {
    "LICENSE",
    "config.json",
    "model-a.safetensors",
    "model-b.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}


@pytest.fixture()
def hub(repository: Path) -> Iterator[Hub]:
    """Put the repository behind a server."""
    with Hub(repository) as server:
        yield server


@pytest.fixture(params=["huggingface", "modelscope"])
def place(request: pytest.FixtureRequest, hub: Hub) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a model file for each kind of hub, and the variable that points its client at the server."""
    variable = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[request.param]
    return tiny(**{request.param: REPOSITORY}, revision=COMMIT), {variable: hub.url}


def same(work: Path, repository: Path) -> bool:
    """Say whether the fetched files are the ones worth taking, with the repository's bytes."""
    names = {path.name for path in work.iterdir()}
    return names == TAKEN and all((work / name).read_bytes() == (repository / name).read_bytes() for name in names)


def test_hub_is_fetched(run: Run, place: Any, hub: Hub, repository: Path, tmp_path: Path) -> None:
    """Weights, configuration, tokenizer and licence come, and are recorded; pickle, code and sub-folders do not."""
    code, _, err = run(place[0], **place[1])
    assert code == 0, err
    assert same(tmp_path / "work", repository)
    lines = (tmp_path / "tiny.sha256").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines[1:]} == TAKEN
    assert not any("pytorch_model.bin" in path or ".py" in path for path in hub.asked)


def test_cut_connection_is_resumed(run: Run, place: Any, hub: Hub, repository: Path, tmp_path: Path) -> None:
    """A download that was cut off goes on where it stopped, at the latest when the fetch is run again."""
    hub.cut["model-b.safetensors"] = 11_000_000
    for _ in range(3):
        if run(place[0], **place[1])[0] == 0:
            break
    assert same(tmp_path / "work", repository)
    assert [start for name, start in hub.ranges if name == "model-b.safetensors" and start > 1_000_000]


def test_killed_fetch_is_resumed(start: Any, run: Run, place: Any, hub: Hub, repository: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle of a file, the next fetch asks for the rest only."""
    hub.stall["model-b.safetensors"] = 11_000_000
    process = start(place[0], **place[1])
    wait_for(lambda: {"model-a.safetensors"} < big_files(tmp_path / "cache"))
    process.kill()
    process.communicate()
    hub.stall.clear()
    assert not (tmp_path / "tiny.sha256").exists()
    assert run(place[0], **place[1])[0] == 0
    assert same(tmp_path / "work", repository)
    assert [first for name, first in hub.ranges if name == "model-b.safetensors" and first > 1_000_000]


def big_files(cache: Path) -> set[str]:
    """Name the files of more than 10 MB, finished or not; none while the folder changes under the reader."""
    try:
        return {path.name for path in cache.rglob("*") if path.stat().st_size > 10_000_000}
    except FileNotFoundError:
        return set()


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `true()`, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_repeated_fetch_needs_no_network(run: Run, place: Any, hub: Hub, tmp_path: Path) -> None:
    """What is recorded and in the cache is not asked for again."""
    assert run(place[0], **place[1])[0] == 0
    before = len(hub.asked)
    assert run(place[0], **{name: f"http://127.0.0.1:{closed_port()}" for name in place[1]})[0] == 0
    assert len(hub.asked) == before


def test_changed_file_is_refused(run: Run, place: Any, hub: Hub, repository: Path, tmp_path: Path) -> None:
    """A file whose bytes are not the recorded ones is named with both digests and the remedy."""
    assert run(place[0], **place[1])[0] == 0
    known = tmp_path / "tiny.sha256"
    text = known.read_text()
    line = next(line for line in text.splitlines() if line.endswith("config.json"))
    known.write_text(text.replace(line, ("1" if line[0] == "0" else "0") + line[1:]))
    code, _, err = run(place[0], **place[1])
    assert code == 5
    assert f"config.json has digest {line[:12]}, expected" in err
    assert "delete" in err


def test_absent_repository(run: Run, hub: Hub) -> None:
    """A repository the hub does not have is one line that says so, not a retry."""
    for variable, kind in (("HF_ENDPOINT", "huggingface"), ("MODELSCOPE_ENDPOINT", "modelscope")):
        code, _, err = run(tiny(**{kind: "maker/nothing"}), **{variable: hub.url})
        assert code == 5
        assert "maker/nothing" in err
        assert "no such repository" in err
        assert "model file" in err


def test_no_network(run: Run) -> None:
    """A hub that cannot be reached is told within seconds, with the ways around it."""
    dead = f"http://127.0.0.1:{closed_port()}"
    for variable, kind in (("HF_ENDPOINT", "huggingface"), ("MODELSCOPE_ENDPOINT", "modelscope")):
        started = time.monotonic()
        code, _, err = run(tiny(**{kind: REPOSITORY}), **{variable: dead})
        assert code == 5
        assert all(word in err for word in ("cannot be fetched", "HF_ENDPOINT", "modelscope", "path"))
        assert time.monotonic() - started < 30


def test_half_fetched_folder_is_no_model(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Without network, the part of a model that had arrived is not taken for the model."""
    given = tiny(huggingface=REPOSITORY, revision=COMMIT)
    hub.cut["model-b.safetensors"] = 1000
    run(given, HF_ENDPOINT=hub.url)
    for path in [tmp_path / "tiny.sha256", *(tmp_path / "cache").rglob("model-b.safetensors")]:
        path.unlink(missing_ok=True)
    code, _, err = run(given, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    assert (code, "cannot be fetched" in err) == (5, True)
    assert not (tmp_path / "tiny.sha256").exists()


def test_second_place(run: Run, hub: Hub, repository: Path, tmp_path: Path) -> None:
    """When the first place cannot be reached, the files come from `also`."""
    given = {**tiny(huggingface=REPOSITORY, revision=COMMIT), "also": {"modelscope": REPOSITORY}}
    dead = f"http://127.0.0.1:{closed_port()}"
    code, out, _ = run(given, HF_ENDPOINT=dead, MODELSCOPE_ENDPOINT=hub.url)
    assert (code, f"trying modelscope {REPOSITORY}" in out) == (0, True)
    assert same(tmp_path / "work", repository)


def test_pickle_is_refused(run: Run, place: Any, hub: Hub, repository: Path) -> None:
    """A repository whose weights are only pickled is refused before they are downloaded."""
    for path in repository.glob("*.safetensors*"):
        path.unlink()
    code, _, err = run(place[0], **place[1])
    assert code == 5
    assert "safetensors" in err
    assert not any("pytorch_model" in name for name, _ in hub.ranges)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(run: Run, place: Any, hub: Hub, repository: Path, tmp_path: Path, name: str) -> None:
    """A model that would run its own Python is refused before its weights are downloaded, unless that is allowed."""
    (repository / name).write_text('{"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}')
    code, _, err = run(place[0], **place[1])
    assert (code, "modeling_tiny.Tiny" in err, "trust_remote_code" in err) == (5, True, True)
    assert not any(file.endswith(".safetensors") for file, _ in hub.ranges)
    assert run({**place[0], "trust_remote_code": True}, **place[1])[0] == 0
    assert (tmp_path / "work" / "modeling_tiny.py").is_file()


def test_folder_is_copied(run: Run, repository: Path, tmp_path: Path) -> None:
    """A local folder's files are copied: writing to the copy leaves the original as it was."""
    assert run(tiny(path=str(repository)))[0] == 0
    assert same(tmp_path / "work", repository)
    before = (repository / "model-a.safetensors").read_bytes()
    (tmp_path / "work" / "model-a.safetensors").write_bytes(b"edited")
    assert (repository / "model-a.safetensors").read_bytes() == before


def test_folder_that_is_no_model(run: Run, repository: Path, tmp_path: Path) -> None:
    """A folder that is missing, pickled, incomplete or cut off is refused with what is wrong."""
    given = tiny(path=str(repository))
    assert "no such folder" in run(tiny(path=str(tmp_path / "absent")))[2]
    (repository / "model-b.safetensors").write_bytes((repository / "model-b.safetensors").read_bytes()[:-1])
    assert "its header says" in run(given)[2]
    (repository / "model-b.safetensors").unlink()
    assert "lacks model-b.safetensors" in run(given)[2]
    (repository / "config.json").unlink()
    assert "no config.json" in run(given)[2]
    for path in repository.glob("*.safetensors"):
        path.unlink()
    assert "only as pickle (pytorch_model.bin)" in run(given)[2]
