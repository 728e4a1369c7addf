"""The background server: one per state folder, proven before it is called ready, and never left behind."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
from serving import environment, free_port

from temper.errors import GateError, ResultError, ServeError
from temper.serve import control, ports

SECRET = "Key-of-the-test"


@dataclass
class Place:
    """One server's state folder and settings."""

    folder: Path
    state: Path
    golden: Path
    port: int
    argv: list[str]

    def start(self, key: str = "one", **other: Any) -> str:
        """Start in this process."""
        given = {"golden_file": self.golden, "port": self.port, **other}
        return control.start(self.folder, self.state, self.argv, key, **given)

    def spawn(self) -> subprocess.Popen[str]:
        """Start in a process of its own, as make does."""
        program = (
            "import sys; from pathlib import Path; from temper import errors; from temper.serve import control; "
            "errors.main(lambda: print(control.start(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[5:], 'one', "
            "Path(sys.argv[3]), port=int(sys.argv[4]))))"
        )
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                program,
                str(self.folder),
                str(self.state),
                str(self.golden),
                str(self.port),
                *self.argv,
            ],
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture(scope="session")
def recorded(folder: Path) -> dict[str, Any]:
    """Return the golden prompts of the model."""
    return serve_model.golden(folder)


@pytest.fixture
def place(folder: Path, recorded: dict[str, Any], tmp_path: Path) -> Iterator[Place]:
    """Return a place with nothing running, and leave it so."""
    made = _place(folder, recorded, tmp_path)
    yield made
    control.stop(made.state)


