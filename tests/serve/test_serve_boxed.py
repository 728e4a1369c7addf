"""A real container engine serves a merged model in temper-serve's image, through what `make serve` calls.

TGI is started by the same functions. Docker must run and answer here: without it these tests fail.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_model
from serving import environment, free_port

from temper import digests, pipeline
from temper.config import resolve
from temper.errors import ServeError
from temper.serve import control, session

pytestmark = pytest.mark.containers
ROOT = Path(__file__).resolve().parents[2]
NAMED = ("customer-service", "cpu")
SECRET = "Key-of-the-test"
QUESTION = "Who are you?"


def docker(*words: str) -> str:
    """Run docker and return what it prints; it must succeed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image() -> str:
    """Bring the CPU server's image into Docker, as `make image IMAGE=temper-serve RUNTIME=docker` does; name it."""
    host = ROOT / ".venv-host/bin/python"
    python = str(host if host.exists() else sys.executable)
    words = [python, "-m", "temper.images", "make", "--runtime", "docker", "temper-serve"]
    env = environment() | {"PYTHONPATH": str(ROOT / "scripts"), "TEMPER_BUILD": "build"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rpartition(" as ")[2].strip()


@pytest.fixture
def settings(image: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Return a configuration whose merged model is the tiny one, to be served by Docker; nothing is left of it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pipeline, "BUILD", tmp_path)
    monkeypatch.setenv("TEMPER_NETWORK", "host")  # CI's Docker has no bridge
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "key").write_text(f"{SECRET}\n")
    merged = tmp_path / "customer-service/cpu/merged"
    merged.mkdir(parents=True)
    for path in folder.iterdir():
        (merged / path.name).write_bytes(path.read_bytes())
    (merged / "golden.json").write_text(json.dumps(serve_model.golden(folder)))
    seal(merged)
    given = {"port": free_port(), "max_input_tokens": 1000, "max_total_tokens": 2000, "api_key_file": tmp_path / "key"}
    overrides = " ".join(["data.system=null", *(f"serve.{key}={value}" for key, value in given.items())])
    yield resolve.resolve(*NAMED, "", overrides) | {"runtime": "docker"}
    name = session.stop(*NAMED)
    assert not docker("ps", "--all", "--quiet", "--filter", f"volume={merged}"), name


def seal(merged: Path) -> None:
    """Write what the merge stage writes last."""
    files = [path for path in merged.iterdir() if path.name != "manifest.json"]
    outputs = {path.name: digests.describe(path) for path in files}
    (merged / "manifest.json").write_text(json.dumps({"outputs": outputs}))


def recorded() -> dict[str, Any]:
    """Return what is recorded of the server."""
    return dict(json.loads((pipeline.state(*NAMED) / "server.json").read_text()))


