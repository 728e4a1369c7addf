"""LLaMA Board opens on loopback with the scenario's settings filled in; a real Chromium reads them."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.serve import serve_browser
from tests.serve.serving import environment, free_port

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "model_name_or_path": "build/models/none",
    "template": "smollm2",
    "dataset": "train",
    "finetuning_type": "lora",
    "learning_rate": 0.00234,
    "num_train_epochs": 17,
    "cutoff_len": 777,
    "lora_rank": 48,
    "lora_target": "3.mlp.up_proj, 4.mlp.up_proj",
    "warmup_ratio": 0.0625,
    "output_dir": "out",
    "do_train": True,
}

pytestmark = pytest.mark.slow


@pytest.fixture
def board(tmp_path: Path) -> Iterator[str]:
    """Run the board until the test ends and return its URL."""
    (tmp_path / "dataset_info.json").write_text('{"train": {"file_name": "train.jsonl"}}')
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**SETTINGS, "dataset_dir": str(tmp_path)}))
    port = free_port()
    argv = [sys.executable, "scripts/llamafactory/web_ui.py", "--config", str(tmp_path / "settings.yaml")]
    argv += ["--name", "a-base-model", "--port", str(port), "--folder", str(tmp_path / "webui")]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    until, url = time.monotonic() + 90, f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_the_board_holds_the_settings(board: str, tmp_path: Path) -> None:
    """Fields have the YAML's values, what has no field stands in the extra arguments; its files stay together."""
    with serve_browser.browser(tmp_path) as page:
        page.open(f"{board}/")
        fields = "[...document.querySelectorAll('input,textarea')].map(field => field.value)"
        page.until(f"{fields}.includes('0.00234')", 60)
        held = page.run(fields)
    assert {"0.00234", "17", "777", "48", SETTINGS["lora_target"], "a-base-model", "smollm2"} <= set(held)
    assert str(ROOT / "build/models/none") in held
    assert any('"warmup_ratio": 0.0625' in value for value in held)
    assert (tmp_path / "webui" / "llamaboard_cache").is_dir()
