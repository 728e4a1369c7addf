"""What TGI, vLLM and the CPU server's image are started with, as data; the real thing is in test_serve_boxed.py."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from temper import containers, pipeline
from temper.config import resolve
from temper.containers import Container, Engine
from temper.errors import ConfigError, MachineError, ServeError
from temper.images import pin
from temper.serve import boxed, engines, session

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Key-of-the-test"
DOCKER = Engine("docker")
ENGINES, NETWORKS = ("tgi", "vllm", "local"), ("bridge", "host")


@pytest.fixture(autouse=True)
def _repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("TEMPER_REGISTRY", "TEMPER_NETWORK", "TEMPER_API_KEY", "API_KEY", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """Return a folder that says what its weights are; these tests read no more of it."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    return tmp_path / "merged"


def config(engine: str, overrides: str = "", model: str = "qwen2.5-coder-7b-instruct") -> dict[str, Any]:
    """Resolve a scenario for an engine; the model has 28 heads, 4 of them for keys."""
    profile = "cpu" if engine == "local" else "gpu-80g"
    return resolve.resolve("customer-service", profile, model, f"serve.engine={engine} {overrides}")


def box(settings: dict[str, Any], merged: Path, network: str = "host", **more: Any) -> Container:
    """Return the container of a configuration."""
    engine = settings["serve"]["engine"]
    image = "localhost/temper-serve:1" if engine == "local" else pin.reference(engine)
    return engines.container(settings, merged, engines.Place("temper-serve-x", image, network, **more))


def flags(container: Container) -> dict[str, str]:
    """Return a command line's flags; one without a value after it is a mistake."""
    words = list(container.command)
    if "--served-model-name" in words:
        at = words.index("--served-model-name")
        words[at + 1 :] = [" ".join(words[at + 1 :])]
    assert len(words) % 2 == 0 and all(word.startswith("--") for word in words[::2])
    return dict(zip(words[::2], words[1::2], strict=True))


def command(container: Container, engine: Engine = DOCKER) -> list[str]:
    """Return the whole command line."""
    return containers.run_command(engine, container, "create")


@pytest.mark.parametrize(("network", "keyed"), list(itertools.product(NETWORKS, (True, False))))
def test_tgi_and_the_cpu_server_get_the_same_flags(merged: Path, network: str, keyed: bool) -> None:
    """Every setting of the section is a flag, equal for both images."""
    settings = "serve.port=8123 serve.max_input_tokens=900 serve.max_total_tokens=1000 serve.max_concurrent_requests=7"
    both = [
        flags(box(config(name, settings), merged, network, gpus=gpus, keyed=keyed and name == "local"))
        for name, gpus in (("tgi", ("0",)), ("local", ()))
    ]
    assert both[0] == both[1] == {
        "--model-id": "/model",
        "--hostname": "127.0.0.1" if network == "host" else "0.0.0.0",
        "--port": "8123",
        "--num-shard": "1",
        "--max-input-tokens": "900",
        "--max-total-tokens": "1000",
        "--max-concurrent-requests": "7",
        "--dtype": "bfloat16",
        "--cuda-memory-fraction": "0.9",
        "--prometheus-port": "18123",
        "--master-port": "28123",
        "--usage-stats": "off",
    }  # fmt: skip


@pytest.mark.parametrize("wanted", [True, False])
def test_batch_variant_is_a_switch(merged: Path, wanted: bool) -> None:
    """It reaches the CPU server in a container and outside, and stands alone."""
    settings = config("local", f"serve.batch_variant={str(wanted).lower()}")
    for words in (list(box(settings, merged, "host").command), session.arguments(settings)):
        assert (words[-1] == "--batch-variant") == wanted == ("--batch-variant" in words)


@pytest.mark.parametrize("network", NETWORKS)
def test_vllm_gets_its_own(merged: Path, network: str) -> None:
    """Lengths, places, dtype, memory and GPUs of the section; it answers to TGI's model name and samples as asked."""
    settings = config("vllm", "serve.max_total_tokens=1100 serve.memory_fraction=0.8 serve.quantize=fp8")
    assert flags(box(settings, merged, network, gpus=("0", "1"), keyed=True)) == {
        "--model": "/model",
        "--host": "127.0.0.1" if network == "host" else "0.0.0.0",
        "--port": "8000",
        "--tensor-parallel-size": "2",
        "--max-model-len": "1100",
        "--max-num-seqs": "128",
        "--dtype": "bfloat16",
        "--quantization": "fp8",
        "--gpu-memory-utilization": "0.8",
        "--generation-config": "vllm",
        "--served-model-name": "customer-service tgi",
    }


