"""Fetch an image's parts on the host, through its own pip and apt: mirrors, proxies and certificates work as set up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from temper.errors import MachineError
from temper.images import parts
from temper.images.parts import Part
from temper.paths import BUILD

SUITE = "bookworm"  # Debian 12; its main archive changes with point releases only, so a locked version stays there
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Every platform tag a wheel may have to run on Debian 12 (glibc 2.36).
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")),
    "linux_x86_64",
]


def fetch(image: str, say: Callable[[str], None]) -> list[Part]:
    """Bring every part of an image into build/cache/IMAGE and return them; each is checked by its sha256.

    Raises MachineError when a part cannot be had, and says how to bring it here by hand.
    """
    wanted = parts.read(image)
    _borrow(image, wanted)
    absent = parts.missing(image, wanted)
    debs = [part for part in absent if part.kind == "deb"]
    wheels = [part for part in absent if part.kind != "deb"]
    if debs:
        say(f"image   fetches {len(debs)} Debian packages through apt")
        download_debs([f"{part.name}={part.version}" for part in debs], parts.folder(image) / "debs")
    if wheels:
        say(f"image   fetches {len(wheels)} Python packages through pip")
        lines = [f"{part.name}=={part.version} --hash=sha256:{part.sha256}" for part in wheels]
        download_wheels(lines, parts.folder(image) / "wheels")
    if still := parts.missing(image, absent):
        names = ", ".join(part.file for part in still[:5])
        raise MachineError(
            f"{len(still)} parts of {image} could not be fetched: {names}",
            f"put the files with the sha256 of {parts.list_file(image)} into {parts.folder(image)}/debs or /wheels, "
            "or take newer versions with: make lock",
        )
    return wanted


def _borrow(image: str, wanted: list[Part]) -> None:
    """Link what another image's folder has already."""
    for part in wanted:
        target = parts.place(image, part)
        for other in parts.LISTS:
            source = parts.place(other, part)
            if not target.exists() and source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)


def sources() -> list[str]:
    """Return the Debian archives that apt's own configuration names; $DEBIAN_MIRROR stands in for them."""
    if mirror := os.environ.get("DEBIAN_MIRROR"):
        return [mirror]
    listed = _run(["apt-get", "indextargets", "--format", "$(SITE)|$(ORIGIN)|$(CODENAME)", "Created-By: Packages"])
    rows = [line.split("|") for line in listed.splitlines()]
    found = [site for site, origin, name in rows if origin == "Debian" and not re.search(r"-(security|updates)", name)]
    if not found:
        raise MachineError("apt's sources name no Debian archive", "set DEBIAN_MIRROR to one, such as your company's")
    return list(dict.fromkeys(found))


def apt(*words: str, cwd: Path | None = None) -> str:
    """Run apt-get for Debian 12 whatever the host runs, with its configuration but not its sources and state.

    `apt` and `words` see a system with nothing installed.
    """
    where = (BUILD / "cache" / "apt").resolve()
    for name in ("lists/partial", "archives/partial"):
        (where / name).mkdir(parents=True, exist_ok=True)
    (where / "status").touch()
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f" signed-by={keyring}" if keyring.exists() else ""
    lines = [f"deb [arch=amd64{signed}] {site} {SUITE} main\n" for site in sources()]
    (where / "sources.list").write_text("".join(lines), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": where / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State": where,
        "Dir::State::status": where / "status",
        "Dir::Cache": where,
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return _run(["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items()), *words], cwd)


def download_debs(names: Iterable[str], into: Path) -> None:
    """Download Debian packages, given as NAME=VERSION; apt checks the archive's signature."""
    if not shutil.which("apt-get"):
        raise MachineError(
            "this machine has no apt", f"fetch the packages on a Debian or Ubuntu machine and copy {into} here"
        )
    into.mkdir(parents=True, exist_ok=True)
    apt("update")
    apt("download", *names, cwd=into)


def download_wheels(lines: Iterable[str], into: Path, index: str = "") -> None:
    """Download Python packages, given as hash-locked requirements, for Debian 12's Python 3.11."""
    into.mkdir(parents=True, exist_ok=True)
    listed = into / ".requirements.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [
        "download",
        *([] if sys.stdout.isatty() else ["--quiet"]),  # a person sees each file come
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--python-version=3.11",
    ]
    words += ["--implementation=cp", *(f"--platform={name}" for name in PLATFORMS), f"--dest={into}", "-r", str(listed)]
    words += [f"--extra-index-url={index}"] if index else []
    done = subprocess.run([sys.executable, "-m", "pip", *words], stderr=subprocess.PIPE, text=True)
    if done.returncode and "+cpu" in listed.read_text(encoding="utf-8") and not index:
        # Users have PyTorch's own index; pip's configuration here may or may not have its CPU builds.
        download_wheels(lines, into, os.environ.get("TORCH_INDEX", TORCH_INDEX))
    elif done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise MachineError(
            f"pip could not fetch the locked packages: {said[-1]}", "see pip's configuration: pip config list"
        )
    listed.unlink(missing_ok=True)


def _run(argv: list[str], cwd: Path | None = None) -> str:
    try:
        return subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        ).stdout
    except FileNotFoundError:
        raise MachineError(f"there is no {argv[0]}", "see docs/containers.md on machines without it") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith("E:")] or ["no message"]
        raise MachineError(
            f"{argv[0]} failed: {'; '.join(said)}",
            "a version that is gone from the mirror is replaced by: make lock; see docs/containers.md",
        ) from None