def test_served_asked_and_stopped(settings: dict[str, Any], image: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It is ready once the golden prompts agree, answers with the key alone, is kept, says what it is, and goes."""
    said: list[str] = []
    url = session.start(settings, said.append)
    assert "3 golden prompts agree" in capfd.readouterr().err and url in said[-1]
    assert session.ask(settings, session.url(settings), QUESTION) == serve_model.ANSWERS[QUESTION]
    assert httpx.post(f"{url}/generate", json={"inputs": "x"}, trust_env=False).status_code == 401
    first = recorded()["container"]
    assert session.start(settings, said.append) == url and recorded()["container"] == first
    assert "already running" in capfd.readouterr().err
    assert "is up to date" in session.plan_lines(settings)[0]
    digest = docker("image", "inspect", "--format", "{{.Id}}", image)
    assert "docker container temper-serve-customer-service-cpu-" in session.status_line(*NAMED)
    assert digest in session.status_line(*NAMED) and session.status_line(*NAMED).startswith(f"ready at {url}")
    log = control.log_path(pipeline.state(*NAMED))
    assert "ready: http://127.0.0.1" in log.read_text() and stat.S_IMODE(log.stat().st_mode) == 0o600
    shown = docker("inspect", "--format", "{{json .Args}} {{json .Path}}", first)
    assert not any(SECRET in text for text in (log.read_text(), json.dumps(recorded()), shown))
    assert session.stop(*NAMED).endswith("stopped") and session.status_line(*NAMED) == "not running"
    assert session.stop(*NAMED).endswith("no server was running")
    assert not docker("ps", "--all", "--quiet", "--filter", f"id={first}")


def test_it_can_do_nothing_but_answer(settings: dict[str, Any]) -> None:
    """The container has no capability, a root and a model it cannot write to, and this user's number."""
    session.start(settings, lambda _: None)
    inside = recorded()["container"]
    held = json.loads(docker("inspect", "--format", "{{json .HostConfig}}", inside))
    assert held["ReadonlyRootfs"] and held["CapDrop"] == ["ALL"] and held["RestartPolicy"]["Name"] in ("no", "")
    status = docker("exec", inside, "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status and f"Uid:\t{os.getuid()}\t" in status
    for place in ("/model/x", "/usr/x"):
        assert subprocess.run(["docker", "exec", inside, "touch", place], capture_output=True).returncode != 0


def test_another_setting_restarts_and_a_killed_container_is_replaced(settings: dict[str, Any]) -> None:
    """The plan says so beforehand; what another killed is not taken for running."""
    session.start(settings, lambda _: None)
    first = recorded()["container"]
    settings["serve"]["max_concurrent_requests"] = 3
    assert "would restart: docker container" in session.plan_lines(settings)[0]
    url = session.start(settings, lambda _: None)
    assert httpx.get(f"{url}/info", trust_env=False).json()["max_concurrent_requests"] == 3
    second = recorded()["container"]
    docker("kill", second)
    assert session.status_line(*NAMED) == "not running"
    session.start(settings, lambda _: None)
    assert len({first, second, recorded()["container"]}) == 3
    (pipeline.state(*NAMED) / "server.json").unlink()  # as if killed between making and recording it
    docker("stop", "-t", "15", recorded_by_name := docker("ps", "--quiet", "--filter", f"name=-cpu-{_place()}"))
    session.start(settings, lambda _: None)
    assert recorded_by_name not in docker("ps", "--all", "--quiet", "--no-trunc")


def _place() -> str:
    return digests.of_value(str(pipeline.state(*NAMED).absolute()))[:8]


def test_one_that_cannot_serve_says_why_and_is_removed(settings: dict[str, Any]) -> None:
    """The error carries the server's own last words; no container is left (the fixture looks)."""
    merged = session.merged(settings)
    (merged / "model.safetensors").write_bytes(b"no weights")
    seal(merged)
    with pytest.raises(ServeError, match=r"the server ended: /model does not load: .*server\.log"):
        session.start(settings, lambda _: None)
    assert session.status_line(*NAMED) == "not running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_make_serve_leaves_nothing_that_stop_does_not_find(
    settings: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C takes the loading container along; after kill -9 it is recorded, and stopped as any other."""
    (tmp_path / "settings.json").write_text(json.dumps(settings, default=str))
    program = (
        "import json, sys; from temper import errors; from temper.serve import session; "
        "errors.main(lambda: print(session.start(json.load(open(sys.argv[1])), print)))"
    )
    env = environment() | {"TEMPER_BUILD": str(tmp_path), "TEMPER_NETWORK": "host"}
    words = [sys.executable, "-c", program, str(tmp_path / "settings.json")]
    starting = subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not control.status(pipeline.state(*NAMED))["running"] and time.monotonic() < until:
        time.sleep(0.05)
    assert control.status(pipeline.state(*NAMED))["running"]
    starting.send_signal(number)
    _, said = starting.communicate(timeout=40)
    if number == signal.SIGINT:
        assert starting.returncode == 130 and session.status_line(*NAMED) == "not running", said
    else:
        assert session.status_line(*NAMED).startswith("not ready") and session.stop(*NAMED).endswith("stopped")
