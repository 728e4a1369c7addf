"""The server of one scenario and profile: what it is started with, and how it is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from temper import containers, digests, pipeline, stage
from temper.errors import ConfigError, GateError, ServeError
from temper.images import pin, pinned
from temper.serve import control, engines, ports, process
from temper.serve.boxed import Box
from temper.serve.process import Process

# What decides whether a running server is still the right one: the whole section, and the merged model.
BASE = "base"  # the folder with the state of the base model's server, in the other's
OPTIONS = (
    "dtype",
    "quantize",
    "max_input_tokens",
    "max_total_tokens",
    "max_concurrent_requests",
    "api_key_file",
    "batch_variant",
)


def state_of(config: dict[str, Any]) -> Path:
    """Return the folder of what Make watches, where the server is recorded too."""
    return pipeline.state(config["scenario"], config["profile"])


def merged(config: dict[str, Any]) -> Path:
    """Return the folder that is served."""
    return pipeline.folder(config) / "merged"


def _key(config: dict[str, Any]) -> str:
    """Stand for everything the server follows from, without asking an engine."""
    parts = [digests.read(merged(config) / "manifest.json"), config["serve"]]
    if engines.in_container(config):
        image = pinned.read().get(config["serve"]["engine"])
        parts += [config.get("runtime"), engines.network(), containers.visible_gpus(), image]
    return control.key_of(*parts)


def arguments(config: dict[str, Any]) -> list[str]:
    """Return the server's command-line options from the serve section."""
    given = {name: config["serve"][name] for name in OPTIONS}
    return engines.words({name.replace("_", "-"): value for name, value in given.items() if value != "auto"})


def start(config: dict[str, Any], say: Callable[[str], None]) -> str:
    """Serve the merged model, replay its golden prompts, and return the URL; refuse an altered result."""
    stage.refuse_altered(merged(config))
    golden_file, quantize = merged(config) / "golden.json", config["serve"]["quantize"]
    more = _beside(config, say)
    try:
        url = control.bring_up(
            lambda: _server(config, say, merged(config), more=more), state_of(config), _key(config), golden_file
        )
    except BaseException as error:
        _stop_base(state_of(config))
        if not isinstance(error, GateError):
            raise
        hint = f"; serve.quantize: {quantize} changes answers, try without it" if quantize else ""
        raise GateError(f"{error}{hint}") from None
    named = f"SCENARIO={config['scenario']}"
    say(f"serve   {url}   ask: make ask {named} Q='…'   stop: make stop {named}")
    return url


