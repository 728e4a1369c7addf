#!/usr/bin/env python3
"""Serve a merged model over HTTP on this machine's CPU, or write a small client for it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SCRIPTS))

from temper import errors  # noqa: E402
from temper.errors import MachineError, UsageError  # noqa: E402

EXAMPLES = """examples:
  python scripts/llamafactory/inference_server.py --model_path build/customer-service/cpu/merged --port 8000
  curl http://localhost:8000/health
  python scripts/llamafactory/inference_server.py --create_client && python client.py "Who are you?"

Speaks the HTTP API of TGI 3.3.7, listed at /docs; a page to chat with at /ui.
More options, passed on as they are: python -m temper.serve --help (with PYTHONPATH=scripts)."""


def options() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not ours is for the server."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model_path", type=Path, metavar="DIR", help="merged Hugging Face folder with safetensors")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network (default: %(default)s)")
    add("--port", type=int, default=8000, help="(default: %(default)s)")
    add("--create_client", action="store_true", help="write client.py into the current folder and stop")
    add("--force", action="store_true", help="with --create_client: replace a client.py that is there")
    given, rest = parser.parse_known_args()
    if not given.create_client and given.model_path is None:
        parser.error("--model_path DIR (or --create_client) is needed")
    if given.create_client and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return given, rest


def create_client(host: str, port: int, force: bool) -> None:
    """Write client.py, made for the server at this address, and say how to run it."""
    target = Path("client.py")
    if target.exists() and not force:
        raise UsageError(f"{target.resolve()} is there already", "move it away, or add --force to replace it")
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    source = (SCRIPTS / "temper" / "serve" / "client.py").read_text(encoding="utf-8")
    target.write_text(source.replace("http://127.0.0.1:8000", f"http://{reached}:{port}"), encoding="utf-8")
    print(f'written: {target}\nrun: python {target} "your question" --stream')


def with_torch(argv: list[str]) -> None:
    """Go on in the repository's own environment when this Python has no torch."""
    if importlib.util.find_spec("torch"):
        return
    python = SCRIPTS.parent / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == python.parents[1]:
        raise MachineError("this Python has no torch", "run: make install")
    os.execv(python, [str(python), *argv])


def run() -> int:
    """Do what was asked for."""
    given, rest = options()
    if given.create_client:
        create_client(given.host, given.port, given.force)
        return 0
    with_torch([os.path.abspath(__file__), *sys.argv[1:]])
    from temper.serve import __main__ as server
    from temper.serve import launcher

    for name in launcher.VARIABLES:  # an API_KEY in a shell is meant for another server
        os.environ.pop(name, None)
    sys.argv = [
        "temper.serve",
        "--model-id",
        str(given.model_path),
        "--hostname",
        given.host,
        "--port",
        str(given.port),
        *rest,
    ]
    server.hide_key(server.options())
    print(f"serving: {shlex.join(sys.argv[1:])}", file=sys.stderr)
    return server.run()


if __name__ == "__main__":
    errors.main(run)
