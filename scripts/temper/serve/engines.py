"""What the serve section becomes: the container of TGI, of vLLM, or of this repository's server in their place.

TGI and temper-serve are started by the same function with the same flags. Nothing here starts anything.
TGI 3.3.7's traps, and where each is met: it runs as root only (refuse_unreadable), prints its key (refuse_key), reads
with a slow tokenizer where it cannot write to its working folder (workdir /tmp, refuse_slow_tokenizer), splits its
arguments at blanks (_launcher), takes ports besides its own (_beside), serves float16 unless told (dtype).
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import containers, runtime
from temper.config import serving
from temper.containers import Container, Engine
from temper.errors import ConfigError, MachineError, ServeError
from temper.images.oci import OFFLINE
from temper.serve import direct
from temper.serve.load import EIGHT_BITS, chosen_dtype

MODEL = "/model"  # where the merged folder is mounted
KEY = {"local": "TEMPER_API_KEY", "vllm": "VLLM_API_KEY"}  # variables that the key goes by
SHARED = 1 << 30  # bytes of /dev/shm for each of several GPUs, which exchange through it
# Each may write to /tmp only, runs as a user without a name, and must not look for anything outside.
ENVIRONMENT = {
    **OFFLINE,
    "HOME": "/tmp",
    "USER": "temper",
    "HF_HOME": "/tmp/huggingface",
    "XDG_CACHE_HOME": "/tmp/cache",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "USAGE_STATS": "off",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Place:
    """Where a container is put."""

    name: str
    image: str
    network: str = "bridge"  # or host, where the server listens on serve.host itself
    gpus: Sequence[str] = ()  # those that may be used
    keyed: bool = False  # whether clients must send a key
    threads: str = ""  # OMP_NUM_THREADS of a server on a CPU


def in_container(config: Mapping[str, Any]) -> bool:
    """Say whether the scenario is served from a container."""
    return config["serve"]["engine"] != "local" or runtime.in_container(dict(config))


def network() -> str:
    """Return what TEMPER_NETWORK says; ConfigError for anything but bridge and host."""
    chosen = os.environ.get("TEMPER_NETWORK") or "bridge"
    if chosen not in ("bridge", "host"):
        raise ConfigError(f"TEMPER_NETWORK={chosen} is neither bridge nor host", "unset it, or TEMPER_NETWORK=host")
    return chosen


def gpus() -> tuple[str, ...]:
    """Return the GPUs that NVIDIA_VISIBLE_DEVICES leaves; MachineError when there are none."""
    listed = containers.visible_gpus()
    if listed == ("all",):
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True) if _has_smi() else None
        lines = found.stdout.splitlines() if found else []
        listed = tuple(str(n) for n, _ in enumerate(line for line in lines if line.startswith("GPU ")))
    if not listed:
        raise MachineError("no NVIDIA GPU is visible (nvidia-smi -L, NVIDIA_VISIBLE_DEVICES)", "see: make doctor")
    return listed


def _has_smi() -> bool:
    return shutil.which("nvidia-smi") is not None


def dtype(serve: Mapping[str, Any], folder: Path) -> str:
    """Return what the server computes in: the section's, or for auto the merged weights'."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if serve["engine"] == "local":
        return chosen_dtype(serve["quantize"] or serve["dtype"], config)
    if serve["dtype"] != "auto":
        return str(serve["dtype"])
    parts = (config, config.get("text_config") or {})
    found = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)
    if found not in ("bfloat16", "float16") and (found, serve["engine"]) != ("float32", "vllm"):
        problem = f"serve.dtype: auto takes that of the merged weights, {found}, which {serve['engine']} does not serve"
        raise ConfigError(problem, "SET='serve.dtype=bfloat16'")
    return str(found)


def shards(config: Mapping[str, Any], count: int) -> int:
    """Return how many of `count` GPUs share the model; MachineError when more are asked for than there are."""
    serve, shape = config["serve"], config["model"]["shape"]
    if serve["engine"] == "local":
        return 1
    if (asked := serve["tensor_parallel"]) != "auto":
        if asked > count:
            raise MachineError(f"serve.tensor_parallel asks for {asked} GPUs, and {count} are visible", "lower it")
        return int(asked)
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    return max(n for n in range(1, count + 1) if serving.divides(serve["engine"], n, heads, kv_heads))


