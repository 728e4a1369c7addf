"""The launcher's flags and environment variables: a start made for TGI's image starts this server too."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ENDLESS, SCRIPTS, Running, environment, free_port, wait_ready

from temper.serve.__main__ import api_key, options

KEY = "Key-of-the-launcher"
SHORT = {"inputs": "tick", "parameters": {"max_new_tokens": 2}}
BEARER = {"authorization": f"Bearer {KEY}"}


@contextlib.contextmanager
def started(url: str, log: Path, *argv: str, **variables: str) -> Iterator[Running]:
    """Run a server with these options and variables until the block ends."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "temper.serve", *argv], stdout=out, stderr=out, env=environment() | variables
        )
    try:
        running = Running(url, log, process)
        wait_ready(running)
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def by_variables(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start as a container does whose manifest sets only variables; 127.0.0.2 stands for the image's 0.0.0.0."""
    port, log = free_port(), tmp_path_factory.mktemp("variables") / "log"
    with started(
        f"http://127.0.0.2:{port}",
        log,
        MODEL_ID=str(folder),
        PORT=str(port),
        HOSTNAME="web-7f9c4",
        TEMPER_HOSTNAME="127.0.0.2",
        MAX_INPUT_LENGTH="100",
        MAX_TOTAL_TOKENS="200",
        MAX_CONCURRENT_REQUESTS="7",
        MAX_STOP_SEQUENCES="2",
        MAX_CLIENT_BATCH_SIZE="3",
        MAX_BEST_OF="3",
        PAYLOAD_LIMIT="2000",
        DTYPE="float16",
        API_KEY=KEY,
        NUM_SHARD="1",
        TRUST_REMOTE_CODE="true",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def by_flags(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start with flags, both ways of writing them, against variables that say something else."""
    port, log = free_port(), tmp_path_factory.mktemp("flags") / "log"
    argv = [
        *("--model-id", str(folder), "-p", str(port), "--hostname=127.0.0.1", "--max-input-tokens=1800"),
        *("--max-total-tokens", "1900", "--graceful-termination-timeout", "0", f"--api-key={KEY}"),
        *("--num-shard", "1", "--usage-stats=off", "--trust-remote-code", "--speculate", "2"),
        *("--ngrok-authtoken", "Token-of-ngrok", "--json-output", "--cuda-graphs", "0"),
    ]
    other = {"MODEL_ID": "/nowhere", "PORT": "1", "HOSTNAME": "127.0.0.9", "API_KEY": "another"}
    with started(
        f"http://127.0.0.1:{port}", log, *argv, MAX_INPUT_LENGTH="60", MAX_TOTAL_TOKENS="abc", **other
    ) as running:
        yield running


def refused(*argv: str, **variables: str) -> tuple[int, str]:
    """Start a server that cannot start; return its exit code and what it said, a single line."""
    done = subprocess.run(
        [sys.executable, "-m", "temper.serve", *argv],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def read(*argv: str, **variables: str) -> dict[str, Any]:
    """Return what a new process reads from its command line and environment."""
    program = "import json; from temper.serve.__main__ import options; print(json.dumps(vars(options()), default=str))"
    done = subprocess.run(
        [sys.executable, "-c", program, "--model-id", "x", *argv],
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def test_variables_alone_start_a_server(by_variables: Running, folder: Path) -> None:
    """Model, limits and port come from TGI's variables; a container's name in HOSTNAME is no address."""
    info = httpx.get(by_variables.url + "/info", trust_env=False).json()
    expected = {
        "model_id": str(folder),
        "max_input_tokens": 100,
        "max_total_tokens": 200,
        "max_concurrent_requests": 7,
        "max_stop_sequences": 2,
        "max_client_batch_size": 3,
        "max_best_of": 3,
    }
    assert {name: info[name] for name in expected} == expected
    with pytest.raises(httpx.ConnectError):
        httpx.get(by_variables.url.replace("127.0.0.2", "127.0.0.1") + "/health", trust_env=False)


def test_limits_from_variables_hold(by_variables: Running) -> None:
    """Stop sequences and the size of a body are held to what was set."""
    body = {"inputs": "tick", "parameters": {"stop": list("abc")}}
    said = by_variables.post("/generate", body, headers=BEARER)
    assert "`stop` supports up to 2 stop sequences. Given: 3" in said.json()["error"]
    assert by_variables.post("/generate", {"inputs": "a" * 2000}, headers=BEARER).status_code == 413


def test_float16_runs_in_the_weights_own_type_and_says_so(by_variables: Running, folder: Path) -> None:
    """The dtype TGI's users write is taken, never silently; TGI's variables that do not count are passed over."""
    log = by_variables.log.read_text()
    assert "warning: DTYPE float16 is slow and inexact on a CPU: runs as --dtype auto" in log
    assert f"{folder}: float32," in log
    assert "ignored" not in log


def test_the_key_in_a_variable_is_asked_for(by_variables: Running) -> None:
    """Without it 401, with it an answer; the log does not show it."""
    assert by_variables.post("/generate", SHORT).status_code == 401
    assert by_variables.post("/generate", SHORT, headers=BEARER).status_code == 200
    assert KEY not in by_variables.log.read_text()


def test_flags_win_over_variables(by_flags: Running, folder: Path) -> None:
    """Each flag beats its variable, the new name of a limit beats the old one's variable, and a bad one is not read."""
    info = httpx.get(by_flags.url + "/info", trust_env=False).json()
    assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == (str(folder), 1800, 1900)


def test_flags_of_tgi_alone_are_named_in_one_line(by_flags: Running) -> None:
    """What is passed over is said once, values too, but not a secret one."""
    lines = [line for line in by_flags.log.read_text().splitlines() if "ignored" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ignored, of TGI only: ")
    assert set(lines[0].removeprefix("warning: ignored, of TGI only: ").split(", ")) == {
        "--num-shard 1",
        "--speculate 2",
        "--cuda-graphs 0",
        "--usage-stats off",
        "--ngrok-authtoken …",
        "--json-output",
        "--trust-remote-code (never done)",
    }


def test_a_key_given_as_a_flag_is_hidden_and_asked_for(by_flags: Running) -> None:
    """Neither the process list nor the log shows it; it beats API_KEY; the user is told of the better way."""
    shown = Path(f"/proc/{by_flags.process.pid}/cmdline").read_bytes().decode()
    assert KEY not in shown and "--api-key" not in shown and "--max-input-tokens=1800" in shown
    log = by_flags.log.read_text()
    assert KEY not in log and log.count("use --api-key-file") == 1 and "key required" in log
    another = by_flags.post("/generate", SHORT, headers={"authorization": "Bearer another"})
    assert (by_flags.post("/generate", SHORT).status_code, another.status_code) == (401, 401)
    assert by_flags.post("/generate", SHORT, headers=BEARER).status_code == 200


def test_the_front_door_hides_a_key_too_and_heeds_no_variables(tmp_path: Path) -> None:
    """inference_server.py tells what it serves once, without the key; PORT and API_KEY of a shell are not for it."""
    door = str(SCRIPTS / "llamafactory" / "inference_server.py")
    done = subprocess.run(
        [sys.executable, door, "--model_path", str(tmp_path), "--port", str(free_port()), "--api-key", KEY],
        env=environment() | {"PORT": "abc", "MAX_TOTAL_TOKENS": "abc", "API_KEY": "another"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 9 and "holds no model (no config.json)" in done.stderr
    assert KEY not in done.stderr and done.stderr.count("serving: ") == 1 and "use --api-key-file" in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-input-token", "5"], "--max-input-token is no option of this server, nor of TGI 3.3.7; did you mean"),
        (["--num_shard=2"], "did you mean --num-shard?"),
        (["--qantize", "awq"], "did you mean --quantize?"),
        (["--api-kei", KEY], "did you mean --api-key?"),
        (["--api-key", "my", KEY], "the command line has a value that belongs to no option"),
        (["--xyz"], "--xyz is no option of this server, nor of TGI 3.3.7; see: python -m temper.serve --help"),
        (["--port", "70000"], "--port/-p: '70000' is not a whole number from 0 to 65535"),
        (["--dtype", "int8"], "--dtype: 'int8' is not one of auto, float32, bfloat16, float16"),
        (["--trust-remote-code=true"], "--trust-remote-code"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", KEY, "--api-key-file", "f"], "--api-key and --api-key-file are two keys; give only the file"),
        (["--max-input-tokens", "5", "--max-input-length", "5"], "are two names of one limit; set only the first"),
    ],
)
def test_mistakes_on_the_command_line_are_refused(argv: list[str], said: str) -> None:
    """A typo is no ignored flag: one line, a suggestion where there is one, exit code 2, and no key in it."""
    code, error = refused("--model-id", "x", *argv)
    assert code == 2 and said in error and KEY not in error


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "abc", "'abc' is not a whole number from 0 to 65535"),
        ("MAX_TOTAL_TOKENS", "-1", "'-1' is not a whole number of at least 2"),
        ("DTYPE", "int8", "'int8' is not one of auto, float32, bfloat16, float16"),
        ("TEMPER_HOSTNAME", "everywhere", "'everywhere' is no IP address"),
        ("OMP_NUM_THREADS", "all", "'all' is not a whole number of at least 1"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str, said: str) -> None:
    """One line says which variable, what is wrong with it and what to do."""
    assert refused("--model-id", "x", **{name: value}) == (
        2,
        f"error: environment variable {name}: {said}; change or unset it\n",
    )


def test_limits_that_contradict_name_where_they_came_from(folder: Path) -> None:
    """Two variables for one limit are an error as in TGI; limits the model cannot meet name the variable."""
    code, error = refused(MODEL_ID=str(folder), MAX_INPUT_TOKENS="5", MAX_INPUT_LENGTH="5")
    assert code == 2 and "MAX_INPUT_TOKENS and MAX_INPUT_LENGTH are two names" in error
    code, error = refused("--port", "0", MODEL_ID=str(folder), MAX_INPUT_LENGTH="50", MAX_TOTAL_TOKENS="50")
    assert code == 2 and "MAX_INPUT_LENGTH 50 must be less than MAX_TOTAL_TOKENS 50" in error


def test_a_hub_name_is_refused() -> None:
    """Nothing is downloaded: a model that is no folder is said to be none, with what to do; so is no model at all."""
    code, error = refused("--model-id", "Qwen/Qwen2.5-0.5B-Instruct")
    assert code == 9 and f"there is no folder {Path.cwd()}/Qwen/Qwen2.5-0.5B-Instruct, and no model is" in error
    assert "name a merged folder" in error
    assert refused(MODEL_ID="bigscience/bloom-560m")[1].startswith("error: MODEL_ID 'bigscience/bloom-560m': ")
    code, error = refused(MODEL_ID="")
    assert code == 2 and "add --model-id DIR, or set the environment variable MODEL_ID" in error


def test_the_address_is_chosen_as_in_a_container() -> None:
    """The flag, an IP address in HOSTNAME, TEMPER_HOSTNAME, loopback: the first there is."""
    image = {"TEMPER_HOSTNAME": "0.0.0.0"}
    assert read("--hostname", "localhost", HOSTNAME="::1", **image)["hostname"] == "localhost"
    assert read(HOSTNAME="::1", **image)["hostname"] == "::1"
    assert read(HOSTNAME="web-1", **image)["hostname"] == "0.0.0.0"
    assert read(HOSTNAME="web-1")["hostname"] == "127.0.0.1"


def test_options_read_for_a_running_server_heed_no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A given list of options counts alone, bad variables or not; a key file beats the keys in variables."""
    for name in ("PORT", "MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH", "DTYPE", "TEMPER_HOSTNAME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "abc")
    given = options(["--model-id", "", "--max-total-tokens", "99"])
    assert (given.port, given.dtype, given.hostname, given.api_key_file) == (8000, "auto", "127.0.0.1", None)
    monkeypatch.setenv("API_KEY", "tgi")
    assert api_key(None) == "tgi"
    monkeypatch.setenv("TEMPER_API_KEY", "own")
    (tmp_path / "key").write_text("file\n")
    assert (api_key(None), api_key(tmp_path / "key")) == ("own", "file")


def test_the_time_for_answers_under_way_is_kept(by_flags: Running) -> None:
    """After SIGTERM streams get --graceful-termination-timeout seconds, here none, not the default ten."""
    url, endless = by_flags.url + "/generate_stream", {**ENDLESS, "parameters": {"max_new_tokens": 1800}}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            answer = httpx.stream("POST", url, json=endless, headers=BEARER, timeout=30, trust_env=False)
            parts = stack.enter_context(answer).iter_raw()
            assert b'"token"' in next(parts)
            stack.callback(parts.close)  # kept until then: a forgotten iterator hangs up
        by_flags.process.terminate()
        assert by_flags.process.wait(8) == 0, by_flags.log.read_text()
    assert by_flags.log.read_text().count('"status": 499') == 4  # cut, not complete
