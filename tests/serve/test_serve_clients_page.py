"""docs/clients.md: each snippet runs as it stands there, with the real client, and says what the server says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import SCRIPTS, Running, environment

PAGE = (SCRIPTS.parent / "docs" / "clients.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def run(language: str, text: str, server: Running, cwd: Path) -> str:
    """Run a snippet with the test server's address and return what it prints."""
    for module in re.findall(r"^from (\w+) import", text, re.M):
        if not importlib.util.find_spec(module):
            pytest.skip(f"not installed: {module}")
    text = text.replace(ADDRESS, server.url).replace("python ", f"{sys.executable} ")
    text = text.replace("scripts/", f"{SCRIPTS}/").replace("--force", f"--force --port {server.url.rsplit(':', 1)[1]}")
    env = {name: value for name, value in environment().items() if name != "HF_HUB_OFFLINE"} | {"no_proxy": "*"}
    argv = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def statuses(server: Running) -> list[int]:
    """Return the status of each request that made tokens."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line["status"] for line in lines if "generated_tokens" in line]


@pytest.mark.parametrize(("language", "text"), SNIPPETS, ids=[f"{at}" for at in range(len(SNIPPETS))])
def test_a_snippet_runs(server: Running, tmp_path: Path, language: str, text: str) -> None:
    """It ends in order, and the server has answered each of its requests with 200."""
    before = len(statuses(server))
    assert run(language, text, server, tmp_path).strip()
    until = time.monotonic() + 5  # the log's line is written after the answer
    while len(statuses(server)) == before and time.monotonic() < until:
        time.sleep(0.02)
    assert set(statuses(server)[before:]) == {200}


def test_every_client_has_its_snippet() -> None:
    """The page shows the five ways it promises."""
    assert len(SNIPPETS) == 8
    for client in ("curl -sN", "huggingface_hub", "from openai", "langchain_openai", "--create_client"):
        assert any(client in text for _, text in SNIPPETS)


def test_offline_mode_refuses_even_loopback(server: Running, tmp_path: Path) -> None:
    """What the page says of HF_HUB_OFFLINE is so: the client asks nobody, and says why."""
    text = next(text for _, text in SNIPPETS if "chat_completion" in text).replace(ADDRESS, server.url)
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode and "OfflineModeIsEnabled" in done.stderr
