"""Serve a merged folder in the foreground: python -m temper.serve --model-id DIR."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from temper import __version__, errors
from temper.errors import ServeError, UsageError
from temper.serve import launcher, load, ports

if TYPE_CHECKING:
    from temper.serve.engine import Engine


TOGETHER = 8  # requests of the longest kind that have room together, where memory allows


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line and TGI's environment variables say; a given `argv` counts alone."""
    return launcher.read(argv)


def api_key(file: Path | None, variables: Sequence[str] = ("TEMPER_API_KEY", "API_KEY")) -> str | None:
    """Return the key from the file, or the first of the variables that has one; UsageError for a file without one."""
    if file is None:
        return next(filter(None, map(os.environ.get, variables)), None)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file} cannot be read ({error})", "write the key into that file") from None
    if not key:
        raise UsageError(f"--api-key-file {file} is empty", "write the key into that file")
    return key


def hide_key(given: argparse.Namespace) -> None:
    """Start this process anew without the key on its command line, which everyone on the machine can read.

    The key goes on in TEMPER_API_KEY, which only this user can read. Does nothing when no key stands there.
    """
    words = list(sys.orig_argv)
    while at := next((at for at, word in enumerate(words) if word.partition("=")[0] == "--api-key"), 0):
        del words[at : at + (1 if "=" in words[at] else 2)]
    if given.api_key and words != sys.orig_argv:
        say("warning: --api-key showed the key to everyone on this machine; use --api-key-file")
        os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, "TEMPER_API_KEY": given.api_key})


def folder(given: argparse.Namespace) -> Path:
    """Return the folder to serve; ServeError for a hub's name, as nothing is ever downloaded."""
    path = Path(given.model_id)
    if not given.model_id or not path.is_dir():
        raise ServeError(
            f"{launcher.named(given, 'model_id')} {given.model_id!r}: there is no folder {path.absolute()}, "
            "and no model is downloaded",
            "name a merged folder (in a container: the path at which it is mounted)",
        )
    return path


def limits(given: argparse.Namespace, positions: int) -> tuple[int, int]:
    """Return the longest prompt and the longest prompt with answer, tokens; UsageError when limits contradict."""
    total = given.max_total_tokens or min(launcher.DEFAULT_TOTAL, positions)
    longest = given.max_input_tokens or total - 1
    prompt, both = (launcher.named(given, name) for name in ("max_input_tokens", "max_total_tokens"))
    if longest >= total:
        raise UsageError(f"{prompt} {longest} must be less than {both} {total}", "change one")
    if total > positions:
        raise UsageError(f"{both} {total} is more than the model's {positions} positions", f"use at most {positions}")
    if given.max_batch_total_tokens and given.max_batch_total_tokens < total:
        most = launcher.named(given, "max_batch_total_tokens")
        raise UsageError(f"{most} is less than what one request may have ({total})", "set it higher")
    return longest, total


def say(text: str) -> None:
    """Write a line for the person who started the server."""
    print(text, file=sys.stderr, flush=True)


def run() -> int:
    """Load, warm up, open the port, serve until told to stop."""
    given = options()
    hide_key(given)
    for warning in given.warnings:
        say(f"warning: {warning}")
    key, model = given.api_key or api_key(given.api_key_file), folder(given)
    # While the model loads there is nothing to tidy up, and a thread in torch that would not let the process end.
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGINT)}
    # Threads that wait spin for a moment, not for milliseconds, as is the default: that costs much on a shared machine.
    # To sleep at once (OMP_WAIT_POLICY=PASSIVE) halves the speed on an idle one: a token is hundreds of short products.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    threads = given.threads or len(os.sched_getaffinity(0))
    # Before the model is loaded: limits that contradict and a taken port are known at once.
    longest = limits(given, load.positions(load.read_config(model)))
    bound = ports.bind(given.hostname, given.port)
    started = time.monotonic()
    # In a thread that ends: OpenMP's threads spin only while there are no more of them than CPUs, and the engine's do.
    with ThreadPoolExecutor(1) as apart:
        engine = apart.submit(_engine, given, model, threads, longest).result()
    signal.signal(signal.SIGINT, before[signal.SIGINT])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say(
        f"{given.model_id}: {engine.loaded.dtype}, {threads} threads, prompts to {engine.limits.max_input_tokens} "
        f"and with answer to {engine.limits.max_total_tokens} tokens, key {'required' if key else 'not required'}, "
        f"loaded in {time.monotonic() - started:.1f} s"
    )
    _serve(given, bound, engine, key)
    return 0


def _leave(number: int, _: object) -> None:
    os._exit(0 if number == signal.SIGTERM else 130)


def _engine(given: argparse.Namespace, model: Path, threads: int, longest: tuple[int, int]) -> Engine:
    """Return a loaded engine that has made a token, so that the first request finds everything in place."""
    from temper.serve.engine import Engine
    from temper.serve.metrics import Metrics
    from temper.serve.validate import Limits

    loaded = load.load(model, given.quantize or given.dtype, threads)
    allowed = Limits(
        *longest,
        given.max_concurrent_requests,
        given.max_best_of,
        given.max_stop_sequences,
        given.max_top_n_tokens,
        given.max_client_batch_size,
        not given.disable_grammar_support,
    )
    _, total = longest
    fitting = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // loaded.token_bytes
    tokens = given.max_batch_total_tokens or max(total, min(TOGETHER * total, fitting))
    engine = Engine(loaded, allowed, tokens, Metrics(allowed), bool(given.batch_variant))
    engine.healthy = False
    if not engine.probe():
        raise ServeError(f"{given.model_id} loads, but makes no token", "run: make verify")
    return engine


def _serve(given: argparse.Namespace, bound: socket.socket, engine: Engine, key: str | None) -> None:
    import uvicorn
    from fastapi import Depends

    from temper.serve import patience, reading, ui
    from temper.serve.api import Server, create_app, require_key

    reading.PAYLOAD_LIMIT, reading.PATIENCE_S = given.payload_limit, given.client_timeout
    name, origins = given.served_model_name or given.model_id, given.cors_allow_origin or ()
    app = create_app(Server(engine, name, key, engine.metrics, origins))
    ui.add(app, name, given.beside or (), [Depends(require_key)])
    config = uvicorn.Config(
        app,
        http=patience.protocol(given.client_timeout),
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        headers=[("server", f"temper/{__version__}")],
        timeout_graceful_shutdown=given.graceful_termination_timeout,
    )
    try:
        bound.listen(2048)
    except OSError as error:  # another process took the address while the model was loading
        raise ports.refused(given.hostname, given.port, error) from None
    host, port = bound.getsockname()[:2]
    say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:  # uvicorn raises the signal that ended it again; a thread still in torch would abort the process
        engine.stop()


if __name__ == "__main__":
    errors.main(run)