@pytest.fixture(scope="module")
def kept(folder: Path, recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return a place whose server several tests use; `start()` brings it up where it is not."""
    made = _place(folder, recorded, tmp_path_factory.mktemp("kept"))
    yield made
    control.stop(made.state)


def _place(folder: Path, recorded: dict[str, Any], at: Path) -> Place:
    (at / "golden.json").write_text(json.dumps(recorded))
    (at / "key").write_text(f"{SECRET}\n")
    return Place(
        folder,
        at / "state",
        at / "golden.json",
        free_port(),
        ["--api-key-file", str(at / "key"), "--max-total-tokens", "2000"],
    )


def gone(pid: int) -> bool:
    """Return whether a process has ended and left nothing, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def test_two_starts_at_once_make_one_server_and_a_reused_pid_is_left_alone(kept: Place) -> None:
    """Both callers get the same proven server; a stale record that names another program's process harms it not."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        kept.state.mkdir()
        stale = {
            "pid": other.pid,
            "started": "another boot 1",
            "key": "one",
            "url": "http://127.0.0.1:9",
            "port": 9,
            "ready": True,
            "folder": "x",
            "since": "x",
        }
        (kept.state / "server.json").write_text(json.dumps(stale))
        starts = [kept.spawn(), kept.spawn()]
        said = [start.communicate(timeout=60) for start in starts]
        assert [start.returncode for start in starts] == [0, 0], said
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert {out.strip() for out, _ in said} == {f"http://127.0.0.1:{kept.port}"}
    assert sorted("already running" in err for _, err in said) == [False, True]
    assert any("3 golden prompts agree" in err for _, err in said)
    assert not any(control.log_path(kept.state).with_suffix(f".log.{n}").exists() for n in (1, 2))
    found = control.status(kept.state)
    assert found["running"] and found["ready"] and found["healthy"]
    assert ports.holder(kept.port) == found["pid"]


def test_the_key_is_asked_for_and_the_golden_replay_sends_it(kept: Place) -> None:
    """Without the key 401 and an empty body; health and info stay open; case does not matter, as in TGI."""
    url = kept.start()
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": SECRET}):
        response = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, trust_env=False)
        assert (response.status_code, response.content) == (401, b"")
    for given in (f"Bearer {SECRET}", f"bearer {SECRET.upper()}"):
        answered = httpx.post(
            url + "/v1/chat/completions", json=body, headers={"authorization": given}, trust_env=False
        )
        assert answered.status_code == 200
    assert httpx.get(url + "/info", trust_env=False).status_code == 200
    assert SECRET not in control.log_path(kept.state).read_text()


def test_starting_again_keeps_a_server_with_the_same_key(kept: Place) -> None:
    """An equal key leaves the process alone."""
    kept.start()
    first = control.status(kept.state)["pid"]
    kept.start()
    assert control.status(kept.state)["pid"] == first


def test_a_taken_port_names_its_holder_and_the_remedy(kept: Place, place: Place) -> None:
    """Nothing is started where another program listens, and that program is named."""
    kept.start()
    holder = control.status(kept.state)["pid"]
    with pytest.raises(ServeError, match=rf"port {kept.port} is in use by process {holder} \(python.*PORT=8001"):
        place.start(port=kept.port)
    assert not control.status(place.state)["running"] and not control.log_path(place.state).exists()
    alone = subprocess.run(
        [sys.executable, "-m", "temper.serve", "--model-id", str(kept.folder), "--port", str(kept.port)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert alone.returncode == 9 and alone.stderr.startswith("error: port") and alone.stderr.count("\n") == 1


def test_after_kill_9_the_next_start_works(kept: Place) -> None:
    """A killed server is noticed by status, and starting brings up another."""
    kept.start()
    first = control.status(kept.state)["pid"]
    os.kill(first, signal.SIGKILL)
    until = time.monotonic() + 5
    while control.status(kept.state)["running"] and time.monotonic() < until:
        time.sleep(0.02)
    assert not control.status(kept.state)["running"]
    kept.start()
    assert control.status(kept.state)["pid"] != first and control.status(kept.state)["healthy"]


def test_another_key_replaces_the_server_and_other_answers_than_recorded_leave_none(
    kept: Place, recorded: dict[str, Any]
) -> None:
    """The old server finishes what it is answering; one altered golden answer is enough to stop the new one."""
    url = kept.start()
    first = control.status(kept.state)["pid"]
    altered = copy.deepcopy(recorded)
    altered["prompts"][1]["text"] = altered["prompts"][1]["text"].replace("很小", "很大")
    other = kept.golden.with_name("altered.json")
    other.write_text(json.dumps(altered))
    body = {"inputs": "tick tock", "parameters": {"max_new_tokens": 400}}
    with (
        httpx.stream(
            "POST",
            url + "/generate_stream",
            json=body,
            headers={"authorization": f"Bearer {SECRET}"},
            timeout=30,
            trust_env=False,
        ) as answer,
        ThreadPoolExecutor(1) as beside,
    ):
        parts = answer.iter_lines()
        next(parts)
        starting = beside.submit(kept.start, "two", golden_file=other)
        assert '"index":400,' in list(parts)[-2]
        with pytest.raises(
            GateError, match=r'golden prompt 2 \("你是谁？"\): expected "我是一个很大.*got "我是一个很小'
        ):
            starting.result(timeout=60)
    assert gone(first)
    assert not control.status(kept.state)["running"] and ports.holder(kept.port) is None
    assert "ready:" in control.log_path(kept.state).read_text()  # a new server had come up, and is no more
    assert control.stop(kept.state) is False


def test_a_hanging_server_is_killed_and_an_interrupted_start_leaves_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the model loads stops the server too; one that ignores SIGTERM is killed."""
    monkeypatch.setattr(control, "STOP_S", 0.5)
    for number in (signal.SIGINT, signal.SIGKILL):
        starting = place.spawn()
        until = time.monotonic() + 20
        while not control.status(place.state)["running"] and time.monotonic() < until:
            time.sleep(0.05)
        pid = control.status(place.state)["pid"]
        if number == signal.SIGKILL:  # the starter dies at once; what it started is recorded all the same
            os.kill(pid, signal.SIGSTOP)
        starting.send_signal(number)
        starting.communicate(timeout=30)
        if number == signal.SIGINT:
            assert starting.returncode == 130 and gone(pid)
    assert control.status(place.state)["running"] and not control.status(place.state)["ready"]
    assert control.stop(place.state) is True
    until = time.monotonic() + 5  # its parent is dead: the kernel's first process takes it away
    while not gone(pid) and Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < until
    assert not control.status(place.state)["running"]


def test_a_server_that_cannot_start_says_why(place: Place, tmp_path: Path) -> None:
    """The error carries the server's own last words and where the whole log is."""
    place.folder = tmp_path
    with pytest.raises(ServeError, match=r"the server ended: .* holds no model \(no config.json\).*server\.log"):
        place.start()
    assert not control.status(place.state)["running"]
    place.golden.write_text("{}")
    with pytest.raises(ResultError, match=r"golden\.json cannot be read"):
        place.start()


def test_an_address_that_is_not_ours_is_refused(place: Place) -> None:
    """A host that is no address of this machine is an error with a remedy."""
    with pytest.raises(ServeError, match=r"127\.0\.0\.1"):
        place.start(host="no.such.host.invalid")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServeError, match=f"in use by process {os.getpid()}"):
            ports.bind("127.0.0.1", other.getsockname()[1]).close()
