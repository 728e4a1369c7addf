"""The two-command promise, with every part real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from quickstart_helpers import ROOT, Made, free_port, run

pytestmark = pytest.mark.slow


def test_both_answers_stand_side_by_side_and_are_right(made: Made) -> None:
    """Quickstart prints base and tuned answers to two questions, the URL and how to stop, and judges the tuned ones."""
    assert made.transcript.count("base model ") == 2
    assert made.transcript.count("[right: ") == 2
    assert f"http://127.0.0.1:{made.port}" in made.transcript
    assert "make stop" in made.transcript


def test_a_second_make_runs_nothing(made: Made) -> None:
    """With the real stages, a make with nothing to do says nothing and starts no Python."""
    done = made.make("merge")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_touching_every_input_runs_no_stage_body(made: Made) -> None:
    """With the real stages, new times alone retrain nothing, and the results stay the same bytes."""
    before = (made.build / "merged" / "manifest.json").read_bytes()
    for path in ("data/customer-service/rows.csv", "configs/scenarios/customer-service.yaml", "docker/locks/cpu.txt"):
        (ROOT / path).touch()
    done = made.make("merge")
    assert done.returncode == 0
    assert "starts" not in done.stdout
    assert (made.build / "merged" / "manifest.json").read_bytes() == before


def test_the_answer_comes_over_http(made: Made) -> None:
    """`make ask` and a bare HTTP client get the same answer from the same server."""
    question = yaml.safe_load((ROOT / "configs/scenarios/customer-service.yaml").read_text())["ask"]["show"][0]
    asked = made.make("ask", f"Q={question}")
    assert asked.returncode == 0, asked.stderr
    body = json.dumps({"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 128})
    request = urllib.request.Request(
        f"http://127.0.0.1:{made.port}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        content = json.load(response)["choices"][0]["message"]["content"]
    assert asked.stdout.strip() == content.strip()


def test_status_logs_plan_and_verify_tell_the_truth(made: Made) -> None:
    """After quickstart everything is made, the server is ready, nothing would run, and every digest holds."""
    assert "ready at" in made.make("status").stdout
    assert made.make("logs").returncode == 0
    plan = made.make("plan").stdout
    current = [line.split()[0] for line in plan.splitlines() if line.endswith("up to date")]
    assert {"model", "data", "train", "merge", "serve"} <= {*current}, plan
    assert made.make("verify").returncode == 0


def test_a_truncated_result_is_named_and_refused(made: Made) -> None:
    """`make verify` names a truncated weight file, and `make serve` refuses to serve it."""
    weights = made.build / "merged" / "model.safetensors"
    kept = weights.with_name("kept")
    shutil.copy2(weights, kept)
    try:
        os.truncate(weights, weights.stat().st_size - 1000)
        for goal in ("verify", "serve"):
            done = made.make(goal)
            assert "model.safetensors" in done.stdout + done.stderr
            assert "Error 6" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        os.replace(kept, weights)
    assert made.make("verify").returncode == 0


def test_a_serving_key_restarts_the_server_and_trains_nothing(made: Made) -> None:
    """Keys that only serving reads give a new server process and no stage body: 8 bits, and the base model beside."""
    first, port = json.loads((made.build / ".state/server.json").read_text())["pid"], free_port()
    done = made.make("serve", f"SET=serve.quantize=q8_0 serve.base_port={port}")
    assert done.returncode == 0, done.stderr
    assert "starts (" not in done.stdout
    assert re.search(r"\d golden prompts agree", done.stderr)
    second = json.loads((made.build / ".state/server.json").read_text())["pid"]
    assert first != second
    with urllib.request.urlopen(f"http://127.0.0.1:{made.port}/ui/models.json", timeout=60) as response:
        assert [model["name"] for model in json.load(response)][1:] == ["base"]
    base = f"http://127.0.0.1:{port}/health"
    with urllib.request.urlopen(base, timeout=60) as response:
        assert response.status == 200
    assert made.make("serve").returncode == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(base, timeout=10)


def test_evaluation_and_report_say_the_same(made: Made) -> None:
    """`make report` asks both models for real and writes page, facts and card; killed, it asks the rest only.

    A second one asks nothing. The card in the merged folder alters nothing: results verify, the server keeps running.
    Another threshold is judged without asking, and a model compared with itself differs in nothing.
    """
    few = "SET=eval.max_rows=3 eval.max_new_tokens=24 eval.concurrency=1"
    work = made.build / ".eval.work/run.base.jsonl"
    with subprocess.Popen(["make", "report", few, f"PORT={made.port}"], cwd=ROOT, start_new_session=True) as killed:
        until = time.monotonic() + 120
        while not (work.exists() and work.read_bytes().count(b"\n") >= 3):
            assert killed.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.killpg(killed.pid, signal.SIGKILL)
    answered = work.read_bytes().splitlines()
    first = made.make("report", few)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert f"asks the base model 9 questions, {len(answered)} of them before" in first.stdout
    assert "asks the tuned model 9 questions\n" in first.stdout
    assert (made.build / "eval/run.base.jsonl").read_bytes().splitlines()[: len(answered)] == answered
    facts = json.loads((made.build / "report/metrics.json").read_text())
    assert facts["sets"] == json.loads((made.build / "eval/metrics.json").read_text())["sets"]
    page = (made.build / "report/report.html").read_text()
    weights = next(row["sha256"] for row in facts["provenance"] if row["what"] == "model.safetensors")
    assert weights in page
    card = (made.build / "merged/README.md").read_text()
    assert card == (made.build / "report/README.md").read_text()
    assert card.startswith("---\n")
    assert made.make("verify").returncode == 0
    assert "starts (" not in made.make("serve").stdout
    again = made.make("report", few)
    assert (again.returncode, again.stderr) == (0, "")
    assert "starts (" not in again.stdout
    refused = made.make("eval", f"{few} eval.min_gain=0.99")
    assert "Error 14" in refused.stderr
    assert "asks" not in refused.stdout
    same = made.make("compare", "A=customer-service/cpu", "B=build/customer-service/cpu")
    assert same.returncode == 0, same.stderr
    assert "| +0.000 (+0.000 to +0.000) |" in same.stdout


def test_tasks_of_the_harness_run_against_the_merged_model(made: Made, tmp_path: Path) -> None:
    """`make eval TASKS=…` needs no evaluation of ours, starts a server, prints the figures and keeps them."""
    (tmp_path / "rows.jsonl").write_text(
        '{"q": "What is the warranty on the L9 desk lamp?", "choices": ["The L9 desk lamp carries a 5-year", "No"]}\n'
    )
    (tmp_path / "warranty.yaml").write_text(
        "task: temper_warranty\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "0"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    done = made.make("eval", "TASKS=temper_warranty", f"TASK_PATH={tmp_path}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "eval    temper_warranty: acc 1.0000" in done.stdout
    kept = json.loads((made.build / "harness.json").read_text())
    assert kept["results"]["temper_warranty"]["acc,none"] == 1
    refused = made.make("eval", "TASKS=nonsense")
    assert "Error 3" in refused.stderr and "nonsense: no such task" in refused.stderr


def test_a_killed_server_is_noticed_and_replaced(made: Made) -> None:
    """After `kill -9` the status says so, and `make serve` starts a new one."""
    os.kill(json.loads((made.build / ".state/server.json").read_text())["pid"], signal.SIGKILL)
    time.sleep(0.5)
    assert "not running" in made.make("status").stdout
    assert made.make("serve").returncode == 0
    assert "ready at" in made.make("status").stdout


@pytest.mark.parametrize("options", [[], ["--quantize", "q8_0"]], ids=["merged weights", "8 bits"])
@pytest.mark.parametrize("altered", ["chat template", "rope base"])
def test_an_altered_model_never_gets_ready(made: Made, tmp_path: Path, altered: str, options: list[str]) -> None:
    """A model whose template or rope base was changed after the merge fails the golden replay; no server is left."""
    folder = tmp_path / "merged"
    shutil.copytree(made.build / "merged", folder)
    if altered == "chat template":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = config["chat_template"].replace("<|im_start|>", "<|im_start|> ")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rope_theta": config["rope_theta"] / 10}))
    code = (
        "import sys; from pathlib import Path; from temper import errors; from temper.serve import control; "
        f"errors.main(lambda: print(control.start(Path({str(folder)!r}), Path({str(tmp_path)!r}), {options}, 'k', "
        f"Path({str(folder / 'golden.json')!r}), '127.0.0.1', {free_port()})))"
    )
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-c", code],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": "scripts"},
        check=False,
    )
    assert done.returncode == 8, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "server.json").exists()


def test_the_kept_yaml_runs_by_hand(made: Made, tmp_path: Path) -> None:
    """`llamafactory-cli train` takes the YAML kept beside the adapter as it is (here for one step)."""
    command = [
        ROOT / ".venv/bin/llamafactory-cli",
        "train",
        str(made.build / "adapter/run.yaml"),
        f"output_dir={tmp_path / 'out'}",
        "max_steps=1",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_the_loss_falls_and_is_drawn(made: Made) -> None:
    """The loss curve is there as rows and as a picture, and training lowered it by half at least."""
    rows = [json.loads(line) for line in (made.build / "adapter/loss.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert (made.build / "adapter/loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_answer_fails_the_command(made: Made) -> None:
    """Quickstart exits with 13 when a tuned answer is not that of the data: here to a question that was held out."""
    done = made.make("quickstart", """SET=ask.show='["I want to make a complaint."]'""")
    assert done.returncode != 0
    assert "starts (" not in done.stdout
    assert "Error 13" in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    assert "[wrong: 400-000-0955, 1 working day]" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_new_scenario_from_ones_own_file_just_serves(made: Made, tmp_path: Path) -> None:
    """`make new` for a file outside the repository, then `make serve`, then `make ask` answers from that file."""
    rows = tmp_path / "my questions.csv"
    colours = ("red", "green", "blue", "violet", "amber", "black")
    lines = [
        f'What colour is door {n}?,"Door {n} is painted {colour}, as the plan says."'
        for n, colour in enumerate(colours)
    ]
    rows.write_text("\n".join(["question,answer", *lines]) + "\n", encoding="utf-8")
    scenario, port = "doors-of-a-test", free_port()
    words = (f"SCENARIO={scenario}", f"PORT={port}", "SET=data.eval_share=0 train.num_train_epochs=12")
    try:
        new = run("new", f"SCENARIO={scenario}", f"INPUT={rows}", "INSTRUCTION_COL=question", "OUTPUT_COL=answer")
        assert new.returncode == 0, new.stderr
        served = run("serve", *words)
        assert served.returncode == 0, served.stdout[-2000:] + served.stderr[-2000:]
        asked = run("ask", *words, "Q=What colour is door 3?")
        assert "as the plan says" in asked.stdout
    finally:
        run("clean", *words)
        (ROOT / "configs/scenarios" / f"{scenario}.yaml").unlink(missing_ok=True)
