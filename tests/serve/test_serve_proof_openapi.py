"""The API's document, tried by schemathesis: requests made from it, right and wrong, their answers held against it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import Running

KEY = "Key-of-the-document"


@pytest.mark.slow
def test_the_document_says_what_the_server_does(own: Callable[..., Running], tmp_path: Path) -> None:
    """No answer to thousands of requests is one the document does not name, and none comes without the key."""
    server = own("--max-total-tokens", "128", TEMPER_API_KEY=KEY)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api-doc/openapi.json"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--seed", "1", "--max-examples", "10", "--no-color"]
    # A prompt's limit is in tokens, which no schema can tell: what the document allows may still be too long.
    command += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, passed = map(int, re.findall(r"(\d+) generated, (\d+) passed", done.stdout)[0])
    assert tried == passed > 2000 and "15 selected / 15 total" in done.stdout
