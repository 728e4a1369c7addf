"""The command-line front door and the client it writes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import serve_model
from serving import LIMIT, SCRIPTS, Running, busy, environment, free_port

DOOR = SCRIPTS / "llamafactory" / "inference_server.py"


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60
    )


def test_the_written_client_asks_and_streams(server: Running, tmp_path: Path) -> None:
    """client.py needs nothing beside Python, knows the port it was made for, and prints the answer."""
    port = server.url.rsplit(":", 1)[1]
    made = run(str(DOOR), "--create_client", "--port", port, "--host", "0.0.0.0", cwd=tmp_path)
    assert made.returncode == 0 and "python client.py" in made.stdout
    plain = run("-S", "-E", "client.py", "Who are you?", cwd=tmp_path)
    streamed = run("-S", "-E", "client.py", "你是谁？", "--stream", cwd=tmp_path)
    assert (plain.stdout, streamed.stdout) == (
        serve_model.ANSWERS["Who are you?"] + "\n",
        serve_model.ANSWERS["你是谁？"] + "\n",
    )
    assert run("client.py", "x", "--url", server.url, "--max_tokens", "0", cwd=tmp_path).stderr.startswith(
        f"error: {server.url} answered 422"
    )


def test_the_client_tries_again_while_the_server_is_busy(server: Running, tmp_path: Path) -> None:
    """429 is waited out, not reported."""
    run(str(DOOR), "--create_client", "--port", server.url.rsplit(":", 1)[1], cwd=tmp_path)
    with busy(server, LIMIT):
        asking = subprocess.Popen(
            [sys.executable, "client.py", "Who are you?"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        refused = server.log.read_text().count('"status": 429')
        until = time.monotonic() + 10
        while server.log.read_text().count('"status": 429') == refused and time.monotonic() < until:
            time.sleep(0.05)
        assert server.log.read_text().count('"status": 429') > refused
    assert asking.communicate(timeout=30) == (serve_model.ANSWERS["Who are you?"] + "\n", "")


def test_an_existing_client_is_kept(tmp_path: Path) -> None:
    """A client.py that is there is replaced only with --force."""
    (tmp_path / "client.py").write_text("mine")
    refused = run(str(DOOR), "--create_client", cwd=tmp_path)
    assert refused.returncode == 2 and "--force" in refused.stderr and refused.stderr.count("\n") == 1
    assert (tmp_path / "client.py").read_text() == "mine"
    assert run(str(DOOR), "--create_client", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "client.py").read_text() != "mine"


def test_help_and_mistakes_are_answered_without_loading_anything(tmp_path: Path) -> None:
    """--help has the examples; a missing folder and a wrong option are one line with a remedy."""
    text = run(str(DOOR), "--help", cwd=tmp_path)
    assert text.returncode == 0 and "curl http://localhost:8000/health" in text.stdout
    assert run(str(DOOR), cwd=tmp_path).returncode == 2
    missing = run(str(DOOR), "--model_path", "nothing", "--port", str(free_port()), cwd=tmp_path)
    assert missing.returncode == 9 and "error: --model-id 'nothing': there is no folder" in missing.stderr
    assert "Traceback" not in missing.stderr