@pytest.mark.parametrize(
    ("engine", "network", "client"), list(itertools.product(ENGINES, NETWORKS, containers.ENGINES))
)
def test_every_container_is_shut_in(merged: Path, engine: str, network: str, client: str) -> None:
    """No capability, nothing written but /tmp, the model read-only, offline, and never an image that moved."""
    made = box(config(engine), merged, network, gpus=() if engine == "local" else ("0",))
    words = command(made, Engine(client, cdi=client == "podman"))
    assert words[:2] == [client, "create"]
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pull=never"} <= set(words)
    assert f"--volume={merged}:/model:ro,z" in words and "--workdir=/tmp" in words and f"--network={network}" in words
    assert {"--env=HF_HUB_OFFLINE=1", "--env=TRANSFORMERS_OFFLINE=1", "--env=DO_NOT_TRACK=1"} <= set(words)
    assert {"--env=VLLM_NO_USAGE_STATS=1", "--env=USAGE_STATS=off"} <= set(words)
    assert ("--publish=127.0.0.1:8000:8000" in words) == (network == "bridge")
    assert any(word.startswith(("--gpus", "--device=nvidia")) for word in words) == (engine != "local")
    assert ("--user=0:0" in words) == (engine == "tgi" or os.getuid() == 0)
    if engine != "local":
        known = json.loads((ROOT / "docker/images.lock").read_text())[engine]
        registry = {"tgi": "ghcr.io", "vllm": "docker.io"}[engine]
        assert made.image == f"{registry}/{known['name']}@{known['digest']}" and len(known["digest"]) == 71
        assert known["note"] and "/" not in known["tag"]


@pytest.mark.parametrize(("engine", "network"), list(itertools.product(("vllm", "local"), NETWORKS)))
def test_the_key_is_on_no_command_line(merged: Path, engine: str, network: str) -> None:
    """Only the variable's name is; what is printed of the server to be does not show it either."""
    gpus = () if engine == "local" else ("0",)
    made = box(config(engine, "serve.api_key_file=key"), merged, network, gpus=gpus, keyed=True)
    assert f"--env={engines.KEY[engine]}" in command(made)
    whole = boxed.Box(Engine("docker"), made, merged, "127.0.0.1", 8000, "bfloat16", SECRET)
    assert SECRET not in repr(whole) and not any(SECRET in word for word in command(made))
    assert not any("key" in word for word in made.command)
    without = box(config(engine), merged, network, gpus=gpus)
    assert not any(f"--env={name}" in command(without) for name in engines.KEY.values())


def test_tgi_with_a_key_is_refused() -> None:
    """The environment's key would be printed as a flag's would."""
    engines.refuse_key("vllm", SECRET)
    engines.refuse_key("tgi", None)
    with pytest.raises(
        ConfigError, match=r"TGI prints its API key.*TEMPER_API_KEY.*reverse proxy.*ENGINE=vllm"
    ) as told:
        engines.refuse_key("tgi", SECRET)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    ("said", "engine", "asked", "expected"),
    [
        ({"torch_dtype": "float16"}, "tgi", "auto", "float16"),
        ({"dtype": "bfloat16"}, "tgi", "auto", "bfloat16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "vllm", "auto", "bfloat16"),
        ({"torch_dtype": "float16"}, "tgi", "bfloat16", "bfloat16"),
        ({"torch_dtype": "float32"}, "vllm", "auto", "float32"),
        ({"torch_dtype": "float16"}, "local", "auto", "float32"),
        ({"torch_dtype": "float32"}, "tgi", "auto", None),
        ({}, "vllm", "auto", None),
    ],
)
def test_the_dtype_is_always_said(
    merged: Path, said: dict[str, Any], engine: str, asked: str, expected: str | None
) -> None:
    """Left to itself TGI would serve float16; `auto` is what the weights are, and nothing is guessed."""
    (merged / "config.json").write_text(json.dumps(said))
    settings = config(engine, f"serve.dtype={asked}")
    if expected is None:
        with pytest.raises(ConfigError, match=r"serve\.dtype: auto takes that of the merged weights.*bfloat16"):
            engines.dtype(settings["serve"], merged)
    else:
        gpus = () if engine == "local" else ("0",)
        assert flags(box(settings, merged, gpus=gpus))["--dtype"] == expected