def _beside(config: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Serve the base model too where that is asked for, and return the option that shows it beside the tuned one."""
    port = config["serve"]["base_port"]
    if not port:
        _stop_base(state_of(config))
        return []
    if engines.in_container(config):
        raise ConfigError("serve.base_port: a server in a container reaches no other", "RUNTIME=local, or leave it out")
    return ["--beside", f"base={start_base(config, state_of(config) / BASE, port, say)}"]


def _stop_base(state: Path) -> None:
    if (state / BASE / "server.json").exists():
        control.stop(state / BASE)


def start_base(config: dict[str, Any], state: Path, port: int, say: Callable[[str], None]) -> str:
    """Serve the base model, as the merged one is served, on a port of loopback, and return the URL."""
    return _start_on(config, pipeline.base(config), "-base", state, {"port": port}, say)


def start_to_evaluate(config: dict[str, Any], model: str, state: Path, say: Callable[[str], None]) -> str:
    """Serve the "base" or the "tuned" model on a free port of loopback, one that tells how likely a text is.

    The tuned one has to prove itself by its golden prompts, as in `start`; what else is asked changes no answer.
    ServeError where another holds the GPU.
    """
    if config["serve"]["engine"] != "local" and control.status(state_of(config))["running"]:
        raise ServeError("the served model holds the GPU", f"run: make stop SCENARIO={config['scenario']}")
    folder = merged(config) if model == "tuned" else pipeline.base(config)
    own = {"port": ports.free(), "prefill_logprobs": True, "batch_variant": False}
    return _start_on(config, folder, f"-eval-{model}", state, own, say)


def _start_on(
    config: dict[str, Any], folder: Path, suffix: str, state: Path, more: dict[str, Any], say: Callable[[str], None]
) -> str:
    own = {**config, "serve": {**config["serve"], "host": "127.0.0.1", **more}}
    golden = folder / "golden.json"
    return control.bring_up(
        lambda: _server(own, say, folder, suffix),
        state,
        control.key_of(str(folder), own["serve"]),
        golden if golden.exists() else None,
    )


def _server(
    config: dict[str, Any], say: Callable[[str], None], folder: Path, suffix: str = "", more: Sequence[str] = ()
) -> Process | Box:
    """Return what is to be started to serve `folder`; in a container, with its image brought into the engine."""
    serve = config["serve"]
    if not engines.in_container(config):
        return Process(folder, [*arguments(config), *more], serve["host"], serve["port"])
    kind, key = serve["engine"], api_key(config)
    engines.refuse_key(kind, key)
    engine = containers.any_engine(config.get("runtime", "local"))
    if kind == "tgi":
        engines.refuse_unreadable(engine, folder)
    gpus = () if kind == "local" else engines.gpus()
    place = engines.Place(
        _name(config) + suffix,
        _image(engine, kind, say),
        engines.network(),
        gpus,
        bool(key),
        os.environ.get("OMP_NUM_THREADS", ""),
    )
    return Box(
        engine,
        engines.container(config, folder, place),
        folder,
        serve["host"],
        serve["port"],
        engines.dtype(serve, folder),
        key,
        engines.refuse_slow_tokenizer if kind == "tgi" else None,
    )


def _image(engine: containers.Engine, kind: str, say: Callable[[str], None]) -> str:
    if kind != "local":
        return pin.ensure(engine, kind, say)
    from temper.images import provide

    return provide.ensure(engine, "temper-serve", say)


def _name(config: dict[str, Any]) -> str:
    """Return the container's name, which no other scenario, profile or build folder has."""
    place = digests.of_value(str(state_of(config).absolute()))[:8]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{config['scenario']}-{config['profile']}")
    return f"temper-serve-{readable}-{place}"


def api_key(config: dict[str, Any]) -> str | None:
    """Return the key that clients must send: the file's, else the environment's; None for none."""
    from temper.serve.__main__ import api_key as read

    file = config["serve"]["api_key_file"]
    return read(Path(file) if file else None, process.KEY)


def url(config: dict[str, Any]) -> str:
    """Return the running server's URL; ServeError when there is none."""
    found = control.status(state_of(config))
    if not (found["running"] and found["ready"]):
        raise ServeError(
            "no server is running for this scenario and profile",
            f"run: make serve SCENARIO={config['scenario']} PROFILE={config['profile']}",
        )
    return str(found["url"])


def ask(config: dict[str, Any], at: str, question: str, longest: int | None = None) -> str:
    """Return the server's answer through TGI's client, with the scenario's settings; at most `longest` tokens."""
    os.environ.pop("HF_HUB_OFFLINE", None)  # with it the client refuses even 127.0.0.1
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    system = config["data"]["system"]
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]
    try:
        answer = InferenceClient(base_url=at, api_key=api_key(config) or "none", timeout=120).chat_completion(
            messages,
            model="tgi",  # the one name that every engine answers to
            temperature=config["ask"]["temperature"],
            max_tokens=longest or config["ask"]["max_new_tokens"],
        )
    except (HfHubHTTPError, OSError) as error:
        raise ServeError(f"{at} did not answer: {error}", "see: make logs") from None
    return str(answer.choices[0].message.content).strip()


def stop(scenario: str, profile: str) -> str:
    """Stop the server and say whether one was running."""
    state = pipeline.state(scenario, profile)
    for beside in state.glob("*/server.json"):
        control.stop(beside.parent)
    running = control.stop(state)
    return f"stop    {scenario}, profile {profile}: {'stopped' if running else 'no server was running'}"


def status_line(scenario: str, profile: str) -> str:
    """Say whether the server runs, where, and since when."""
    found = control.status(pipeline.state(scenario, profile))
    if not found["running"]:
        return "not running"
    health = "ready" if found["ready"] and found["healthy"] else "not ready"
    return f"{health} at {found['url']} ({found['what']}, since {found['since']})"


def plan_lines(config: dict[str, Any]) -> list[str]:
    """Say what `make serve` would do about the server."""
    found = control.status(state_of(config))
    if not found["running"]:
        return [f"serve   would start at http://{config['serve']['host']}:{config['serve']['port']}"]
    if (merged(config) / "manifest.json").is_file() and found["key"] == _key(config):
        return [f"serve   runs at {found['url']} and is up to date"]
    return [f"serve   would restart: {found['what']} serves another result or other settings"]
