"""Serve a merged folder in the foreground: python -m temper.serve --model-id DIR."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from temper import __version__, errors
from temper.errors import ServeError, UsageError
from temper.serve import ports

if TYPE_CHECKING:
    from temper.serve.engine import Engine

GRACE_S = 10  # how long answers under way may take after SIGTERM
DEFAULT_TOTAL = 4096  # tokens; the model's own limit where that is less


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the names are those of TGI's launcher."""
    parser = argparse.ArgumentParser(
        prog="python -m temper.serve",
        description=__doc__,
        epilog=f"Stops on SIGTERM or Ctrl-C; answers under way get {GRACE_S} s. Speaks TGI 3.3.7's HTTP API.",
    )
    add = parser.add_argument
    add("--model-id", required=True, metavar="DIR", help="merged Hugging Face folder with safetensors")
    add("--served-model-name", metavar="NAME", help="name in /info and answers (default: --model-id as given)")
    add("--hostname", "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="(default: %(default)s)")
    add("--max-input-tokens", type=int, metavar="N", help="longest prompt (default: --max-total-tokens less one)")
    add(
        "--max-total-tokens",
        type=int,
        metavar="N",
        help=f"prompt and answer together (default: {DEFAULT_TOTAL}, or the model's limit where less)",
    )
    add(
        "--max-concurrent-requests",
        type=int,
        default=128,
        metavar="N",
        help="further ones get 429 (default: %(default)s)",
    )
    add("--dtype", default="auto", help="auto (as the weights), float32 or bfloat16 (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: OMP_NUM_THREADS, else the CPUs at hand)")
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with the key clients must send; without it $TEMPER_API_KEY; neither: no key",
    )
    add("--version", action="version", version=f"temper {__version__}")
    return parser.parse_args(argv)


def api_key(file: Path | None) -> str | None:
    """Return the key from the file or the environment; UsageError for a file without one."""
    if file is None:
        return os.environ.get("TEMPER_API_KEY") or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file} cannot be read ({error})", "write the key into that file") from None
    if not key:
        raise UsageError(f"--api-key-file {file} is empty", "write the key into that file")
    return key


def limits(given: argparse.Namespace, positions: int) -> tuple[int, int]:
    """Return the longest prompt and the longest prompt with answer, tokens; UsageError when they contradict."""
    total = given.max_total_tokens or min(DEFAULT_TOTAL, positions)
    longest = given.max_input_tokens or total - 1
    if not 0 < longest < total:
        raise UsageError(f"--max-input-tokens {longest} must be less than --max-total-tokens {total}", "change one")
    if total > positions:
        raise UsageError(
            f"--max-total-tokens {total} is more than the model's {positions} positions", f"use at most {positions}"
        )
    return longest, total


def say(text: str) -> None:
    """Write a line for the person who started the server."""
    print(text, file=sys.stderr, flush=True)


def run() -> int:
    """Load, warm up, open the port, serve until told to stop."""
    given = options()
    key = api_key(given.api_key_file)
    if given.max_concurrent_requests < 1 or not 0 <= given.port <= 65535:
        raise UsageError("--max-concurrent-requests must be at least 1 and --port between 0 and 65535", "change it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Idle threads must sleep, not spin: on a shared machine spinning ones cost more than they save.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threads = given.threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    # Before the model is loaded: a taken port is known at once.
    bound = ports.bind(given.hostname, given.port)
    started = time.monotonic()
    engine = _engine(given, threads)
    say(
        f"{given.model_id}: {engine.loaded.dtype}, {threads} threads, prompts to {engine.limits.max_input_tokens} "
        f"and with answer to {engine.limits.max_total_tokens} tokens, key {'required' if key else 'not required'}, "
        f"loaded in {time.monotonic() - started:.1f} s"
    )
    _serve(given, bound, engine, key)
    return 0


def _engine(given: argparse.Namespace, threads: int) -> Engine:
    """Return a loaded engine that has made a token, so that the first request finds everything in place."""
    from temper.serve.engine import Engine
    from temper.serve.load import load
    from temper.serve.validate import Limits

    loaded = load(Path(given.model_id), given.dtype, threads)
    longest, total = limits(given, loaded.positions)
    engine = Engine(loaded, Limits(longest, total, given.max_concurrent_requests))
    engine.healthy = False
    if not engine.probe():
        raise ServeError(f"{given.model_id} loads, but makes no token", "run: make verify")
    return engine


def _serve(given: argparse.Namespace, bound: socket.socket, engine: Engine, key: str | None) -> None:
    import uvicorn

    from temper.serve.api import Server, create_app

    app = create_app(Server(engine, given.served_model_name or given.model_id, key))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        headers=[("server", f"temper/{__version__}")],
        timeout_graceful_shutdown=GRACE_S,
    )
    try:
        bound.listen(2048)
    except OSError as error:  # another process took the address while the model was loading
        raise ports.refused(given.hostname, given.port, error) from None
    host, port = bound.getsockname()[:2]
    say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(config).run(sockets=[bound])
    engine.stop()


if __name__ == "__main__":
    errors.main(run)
