"""Put wheels where Debian's Python looks for them, and compile them with the image's own Python.

Compiled files are checked by no timestamp (unchecked-hash): their bytes depend on the source alone, and Python starts
with them although the sources' times are not those of the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from temper.errors import MachineError

SITE = "usr/local/lib/python3.11/dist-packages"
INTERPRETER = "/usr/bin/python3.11"
SCHEME = {
    "purelib": SITE,
    "platlib": SITE,
    "headers": "usr/local/include/python3.11",
    "scripts": "usr/local/bin",
    "data": "usr/local",
}


def install(wheel: Path, into: Path) -> None:
    """Install a wheel into the root `into` as PEP 427 says, with PyPA's installer."""
    from installer import install as put
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile

    scheme = {name: str(into / place) for name, place in SCHEME.items()}
    with WheelFile.open(wheel) as source:
        target = SchemeDictionaryDestination(
            scheme, interpreter=INTERPRETER, script_kind="posix", overwrite_existing=True
        )
        put(source, target, {"INSTALLER": b"temper\n"})


def python(root: Path, *words: str, path: Sequence[Path] = (), cwd: Path | None = None, **environment: str) -> None:
    """Run the Python of an unpacked Debian root, by its own loader: no chroot, no privileges.

    Raises MachineError with what it said when it fails.
    """
    root = root.resolve()
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "usr/lib"]
    argv = [
        str(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        "--library-path",
        ":".join(map(str, libraries)),
    ]
    argv += [str(root / "usr/bin/python3.11"), *words]
    settings = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": ":".join(str(folder.resolve()) for folder in path),
    }
    settings |= {
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": "315532800",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(argv, cwd=cwd, env={**settings, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise MachineError(
            f"the image's own Python ended with {done.returncode}: {done.stderr[-500:]}", "an x86-64 Linux is needed"
        )


COMPILE = """
import compileall, os, py_compile, sys
from importlib.util import cache_from_source
root, folder = sys.argv[1:]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for path in sorted(__import__("pathlib").Path(folder).rglob("*.py")):
    target = os.readlink(path) if path.is_symlink() else ""
    if target.startswith("/"):  # to the image's file, not to this machine's
        if os.path.isfile(root + target):
            named = f"/{path.relative_to(root)}"
            py_compile.compile(root + target, cache_from_source(path), named, True, invalidation_mode=mode)
    else:
        compileall.compile_file(path, stripdir=root, prependdir="/", force=True, quiet=2, invalidation_mode=mode)
"""


def compile_all(root: Path, layer: Path, folder: str) -> None:
    """Compile every source below layer/folder with root's Python, in one process and one order.

    What is interned by then gets into a compiled file, so the order is part of its bytes. Files that are no Python 3
    (templates, tests of syntax errors) are left as they are.
    """
    if (layer / folder).is_dir():
        python(root, "-S", "-c", COMPILE, str(layer), str(layer / folder))


CLOSED = {"GIT_DIR": "/nonexistent", "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}


def build(root: Path, source: Path, setuptools: Path, scratch: Path) -> Path:
    """Make a wheel of a source archive in the empty folder `scratch`, with root's Python; return it.

    Nothing native is compiled: DeepSpeed, the only one, builds its operators when they are first used. Its set-up would
    note the commit of whatever repository it is built in, and the accelerator of this machine.
    """
    install(setuptools, scratch / "tools")
    shutil.unpack_archive(source, scratch / "source")
    (project,) = (scratch / "source").iterdir()
    program = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    made, path = (scratch / "made").resolve(), [scratch / "tools" / SITE]
    python(root, "-c", program, str(made), path=path, cwd=project, **CLOSED)
    return next(made.glob("*.whl"))
