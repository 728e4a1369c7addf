"""The reader of LLaMA Factory's arguments agrees with LLaMA Factory, costs little, and imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from config_site import ROOT

from temper.config import lf_args, resolve
from temper.train import settings

HEAVY = ("torch", "transformers", "llamafactory", "peft", "datasets")
MODELS = ("temper.serve.decoder", "temper.serve.runner")  # parts of a model: they are imported where one is loaded

# Runs in a child, where importing LLaMA Factory's own dataclasses may take its seconds.
REAL = """
import dataclasses, json, types, typing
from llamafactory.hparams import parser

def kind(hint):
    plain = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType) or typing.get_args(hint) == ():
        return plain[0].__name__ if len(plain) == 1 and plain[0] in (int, float, bool, str) else None

found = {}
for group in parser._TRAIN_ARGS:
    hints = typing.get_type_hints(group)
    found |= {field.name: kind(hints[field.name]) for field in dataclasses.fields(group) if field.init}
print(json.dumps(found))
"""


def child(program: str) -> Any:
    """Run a Python program in the repository and return the JSON that its last line prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """Return each argument that LLaMA Factory's own parser takes, with its type where that is a plain one."""
    return dict(child(REAL))


def test_the_names_are_those_of_the_installed_llama_factory(real: dict[str, Any]) -> None:
    """Reading the source finds exactly the arguments that the real parser takes; an upgrade cannot part them."""
    assert len(real) > 300
    assert set(lf_args.known()) == set(real)


def test_the_plain_types_are_those_of_the_installed_llama_factory(real: dict[str, Any]) -> None:
    """Each int, float, bool, str and Literal is read as that type, and nothing else is taken for one."""
    read = {name: list(kind) if isinstance(kind, tuple) else kind for name, kind in lf_args.known().items()}
    assert {name: (read[name], kind) for name, kind in real.items() if read[name] != kind} == {}
    assert {kind for kind in read.values() if isinstance(kind, str)} == {"int", "float", "bool", "str"}


def test_every_argument_that_temper_names_is_real(real: dict[str, Any]) -> None:
    """Temper's defaults, the keys it sets, refuses, bounds and suggests are all arguments of LLaMA Factory."""
    named = {*lf_args.OWNED, *lf_args.COMMON, *lf_args.POSITIVE, *resolve.TRAIN_DEFAULTS, *settings.CPU}
    assert named - set(real) == set()


def test_a_check_takes_less_than_a_second_and_loads_no_torch() -> None:
    """Checking a whole scenario from a cold start takes under one CPU second and imports no training library."""
    found = child(
        "import json, sys, time\n"
        "from temper.config import resolve\n"
        "resolve.resolve('customer-service', 'cpu', '', 'train.lora_rank=16')\n"
        f"print(json.dumps([time.process_time(), [name for name in {HEAVY} if name in sys.modules]]))"
    )
    seconds, loaded = found
    assert loaded == []
    assert seconds < 1


def test_importing_any_module_is_cheap_and_does_nothing() -> None:
    """Importing any module of the package but those of a model loads no training library, prints and writes nothing."""
    loads, modules, printed = child(
        "import contextlib, importlib, io, json, os, pkgutil, sys\n"
        "import temper\n"
        "loads, said = {}, io.StringIO()\n"
        f"names = [m.name for m in pkgutil.walk_packages(temper.__path__, 'temper.') if m.name not in {MODELS}]\n"
        "environment = dict(os.environ)\n"
        "for name in names:\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        importlib.import_module(name)\n"
        f"    heavy = [other for other in {HEAVY} if other in sys.modules]\n"
        "    if heavy:\n"
        "        loads[name] = heavy\n"
        "assert dict(os.environ) == environment, 'the environment changed'\n"
        "print(json.dumps([loads, len(names), said.getvalue()]))"
    )
    assert loads == {}
    assert modules > 50
    assert printed == ""
