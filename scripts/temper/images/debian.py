"""Unpack Debian packages into a root file system without running their scripts, so that it needs no root and no Debian.

What the scripts would do and an image needs is done here: merged /usr, users, the package database, `python3`, `cc`.
Documentation, manuals and translations stay out; copyright files stay in.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

MERGED = ("bin", "lib", "lib64", "sbin")  # in /usr, with links from the root, as Debian 12 has it
LEFT_OUT = ("usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/doc/", "boot/")
LINKS = {
    "usr/bin/python3": "python3.11",
    "usr/bin/python": "python3.11",
    "usr/bin/awk": "mawk",
    "usr/bin/cc": "gcc",
    "etc/mtab": "../proc/self/mounts",
}
USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
STATUS = "var/lib/dpkg/status"


def unpack(packages: Iterable[Path], into: Path) -> None:
    """Unpack packages, in the order of their names, into the empty folder `into`."""
    from debian.debfile import DebFile

    for name in MERGED:
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        (into / name).symlink_to(f"usr/{name}")
    stanzas = []
    for path in sorted(packages, key=lambda package: package.name):
        with DebFile(str(path)) as package:
            stanzas.append(_stanza(package.debcontrol()))
            _extract(package.data.tgz(), into)
    _finish(into, stanzas)


def _stanza(control: dict[str, str]) -> str:
    """Return a package's entry in dpkg's database, which scanners read."""
    lines = [f"Package: {control['Package']}", "Status: install ok installed"]
    names = ("Source", "Version", "Architecture", "Maintainer", "Depends", "Homepage")
    return "\n".join([*lines, *(f"{name}: {control[name]}" for name in names if name in control)]) + "\n"


def _extract(archive: tarfile.TarFile, into: Path) -> None:
    for member in archive:
        name = _merged(member.name)
        if not name or ((member.isfile() or member.issym() or member.islnk()) and _left_out(name)):
            continue
        _put(archive, member, into / name, into)


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, root: Path) -> None:
    """Write one member with its own mode; its owner and time do not matter here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        target.unlink(missing_ok=True)
        target.symlink_to(member.linkname)
    elif member.islnk():
        target.unlink(missing_ok=True)
        target.hardlink_to(root / _merged(member.linkname))
    elif content := archive.extractfile(member):
        with content, open(target, "wb") as file:
            shutil.copyfileobj(content, file)
    if not member.issym():
        target.chmod(member.mode & 0o1777)  # without setuid: nothing in a container gains rights


def _merged(name: str) -> str:
    """Return a member's path in a file system with merged /usr."""
    path = PurePosixPath("/", name).relative_to("/")
    return str(PurePosixPath("usr", path) if path.parts and path.parts[0] in MERGED else path) if path.parts else ""


def _left_out(name: str) -> bool:
    return name.startswith(LEFT_OUT) and not name.endswith("/copyright")


def _finish(root: Path, stanzas: list[str]) -> None:
    for name in LEFT_OUT:
        for folder in sorted(filter(Path.is_dir, (root / name).rglob("*")), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
    for name, target in LINKS.items():
        path = root / name
        if (path.parent / target).exists() or target.startswith(".."):
            path.unlink(missing_ok=True)
            path.symlink_to(target)
    for name, text in (*USERS.items(), (STATUS, "\n".join(stanzas))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    shutil.rmtree(root / "var/lib/dpkg/info", ignore_errors=True)


def installed(status: str) -> Iterator[tuple[str, str]]:
    """Yield (name, version) of each package in the text of dpkg's database."""
    from debian.deb822 import Deb822

    for entry in Deb822.iter_paragraphs(status):
        if entry.get("Status", "").endswith(" installed"):
            yield entry["Package"], entry["Version"]
