"""Which files of a model folder are taken, and what is refused: pickle, remote code, missing or cut-off weights."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from temper.errors import ModelError

KEEP = (
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "*.jinja",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
# The second copy that some repositories hold for other programs, and the index of weights that are not taken.
DROP = ("*/*", "consolidated*", "*.bin.index.json")
PICKLE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
LINKED_FROM = 64 * 1024**2  # bytes; smaller files are copied, so that an edit of one does not reach the other
FICLONE = 0x40049409  # Linux ioctl: share the blocks of a file until one of the two is written


def patterns(trust_remote_code: bool) -> list[str]:
    """Return the names that are taken, as globs."""
    return [*KEEP, *(("*.py",) if trust_remote_code else ())]


def taken(folder: Path, trust_remote_code: bool) -> dict[str, Path]:
    """Return name to path of the files in `folder` that are taken."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatch(path.name, p) for p in patterns(trust_remote_code))
        and not any(fnmatch(path.name, p) for p in DROP)
    }


def refuse_remote_code(folder: Path, origin: str) -> None:
    """Raise ModelError when loading the model would run Python files that come with it."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (code := _json(folder / name).get("auto_map")):
            raise ModelError(
                f"{origin}: {name} asks to run Python code that comes with the model ({code})",
                "choose a model that transformers knows; or, if you have read and trust that code, "
                "set trust_remote_code: true in the model file",
            )


def refuse_weights(names: list[str], origin: str) -> None:
    """Raise ModelError when there are no weights, or only pickled ones, which can run code when they are read."""
    if any(fnmatch(name, "*.safetensors") for name in names):
        return
    pickled = [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLE)]
    remedy = "choose a repository with safetensors, or convert it where it is trusted and give the folder as `path`"
    if pickled:
        raise ModelError(f"{origin} holds its weights only as pickle ({pickled[0]}), which can run code", remedy)
    raise ModelError(f"{origin} holds no *.safetensors", remedy)


def check(files: dict[str, Path], origin: str) -> None:
    """Raise ModelError when a part of the model is missing or a weight file is cut off."""
    if "config.json" not in files:
        raise ModelError(f"{origin} holds no config.json", "give a folder or repository in Hugging Face layout")
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(files):
        raise ModelError(f"{origin} holds no tokenizer", "give a folder or repository in Hugging Face layout")
    index = files.get("model.safetensors.index.json")
    needed = set(_json(index)["weight_map"].values()) if index else set()
    if missing := sorted(needed - set(files)):
        raise ModelError(f"{origin} lacks {', '.join(missing)}, which its index lists", "complete it")
    for name, path in files.items():
        if fnmatch(name, "*.safetensors") and (size := path.stat().st_size) != (whole := _length(path)):
            raise ModelError(f"{path} has {size} bytes, its header says {whole}", "delete it and fetch it again")


def place(files: dict[str, Path], work: Path, link: bool) -> dict[str, Path]:
    """Put the files into `work`; return name to path there.

    With `link`, big files share their bytes with the ones in the download cache. Without, all are copied (blocks are
    shared until written, where the file system can): a hard link would let an edit of one change the other.
    """
    placed = {}
    for name, path in files.items():
        target = placed[name] = work / name
        target.unlink(missing_ok=True)
        if link and path.stat().st_size >= LINKED_FROM:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(path, target)
                continue
        _copy(path, target)
    return placed


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new, contextlib.suppress(OSError):
        fcntl.ioctl(new, FICLONE, old.fileno())
        return
    shutil.copyfile(source, target)


def _length(path: Path) -> int:
    """Return the bytes a safetensors file must have by its own header, -1 when it has none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, path.stat().st_size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, AttributeError):
            return -1
    return 8 + size + max(ends, default=0)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise ModelError(f"{path} is not valid JSON", "delete it and fetch it again") from None