def test_quantised_tgi(merged: Path) -> None:
    """TGI takes bitsandbytes with a dtype, eetq and fp8 only with the float16 that TGI then computes in."""
    made = flags(box(config("tgi", "serve.quantize=bitsandbytes-nf4"), merged, gpus=("0",)))
    assert (made["--quantize"], made["--dtype"]) == ("bitsandbytes-nf4", "bfloat16")
    made = flags(box(config("tgi", "serve.quantize=eetq serve.dtype=float16"), merged, gpus=("0",)))
    assert made["--quantize"] == "eetq" and "--dtype" not in made


@pytest.mark.parametrize(
    ("engine", "asked", "there", "used"),
    [("tgi", "auto", 1, 1), ("tgi", "auto", 2, 2), ("tgi", "auto", 3, 2), ("tgi", "auto", 8, 4), ("vllm", "auto", 8, 4),
     ("vllm", "auto", 7, 4), ("tgi", 2, 8, 2), ("vllm", 4, 4, 4), ("local", "auto", 0, 1)],
)  # fmt: skip
def test_as_many_gpus_as_can_share_the_model(merged: Path, engine: str, asked: Any, there: int, used: int) -> None:
    """28 heads, 4 of them for keys: 1, 2 or 4 GPUs, the first of those there are, with room to exchange."""
    made = box(config(engine, f"serve.tensor_parallel={asked}"), merged, gpus=tuple(map(str, range(there))))
    count = flags(made)["--tensor-parallel-size" if engine == "vllm" else "--num-shard"]
    assert (count, made.gpus) == (str(used), tuple(map(str, range(min(used, there)))))
    assert made.shared_memory == (used << 30 if used > 1 else 64 << 20)


def test_more_gpus_than_there_are(merged: Path) -> None:
    """A fixed number that the machine does not have is refused."""
    with pytest.raises(MachineError, match=r"tensor_parallel asks for 4 GPUs, and 2 are visible"):
        box(config("tgi", "serve.tensor_parallel=4"), merged, gpus=("0", "1"))


def test_the_gpus_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA_VISIBLE_DEVICES' list is taken as it is, `all` is what nvidia-smi lists, none is an error."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-a)'\necho '  MIG 1g Device 0: x'\necho 'GPU 1: H100'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for listed, found in {"all": ("0", "1"), "1": ("1",), "GPU-a,GPU-b": ("GPU-a", "GPU-b")}.items():
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", listed)
        assert engines.gpus() == found
    for listed, path in (("none", str(tmp_path)), ("all", str(tmp_path / "empty"))):
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", listed)
        monkeypatch.setenv("PATH", path)
        with pytest.raises(MachineError, match=r"no NVIDIA GPU is visible.*make doctor"):
            engines.gpus()


def test_two_servers_on_one_network_take_no_port_of_each_other(merged: Path) -> None:
    """TGI's further ports follow from its own and are all different and unprivileged, at the ends of the range too."""
    taken: list[str] = []
    for port in (1100, 8000, 8001, 45536, 65535):
        made = flags(box(config("tgi", f"serve.port={port}"), merged, gpus=("0",)))
        taken += [made["--port"], made["--prometheus-port"], made["--master-port"]]
    assert len(set(taken)) == 15 and all(1024 <= int(port) <= 65535 for port in taken)


def test_a_host_is_given_as_an_address(merged: Path) -> None:
    """TGI takes a name for every network, and its entrypoint splits at blanks."""
    for host, address in {"localhost": "127.0.0.1", "0.0.0.0": "0.0.0.0", "::1": "::1"}.items():
        made = box(config("tgi", f"serve.host={host}"), merged, "host", gpus=("0",))
        assert flags(made)["--hostname"] == address or (host, flags(made)["--hostname"]) == ("localhost", "::1")
    with pytest.raises(ServeError, match=r"serve\.host 'no\.such\.host\.invalid' is no address"):
        box(config("tgi", "serve.host=no.such.host.invalid"), merged, gpus=("0",))
    settings = config("tgi")
    settings["serve"]["quantize"] = "two words"
    with pytest.raises(ConfigError, match="splits it at blanks"):
        box(settings, merged, gpus=("0",))