def container(config: Mapping[str, Any], folder: Path, place: Place) -> Container:
    """Return the container that serves `folder`."""
    serve = config["serve"]
    engine, port, address = serve["engine"], serve["port"], _address(serve["host"])
    count = shards(config, len(place.gpus))
    listen = address if place.network == "host" else "0.0.0.0"
    flags = _vllm if engine == "vllm" else _launcher
    return Container(
        image=place.image,
        command=flags(config, dtype(serve, folder), count, listen),
        name=place.name,
        network=place.network,
        publish=(address, port, port),
        at={folder.resolve(): MODEL},
        environment=ENVIRONMENT | ({"OMP_NUM_THREADS": place.threads} if place.threads else {}),
        secrets=(KEY[engine],) if place.keyed else (),
        gpus=tuple(place.gpus)[:count],
        shared_memory=count * SHARED if count > 1 else 64 << 20,
        as_root=engine == "tgi",
        more=("--pull=never",),
    )


def _launcher(config: Mapping[str, Any], dtype: str, count: int, address: str) -> list[str]:
    """Return the flags of TGI's launcher, which temper-serve takes too."""
    serve = config["serve"]
    flags = {
        "model-id": MODEL,
        "hostname": address,
        "port": serve["port"],
        "num-shard": count,
        "max-input-tokens": serve["max_input_tokens"],
        "max-total-tokens": serve["max_total_tokens"],
        "max-concurrent-requests": serve["max_concurrent_requests"],
        "dtype": None if serve["quantize"] in (*serving.WITHOUT_DTYPE, EIGHT_BITS) else dtype,
        "quantize": serve["quantize"],
        "cuda-memory-fraction": serve["memory_fraction"],
        "prometheus-port": _beside(serve["port"], 10_000),
        "master-port": _beside(serve["port"], 20_000),
        "usage-stats": "off",
        "enable-prefill-logprobs": serve.get("prefill_logprobs"),
        "batch-variant": serve["batch_variant"],
    }
    return _unbroken(words(flags))


def _vllm(config: Mapping[str, Any], dtype: str, count: int, address: str) -> list[str]:
    """Return vLLM's flags; it answers to TGI's model name too, and adds no sampling settings of the folder."""
    serve = config["serve"]
    flags = {
        "model": MODEL,
        "host": address,
        "port": serve["port"],
        "tensor-parallel-size": count,
        "max-model-len": serve["max_total_tokens"],
        "max-num-seqs": serve["max_concurrent_requests"],
        "dtype": dtype,
        "quantization": serve["quantize"],
        "gpu-memory-utilization": serve["memory_fraction"],
        "generation-config": "vllm",
    }
    return [*words(flags), "--served-model-name", config["scenario"], "tgi"]


def words(flags: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line: True is a switch, None and False are left out."""
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    return [word for name, value in given.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]


def _unbroken(words: list[str]) -> list[str]:
    """Return the words; ConfigError for one that TGI's entrypoint would split or expand, as it quotes nothing."""
    for word in words:
        if not word or any(char.isspace() or char in "*?[" for char in word):
            raise ConfigError(f"serve: {word!r} cannot be given to TGI, which splits it at blanks", "choose another")
    return words


def _beside(port: int, step: int) -> int:
    """Return a further port, above 1023: on the host's network no two servers may have the same."""
    return 1024 + (port - 1024 + step) % (65536 - 1024)


def _address(host: str) -> str:
    """Return an IP address: TGI would take a name for every network there is."""
    try:
        return str(ipaddress.ip_address(host or "0.0.0.0"))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ServeError(f"serve.host {host!r} is no address ({error.strerror})", "use 127.0.0.1") from None


def refuse_key(engine: str, key: str | None) -> None:
    """Raise ConfigError for a key that TGI would print."""
    if engine == "tgi" and key:
        raise ConfigError(
            "TGI prints its API key when it starts, and TEMPER_API_KEY is set",
            "unset it and put a reverse proxy in front, or ENGINE=vllm",
        )


def refuse_unreadable(engine: Engine, folder: Path) -> None:
    """Raise ServeError for a file that root without rights over others' files, as TGI runs, cannot read."""
    if engine.rootless:
        return  # root inside is the caller outside
    for path in (folder, *sorted(folder.iterdir())):
        found = path.stat()
        needed = stat.S_IRUSR if found.st_uid == 0 else stat.S_IRGRP if found.st_gid == 0 else stat.S_IROTH
        if not found.st_mode & needed:
            raise ServeError(
                f"{path} is for its owner only, and TGI runs as root with no rights over others' files",
                f"chmod -R o+rX {folder}, or RUNTIME=podman without root, or ENGINE=vllm",
            )


def refuse_slow_tokenizer(url: str, key: str | None) -> None:
    """Raise ServeError when /tokenize gives no texts: TGI then reads with another tokenizer than it was tested with."""
    try:
        texts = [token["text"] for token in direct.post(f"{url}/tokenize", {"inputs": "Hello"}, key, 60)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServeError(f"{url}/tokenize does not answer ({error})", "see: make logs") from None
    if not any(texts):
        raise ServeError(
            f"{url}/tokenize gives tokens without texts: the server fell back to its slow tokenizer",
            "its working folder must be writable; see: make logs",
        )
