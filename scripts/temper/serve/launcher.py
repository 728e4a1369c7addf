"""Take the flags and environment variables of TGI 3.3.7's launcher (launcher/src/main.rs), and a few of our own.

A flag wins over its variable, a variable over the default; an empty variable counts as none. A flag that means nothing
to this server is accepted and named in a warning, its variable is passed over; a flag that nobody knows is refused.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from temper import __version__
from temper.errors import UsageError
from temper.serve.load import DTYPES, EIGHT_BITS

HELP = "see: python -m temper.serve --help"
GRACE_S = 10  # how long answers under way may take after SIGTERM; control.py kills 5 s later
DEFAULT_TOTAL = 4096  # tokens; the model's own limit where that is less
_KINDS = "awq compressed-tensors eetq exl2 gptq marlin bitsandbytes bitsandbytes-nf4 bitsandbytes-fp4 fp8"
TGI_KINDS = tuple(_KINDS.split())
FLOAT16 = "float16"  # TGI's default; accepted, but no CPU computes in it at any speed


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers within these bounds."""
    bounds = f"of at least {least}" if most == 2**63 - 1 else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            if least <= int(text) <= most:
                return int(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")

    return read


def kind(text: str) -> str:
    """Return a kind of quantisation that is accepted."""
    if text not in (EIGHT_BITS, *TGI_KINDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not {EIGHT_BITS}, nor one of TGI's kinds")
    return text


def dtype(text: str) -> str:
    """Return the name of a dtype that is accepted."""
    if text not in (*DTYPES, FLOAT16):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join((*DTYPES, FLOAT16))}")
    return text


def switch(text: str) -> bool:
    """Return what a variable says that stands for a flag without a value."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def origins(text: str) -> list[str]:
    """Return the origins in a list with commas; each is named in full, none stands for all."""
    found = [each.strip() for each in text.split(",") if each.strip()]
    if wrong := [each for each in found if not re.fullmatch(r"https?://[^\s/*?#@]+", each)]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not an origin such as https://chat.example:8443")
    return found


@dataclass(frozen=True)
class Peer:
    """A further server on this machine, shown on the chat page beside this one."""

    name: str
    url: str


def peer(text: str) -> Peer:
    """Return the server that NAME=http://LOOPBACK:PORT means."""
    name, _, url = text.partition("=")
    try:
        parts = urlsplit(url)
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        plain = url.rstrip("/") == f"http://{parts.netloc}" and "@" not in url and parts.port is not None
    except ValueError:
        local = plain = False
    if not (name and local and plain):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=http://127.0.0.1:PORT, a server on this machine")
    return Peer(name, url.rstrip("/"))


@dataclass(frozen=True)
class Option:
    """An option that counts; with `variable` it is also read from the environment, by its name in upper case."""

    flags: str
    help: str
    read: Callable[[str], Any] = str
    default: Any = None
    metavar: str = "N"
    variable: bool = True

    @property
    def dest(self) -> str:
        """Return the option's name among those read."""
        return self.flags.split()[0].lstrip("-").replace("-", "_")


OPTIONS = (
    Option("--model-id", "merged Hugging Face folder with safetensors; needed", metavar="DIR"),
    Option("--served-model-name", "name in /info and answers (default: --model-id)", metavar="NAME", variable=False),
    Option("--hostname --host", "address to listen on (default: 127.0.0.1)", metavar="IP", variable=False),
    Option("--port -p", "port to listen on", whole(0, 65535), 8000),
    Option("--max-input-tokens", "longest prompt (default: --max-total-tokens less one)", whole(1)),
    Option("--max-input-length", "old name of --max-input-tokens", whole(1)),
    Option(
        "--max-total-tokens", f"prompt and answer together (default: {DEFAULT_TOTAL}, or the model's limit)", whole(2)
    ),
    Option(
        "--max-batch-total-tokens",
        "prompts and answers of all running requests; takes memory (default: eight of the longest, if that fits)",
        whole(2),
    ),
    Option("--max-concurrent-requests", "further ones get 429", whole(1), 128),
    Option("--max-best-of", "answers a request may have made to choose from", whole(1), 2),
    Option("--max-stop-sequences", "stop sequences a request may have", whole(0), 4),
    Option("--max-top-n-tokens", "likeliest tokens a request may be told for each place", whole(0), 5),
    Option("--max-client-batch-size", "prompts a request to /v1/completions may have", whole(1), 4),
    Option("--disable-grammar-support", "refuse grammars and response formats", switch),
    Option("--payload-limit", "longest request body, bytes", whole(1), 2_000_000),
    Option(
        "--client-timeout", "seconds for a request to arrive, or an answer to be taken", whole(1), 30, variable=False
    ),
    Option(
        "--cors-allow-origin",
        "origins whose pages may ask from a browser, with commas or the flag again; unlike in TGI none by default",
        origins,
        metavar="URL",
    ),
    Option(
        "--beside",
        "a further server on this machine, shown beside this one at /ui, as the base model's; again for another",
        peer,
        metavar="NAME=URL",
        variable=False,
    ),
    Option("--graceful-termination-timeout -g", "seconds for answers under way after SIGTERM", whole(0), GRACE_S),
    Option("--dtype", "auto (as the weights), float32 or bfloat16", dtype, "auto", "NAME"),
    Option(
        "--quantize",
        f"{EIGHT_BITS}: weights in 8 bits, by llama.cpp: faster, and answers may differ; TGI's kinds are passed over",
        kind,
        metavar="KIND",
    ),
    Option(
        "--batch-variant",
        "let the last bits of an answer depend on what else runs and ran: faster with several users",
        switch,
        variable=False,
    ),
    Option("--threads", "CPU threads (default: OMP_NUM_THREADS, else the CPUs at hand)", whole(1), variable=False),
    Option(
        "--api-key-file",
        "file with the key clients must send; without it TEMPER_API_KEY or API_KEY; none of them: no key",
        Path,
        metavar="FILE",
        variable=False,
    ),
    Option("--api-key", "the key itself; better a file, as others can read this line", metavar="KEY", variable=False),
)
REPEATED: dict[Callable[[str], Any], str] = {origins: "extend", peer: "append"}  # options that may come again
# The rest of TGI's.
_VALUED = (
    "revision validation-workers sharded num-shard speculate kv-cache-dtype "
    "waiting-served-ratio max-batch-prefill-tokens max-waiting-tokens max-batch-size "
    "cuda-graphs prometheus-port shard-uds-path master-addr master-port huggingface-hub-cache weights-cache-override "
    "cuda-memory-fraction rope-scaling rope-factor otlp-endpoint otlp-service-name watermark-gamma "
    "watermark-delta ngrok-authtoken ngrok-edge tokenizer-config-path lora-adapters usage-stats"
)
_SWITCHES = "trust-remote-code disable-custom-kernels json-output ngrok env enable-prefill-logprobs"
VALUED, SWITCHES = tuple(_VALUED.split()), tuple(_SWITCHES.split())
SHOWN = {"trust-remote-code": "--trust-remote-code (never done)", "ngrok-authtoken": "--ngrok-authtoken …"}
# All of TGI's that count: to be taken out of an environment that is not meant for this server.
VARIABLES = ("HOSTNAME", "API_KEY", *(option.dest.upper() for option in OPTIONS if option.variable))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        raise UsageError(message.removeprefix("argument "), HELP)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m temper.serve",
        description="Serve a merged folder in the foreground, with TGI 3.3.7's HTTP API.",
        epilog="Those of TGI can also be environment variables: MODEL_ID, PORT, MAX_INPUT_TOKENS … "
        "TGI's other options are accepted and ignored. Stops on SIGTERM or Ctrl-C.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    for option in OPTIONS:
        default = "" if option.default is None else f" (default: {option.default})"
        add(*option.flags.split(), help=option.help + default, **_kind(option))
    for name in VALUED:
        add(f"--{name}", help=argparse.SUPPRESS)
    for name in SWITCHES:
        add(f"--{name}", *(["-e"] if name == "env" else []), action="store_true", help=argparse.SUPPRESS)
    add("--version", "-V", action="version", version=f"temper {__version__}")
    return parser


def _kind(option: Option) -> dict[str, Any]:
    """Return how argparse reads an option."""
    if option.read is switch:
        return {"action": "store_const", "const": True}
    kind = {"type": option.read, "metavar": option.metavar}
    return {**kind, "action": REPEATED[option.read]} if option.read in REPEATED else kind


def read(argv: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line and the environment say; a given `argv` counts alone. UsageError for a mistake.

    Besides the options: `warnings`, lines to show, and `names`, the variable that an option was read from.
    """
    environ: Mapping[str, str] = os.environ if argv is None else {}
    given, unknown = _parser().parse_known_args(argv)
    if unknown:
        _refuse(unknown)
    given.names, given.warnings = {}, _ignored(given)
    _fill(given, environ)
    given.hostname = given.hostname or _address(environ)
    given.threads = given.threads or _variable("OMP_NUM_THREADS", whole(1), environ)
    _settle_input_limit(given)
    _settle_dtype(given)
    _settle_quantize(given)
    _check(given)
    return given


def named(given: argparse.Namespace, dest: str) -> str:
    """Return how an option was given: its variable's name, else its flag."""
    return str(given.names.get(dest, f"--{dest.replace('_', '-')}"))


def _refuse(words: list[str]) -> NoReturn:
    """Raise for words that no option takes; values are not shown, as one may be a key."""
    name = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if name is None:
        raise UsageError("the command line has a value that belongs to no option", HELP)
    known = [flag for option in OPTIONS for flag in option.flags.split()]
    near = difflib.get_close_matches(name, [*known, *(f"--{each}" for each in (*VALUED, *SWITCHES))], 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else HELP
    raise UsageError(f"{name} is no option of this server, nor of TGI 3.3.7", hint)


def _ignored(given: argparse.Namespace) -> list[str]:
    """Take TGI's own options out of `given` and return the line that names them, if there were any."""
    found = []
    for name in (*VALUED, *SWITCHES):
        value = vars(given).pop(name.replace("-", "_"))
        if value not in (None, False):
            found.append(SHOWN.get(name) or f"--{name}{'' if value is True else f' {value}'}")
    return [f"ignored, of TGI only: {', '.join(found)}"] if found else []


def _variable(name: str, convert: Callable[[str], Any], environ: Mapping[str, str]) -> Any:
    """Return a variable's value, None where it is not set; UsageError when it cannot be read."""
    text = environ.get(name)
    try:
        return convert(text) if text else None
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"environment variable {name}: {error}", "change or unset it") from None


def _fill(given: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Read from the environment what has no flag, and fill in the defaults."""
    for option in OPTIONS:
        if getattr(given, option.dest) is None:
            value = _variable(option.dest.upper(), option.read, environ) if option.variable else None
            if value is not None:
                given.names[option.dest] = option.dest.upper()
            setattr(given, option.dest, option.default if value is None else value)


def _address(environ: Mapping[str, str]) -> str:
    """Return where to listen when no flag says so; Docker puts the container's name into HOSTNAME."""
    if _is_address(environ.get("HOSTNAME", "")):
        return environ["HOSTNAME"]
    chosen = environ.get("TEMPER_HOSTNAME") or "127.0.0.1"
    if not _is_address(chosen):
        raise UsageError(f"environment variable TEMPER_HOSTNAME: {chosen!r} is no IP address", "change or unset it")
    return chosen


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _settle_input_limit(given: argparse.Namespace) -> None:
    """Bring both names of the longest prompt together; UsageError when two flags, or two variables, set it."""
    both = [dest for dest in ("max_input_tokens", "max_input_length") if getattr(given, dest) is not None]
    chosen = [dest for dest in both if dest not in given.names] or both
    if len(chosen) > 1:
        names = " and ".join(named(given, dest) for dest in chosen)
        raise UsageError(f"{names} are two names of one limit", "set only the first")
    if chosen:
        given.max_input_tokens = getattr(given, chosen[0])
        given.names["max_input_tokens"] = named(given, chosen[0])


def _settle_dtype(given: argparse.Namespace) -> None:
    """Replace float16 by the weights' own type and say so."""
    if given.dtype == FLOAT16:
        given.warnings.append(
            f"{named(given, 'dtype')} {FLOAT16} is slow and inexact on a CPU: runs as --dtype auto, "
            "bfloat16 weights in bfloat16, others in float32"
        )
        given.dtype = "auto"


def _settle_quantize(given: argparse.Namespace) -> None:
    """Leave out a kind of TGI's and say so; UsageError for a dtype besides ours."""
    if given.quantize in TGI_KINDS:
        given.warnings.append(
            f"{named(given, 'quantize')} {given.quantize} is for a GPU: the weights stay as they are; "
            f"--quantize {EIGHT_BITS} makes them smaller here"
        )
        given.quantize = None
    if given.quantize and given.dtype != "auto":
        both = f"{named(given, 'quantize')} {given.quantize} and {named(given, 'dtype')} {given.dtype}"
        raise UsageError(f"{both} exclude each other", "set only one")


def _check(given: argparse.Namespace) -> None:
    """Refuse a start without a model, or with an empty or a second key."""
    if given.model_id is None:
        raise UsageError("no model is named", "add --model-id DIR, or set the environment variable MODEL_ID")
    if given.api_key == "":
        raise UsageError("--api-key is empty", "leave it out for a server without a key")
    if given.api_key and given.api_key_file:
        raise UsageError("--api-key and --api-key-file are two keys", "give only the file")
