"""The contract of a stage: declared inputs in, one result folder out, published whole or not at all.

A result folder holds manifest.json (what it was made from and is: no times, host names or paths), run.json (times),
and the outputs. Files whose name starts with "run." are about this run and belong to no digest.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper import __version__, digests, locking, provenance
from temper.errors import DiskError, ResultError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
MANIFEST = "manifest.json"
NOTE = "made_from.json"  # in a work folder: what the unfinished run reads
CARD = "README.md"  # the report stage writes it into the merged folder: it belongs to no digest of that one
TOOLS = ("llamafactory", "transformers", "tokenizers", "peft", "torch", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True)
class Stage:
    """A stage of one scenario and profile."""

    name: str
    result: Path
    lock: Path  # held while the stage runs
    run: Callable[[Path], dict[str, Any]]  # fills a work folder; returns {"summary": str, "chosen": {…}}
    files: dict[str, Path] = field(default_factory=dict)  # raw inputs: logical name to file
    results: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)  # results read: folder, file names
    recorded: dict[str, Path] = field(default_factory=dict)  # files it writes on its first run and checks ever after
    stamped: dict[str, str] = field(default_factory=dict)  # folders, as they were before files were looked for there
    watched: tuple[Path, ...] = ()  # files that may change what is made, through the configuration
    config: dict[str, Any] = field(default_factory=dict)  # the section of the configuration it reads
    revision: int = 1  # raised when the same inputs would give other outputs
    image: str = ""  # digest of the image its body runs in; "" for the local environment
    where: str = "local"  # the same in words
    tools: Callable[[], dict[str, str]] = field(default=lambda: local_tools())

    @property
    def work(self) -> Path:
        """The folder it is made in, beside the result."""
        return self.result.with_name(f".{self.result.name}.work")


def manifest(result: Path) -> dict[str, Any]:
    """Return a result's manifest; ResultError when there is none or it cannot be read."""
    try:
        return dict(json.loads((result / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ResultError(f"{result}: there is no result yet", "make it first") from None
    except ValueError:
        raise ResultError(f"{result}/manifest.json cannot be read", f"delete {result} and make it again") from None


def altered(result: Path, digest: Callable[[Path], str] = digests.of) -> list[str]:
    """Name each file of a result that is missing, changed, truncated or added since it was made."""
    outputs = manifest(result)["outputs"]
    found = [f"{result / name} is not part of it" for name in _outputs(result) if name not in outputs]
    for name, known in outputs.items():
        path = result / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != known["size"]:
            found.append(f"{path} has {path.stat().st_size} bytes, expected {known['size']}")
        elif (got := digest(path)) != known["sha256"]:
            found.append(f"{path} has digest {got[:12]}, expected {known['sha256'][:12]}")
    return found


def unlinked(stage: Stage) -> list[str]:
    """Name each file of an earlier result that is not the one this stage's result was made from."""
    inputs, found = manifest(stage.result)["made_from"]["inputs"], []
    for name, (folder, _) in stage.results.items():
        now = manifest(folder)["outputs"] if (folder / MANIFEST).is_file() else {}
        read = {key.partition("/")[2]: known for key, known in inputs.items() if key.startswith(f"{name}/")}
        found += [
            f"it was made from another {folder / file} ({known['sha256'][:12]})"
            for file, known in read.items()
            if now and now.get(file) != known
        ]
    return found


def refuse_altered(result: Path) -> None:
    """Raise ResultError when a result is not what its manifest says."""
    if found := altered(result):
        raise ResultError(f"{'; '.join(found)}: altered after it was made", f"delete {result}, then make it again")


def _outputs(folder: Path) -> list[str]:
    """List the files in `folder` that belong to its digest, by their names relative to it."""
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("run."))
    return [name for path in inside if (name := str(path.relative_to(folder))) not in (MANIFEST, NOTE, CARD)]


def _used(folder: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    refuse_altered(folder)
    outputs = manifest(folder)["outputs"]
    return {name: outputs[name] for name in outputs if not patterns or any(Path(name).match(p) for p in patterns)}


def _recorded(stage: Stage) -> dict[str, Any]:
    return {name: digests.describe(path) for name, path in stage.recorded.items() if path.is_file()}


def made_from(stage: Stage, lock_digest: str) -> dict[str, Any]:
    """Return what the stage's result depends on, by content: inputs, configuration, environment lock, revision."""
    inputs = {name: digests.describe(path) for name, path in stage.files.items()} | _recorded(stage)
    for name, (folder, patterns) in stage.results.items():
        inputs |= {f"{name}/{file}": known for file, known in _used(folder, patterns).items()}
    return {
        "stage": stage.name,
        "revision": stage.revision,
        "inputs": inputs,
        "config": stage.config,
        "lock": lock_digest,
        "image": stage.image,
    }


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {at: value}
    parts = [_flat(inner, f"{at}.{name}" if at else name) for name, inner in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words what differs between two values of `made_from`: which key or file, old and new."""
    found = []
    for name in sorted({*old["inputs"], *new["inputs"]}):
        before, after = old["inputs"].get(name), new["inputs"].get(name)
        if before is None or after is None:
            found.append(f"{name} {'is new' if before is None else 'is gone'}")
        elif before != after:
            found.append(f"{name} changed ({before['sha256'][:8]} -> {after['sha256'][:8]})")
    before, after = _flat(old["config"]), _flat(new["config"])
    found += [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if old["lock"] != new["lock"]:
        found.append(f"the environment's lock changed ({old['lock'][:8]} -> {new['lock'][:8]})")
    # The local environment and the image of the same lock give the same bytes (docs/decisions/0006).
    if (was := old.get("image")) and (now := new.get("image")) and was != now:
        found.append(f"the image changed ({was[7:15]} -> {now[7:15]})")
    if old["revision"] != new["revision"]:
        found.append(f"Temper makes it differently (revision {old['revision']} -> {new['revision']})")
    return found


def reasons(stage: Stage, now: dict[str, Any]) -> list[str]:
    """Say why the stage must run; empty when its result is current. ResultError when the result was altered."""
    if not (stage.result / MANIFEST).is_file():
        return ["there is no result yet"]
    old = manifest(stage.result)
    if found := differences(old["made_from"], now):
        return found
    refuse_altered(stage.result)
    return []


def bring_up_to_date(stage: Stage, lock_file: Path, paths_file: Path, say: Callable[[str], None]) -> bool:
    """Run the stage if anything it reads differs from what its result was made from; return whether it ran.

    `paths_file` gets the files that Make watches for this stage, and the list beside it their stamps as they were
    before anything was read: a file changed meanwhile is then seen by the next make.
    """
    with _writable(stage), locking.held(stage.lock, f"make {stage.name}"):
        seen, now = _read(stage, lock_file)
        why = reasons(stage, now)
        if why:
            _run(stage, now, why, say)
        elif _left_over(stage):
            _remove(stage.work)
        _write_list(stage, paths_file, seen)
        return bool(why)


def note_if_current(stage: Stage, lock_file: Path, paths_file: Path) -> bool:
    """Renew the files that Make watches if the result is current; return whether it is. Run nothing.

    The list gets an old time: Make then takes the stage as done without asking about it again.
    """
    with locking.held(stage.lock, f"make {stage.name}"):
        seen, now = _read(stage, lock_file)
        if reasons(stage, now) or _left_over(stage):
            return False
        _write_list(stage, paths_file, seen)
        os.utime(paths_file.with_suffix(".list"), (0, 0))
        return True


@contextmanager
def _writable(stage: Stage) -> Iterator[None]:
    """Turn a refused write into one line with the remedy."""
    try:
        yield
    except PermissionError as error:
        raise DiskError(
            f"{error.filename}: this user may not write there",
            f"chown or chmod {stage.result.parent}, or choose another place with BUILD=DIR",
        ) from None


def _left_over(stage: Stage) -> bool:
    """Say whether the work folder is no unfinished run but an old result, whose deletion was cut short."""
    return stage.work.exists() and not (stage.work / NOTE).is_file()


def _inside(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))] if folder.is_dir() else []


def _read(stage: Stage, lock_file: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the stamps of all the stage reads, taken first, and what its result is to be made from."""
    read = [path for folder, _ in stage.results.values() for path in _inside(folder)]
    seen = _stamps([*stage.watched, *stage.files.values(), *read, lock_file])
    return seen | stage.stamped, made_from(stage, digests.of(lock_file))


def _stamps(paths: list[Path]) -> dict[str, str]:
    return {str(path): digests.stamp(path) for path in dict.fromkeys(paths)}


def _write_list(stage: Stage, paths_file: Path, seen: dict[str, str]) -> None:
    noted = [path for path in stage.recorded.values() if path.is_file()]
    stamps = {**seen, **_stamps([*noted, *_inside(stage.result)])}
    digests.write_atomic(paths_file, "".join(f"{path}\0" for path in stamps))
    lines = "".join(f"{value} {path}\n" for path, value in stamps.items())
    digests.write_atomic(paths_file.with_suffix(".list"), lines)


def _run(stage: Stage, now: dict[str, Any], why: list[str], say: Callable[[str], None]) -> None:
    begins = "resumes" if _prepare(stage, now) else "starts"
    say(f"{stage.name:<7} {begins} ({stage.where}): {'; '.join(why[:3])}{' …' if len(why) > 3 else ''}")
    started = time.time()
    result = stage.run(stage.work)
    now["inputs"] |= _recorded(stage)
    outputs = {name: digests.describe(stage.work / name) for name in _outputs(stage.work)}
    size = sum(known["size"] for known in outputs.values())
    record = {
        "temper": __version__,
        "made_from": now,
        "chosen": result.get("chosen", {}),
        "tools": stage.tools(),
        "outputs": outputs,
    }
    seconds = time.time() - started
    _write_json(stage.work / "run.json", {"started": started, "seconds": round(seconds, 3), **result.get("run", {})})
    _write_json(stage.work / provenance.FILE, provenance.statement(record, stage.where, started, seconds))
    _write_json(stage.work / MANIFEST, record)
    (stage.work / NOTE).unlink()
    _publish(stage)
    say(f"{stage.name:<7} {result['summary']}  [{human(size)}, {seconds:.1f} s]")


def _prepare(stage: Stage, now: dict[str, Any]) -> bool:
    """Keep the work folder of an interrupted run that read the same; otherwise start from an empty one."""
    note = stage.work / NOTE
    try:
        same = json.loads(note.read_text(encoding="utf-8")) == now
    except (OSError, ValueError):
        same = False
    if same:
        return True
    _remove(stage.work)
    stage.work.mkdir(parents=True)
    _write_json(note, now)
    return False


def _remove(folder: Path) -> None:
    """Delete `folder` if it is there, and what somebody made read-only in it."""
    if folder.exists():
        for path in _inside(folder):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def local_tools() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter in this environment."""
    import platform
    from importlib import metadata  # 20 ms

    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _publish(stage: Stage) -> None:
    """Put the work folder in the result's place in one step; the old result stays until then."""
    for path in _inside(stage.work):
        _flush(path)
    if not stage.result.exists():
        os.rename(stage.work, stage.result)
    elif _exchange(stage.work, stage.result):
        _remove(stage.work)
    else:
        old = stage.result.with_name(f".{stage.result.name}.old")
        _remove(old)
        os.rename(stage.result, old)
        os.rename(stage.work, stage.result)
        _remove(old)
    _flush(stage.result.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False where the kernel or the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def human(size: float) -> str:
    """Return a size in bytes as people read it, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