def test_the_network_is_bridge_or_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """TEMPER_NETWORK chooses; anything else is a typo."""
    assert engines.network() == "bridge"
    monkeypatch.setenv("TEMPER_NETWORK", "host")
    assert engines.network() == "host"
    monkeypatch.setenv("TEMPER_NETWORK", "hots")
    with pytest.raises(ConfigError, match="TEMPER_NETWORK=hots is neither bridge nor host"):
        engines.network()


def test_what_root_without_rights_cannot_read_is_named(merged: Path) -> None:
    """TGI runs as root with no capabilities: others' private files are closed, but where it is rootless."""
    weights = merged / "model.safetensors"
    weights.write_bytes(b"")
    engines.refuse_unreadable(Engine("docker"), merged)
    weights.chmod(0o600)
    if os.getuid() == 0:
        engines.refuse_unreadable(Engine("docker"), merged)  # root's own
        os.chown(weights, 1234, 1234)
    with pytest.raises(ServeError, match=r"model\.safetensors is for its owner only.*chmod -R o\+rX"):
        engines.refuse_unreadable(Engine("docker"), merged)
    engines.refuse_unreadable(Engine("docker", rootless=True), merged)


@pytest.fixture
def tokenizing() -> Iterator[Callable[[Any], str]]:
    """Serve one answer to every POST and return the URL."""
    servers = []

    def serve(answer: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_that_fell_back_to_the_slow_tokenizer_is_refused(tokenizing: Callable[[Any], str]) -> None:
    """Its /tokenize has ids but no texts, as TGI's has where it cannot write to its working folder."""
    token = {"id": 1, "text": "He", "start": 0, "stop": 2}
    engines.refuse_slow_tokenizer(tokenizing([token]), None)
    with pytest.raises(ServeError, match="fell back to its slow tokenizer"):
        engines.refuse_slow_tokenizer(tokenizing([{**token, "text": "", "stop": 0}]), None)
    with pytest.raises(ServeError, match="does not answer"):
        engines.refuse_slow_tokenizer(tokenizing({"error": "x"}), None)


def test_what_runs_in_a_container() -> None:
    """TGI and vLLM always, the CPU server where the runtime is an engine."""
    assert engines.in_container(config("tgi")) and engines.in_container(config("vllm"))
    assert not engines.in_container(config("local"))
    assert not engines.in_container(config("local") | {"runtime": "local"})
    assert engines.in_container(config("local") | {"runtime": "podman"})


@pytest.mark.parametrize("engine", ["tgi", "vllm"])
def test_what_make_serve_starts_on_a_gpu(
    merged: Path, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With RUNTIME=local too: a container of the first engine, with the pinned image and the GPUs there are."""
    settings = config(engine)
    monkeypatch.setattr(pipeline, "BUILD", tmp_path)
    place = tmp_path / "customer-service/gpu-80g"
    place.mkdir(parents=True)
    merged.rename(place / "merged")
    monkeypatch.setattr(engines, "gpus", lambda: ("0", "1"))
    monkeypatch.setattr(pin, "ensure", lambda _, image, say: pin.reference(image))
    made = session._server(settings, print, session.merged(settings))
    assert isinstance(made, boxed.Box) and made.engine == containers.any_engine("local")
    assert made.container.image == pin.reference(engine) and made.container.gpus == ("0", "1")
    assert made.container.as_root == (engine == "tgi") and made.container.name.startswith("temper-serve-customer-")
    assert made.asked() == (None, "bfloat16") and (made.probe is not None) == (engine == "tgi")
    monkeypatch.setenv("TEMPER_API_KEY", SECRET)
    if engine == "tgi":
        with pytest.raises(ConfigError, match="TGI prints its API key"):
            session._server(settings, print, session.merged(settings))
    else:
        keyed = session._server(settings, print, session.merged(settings))
        assert isinstance(keyed, boxed.Box) and keyed.container.secrets == ("VLLM_API_KEY",)
        assert keyed.asked() == (SECRET, "bfloat16") and SECRET not in repr(keyed)
