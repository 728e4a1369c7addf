"""The server of one scenario and profile: what it is started with, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper import digests, pipeline, stage
from temper.errors import ServeError
from temper.serve import control

# What decides whether a running server is still the right one: the whole section, and the merged model.
OPTIONS = ("dtype", "max_input_tokens", "max_total_tokens", "max_concurrent_requests", "api_key_file")


def _state(config: dict[str, Any]) -> Path:
    return pipeline.state(config["scenario"], config["profile"])


def merged(config: dict[str, Any]) -> Path:
    """Return the folder that is served."""
    return pipeline.folder(config) / "merged"


def _key(config: dict[str, Any]) -> str:
    return control.key_of(digests.read(merged(config) / "manifest.json"), config["serve"])


def arguments(config: dict[str, Any]) -> list[str]:
    """Return the server's command-line options from the serve section."""
    given = {name: config["serve"][name] for name in OPTIONS if config["serve"][name] not in (None, "auto")}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def start(config: dict[str, Any], say: Callable[[str], None]) -> str:
    """Serve the merged model, replay its golden prompts, and return the URL; refuse an altered result."""
    stage.refuse_altered(merged(config))
    serve = config["serve"]
    url = control.start(
        merged(config),
        _state(config),
        arguments(config),
        _key(config),
        merged(config) / "golden.json",
        serve["host"],
        serve["port"],
    )
    named = f"SCENARIO={config['scenario']}"
    say(f"serve   {url}   ask: make ask {named} Q='…'   stop: make stop {named}")
    return url


def url(config: dict[str, Any]) -> str:
    """Return the running server's URL; ServeError when there is none."""
    found = control.status(_state(config))
    if not (found["running"] and found["ready"]):
        raise ServeError(
            "no server is running for this scenario and profile",
            f"run: make serve SCENARIO={config['scenario']} PROFILE={config['profile']}",
        )
    return str(found["url"])


def ask(config: dict[str, Any], at: str, question: str, longest: int | None = None) -> str:
    """Return the server's answer through TGI's client, with the scenario's settings; at most `longest` tokens."""
    import os

    os.environ.pop("HF_HUB_OFFLINE", None)  # with it the client refuses even 127.0.0.1
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    key_file = config["serve"]["api_key_file"]
    key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else None
    system = config["data"]["system"]
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]
    try:
        answer = InferenceClient(base_url=at, api_key=key or "none", timeout=120).chat_completion(
            messages, temperature=config["ask"]["temperature"], max_tokens=longest or config["ask"]["max_new_tokens"]
        )
    except (HfHubHTTPError, OSError) as error:
        raise ServeError(f"{at} did not answer: {error}", "see: make logs") from None
    return str(answer.choices[0].message.content).strip()


def stop(scenario: str, profile: str) -> str:
    """Stop the server and say whether one was running."""
    running = control.stop(pipeline.state(scenario, profile))
    return f"stop    {scenario}, profile {profile}: {'stopped' if running else 'no server was running'}"


def status_line(scenario: str, profile: str) -> str:
    """Say whether the server runs, where, and since when."""
    found = control.status(pipeline.state(scenario, profile))
    if not found["running"]:
        return "not running"
    health = "ready" if found["ready"] and found["healthy"] else "not ready"
    return f"{health} at {found['url']} (process {found['pid']}, since {found['since']})"


def plan_lines(config: dict[str, Any]) -> list[str]:
    """Say what `make serve` would do about the server."""
    found = control.status(_state(config))
    if not found["running"]:
        return [f"serve   would start at http://{config['serve']['host']}:{config['serve']['port']}"]
    if (merged(config) / "manifest.json").is_file() and found["key"] == _key(config):
        return [f"serve   runs at {found['url']} and is up to date"]
    return [f"serve   would restart: process {found['pid']} serves another result or other settings"]
