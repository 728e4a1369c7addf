"""Build a result again beside the first and say where the two part: which stage, which file, and why.

The reference is what was made here, or a manifest from elsewhere: of one stage, or of a whole build/SCENARIO/PROFILE.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from temper import pipeline, stage
from temper.errors import ReproduceError, ResultError
from temper.paths import BUILD

STAGES = ("model", "data", "train", "merge")
RESULTS = {"data": "data", "train": "adapter", "merge": "merged"}  # where a whole folder's manifests stand
AGAIN = "reproduce"  # the folder below BUILD in which it is built again
Manifest = dict[str, Any]
UNKNOWN = "inputs, settings, lock and versions are equal, so it is the hardware, or something that no manifest records"


def run(given: argparse.Namespace, config: dict[str, Any], say: Callable[[str], None]) -> None:
    """Rebuild what the manifests describe and compare; ReproduceError names the first stage that differs and why."""
    wanted = read(given.manifest) if given.manifest else _made_here(config)
    again = BUILD / AGAIN
    _empty(again)
    pipeline.make(list(wanted)[-1], given, again)
    for name, old in wanted.items():
        result = _beside(pipeline.stage(name, config).result, again)
        new = stage.manifest(result)
        why = "; ".join(reasons(old, new))
        if differing := compare(old, new):
            for line in differing:
                say(f"{name:<7} {line}")
            raise ReproduceError(
                f"{name} is the first stage that differs: {why or UNKNOWN}", f"both are kept, the new in {again}"
            )
        say(f"{name:<7} {len(old['outputs'])} files, the same bytes{f', though {why}' if why else ''}")
    shutil.rmtree(again)


def read(path: str) -> dict[str, Manifest]:
    """Return the manifests at `path` by stage, in the order of the pipeline; ResultError where there is none.

    A manifest.json, a result's folder, or a folder of results.
    """
    place = Path(path)
    files = [place] if place.is_file() else [place / stage.MANIFEST]
    if not files[0].is_file():
        files = [place / folder / stage.MANIFEST for folder in RESULTS.values()]
    found = {}
    for file in filter(Path.is_file, files):
        try:
            manifest = dict(json.loads(file.read_text(encoding="utf-8")))
            found[str(manifest["made_from"]["stage"])] = manifest
        except (ValueError, KeyError, TypeError):
            raise ResultError(f"{file} is no manifest of a stage", "give the manifest.json of a result") from None
    if not found or not {*found} <= {*STAGES}:
        raise ResultError(f"MANIFEST={path}: no manifest of {', '.join(STAGES)} is there", "give a manifest.json")
    return {name: found[name] for name in STAGES if name in found}


def _made_here(config: dict[str, Any]) -> dict[str, Manifest]:
    results = {name: pipeline.stage(name, config).result for name in STAGES}
    found = {name: stage.manifest(path) for name, path in results.items() if (path / stage.MANIFEST).is_file()}
    if not found:
        raise ResultError("nothing is made yet that could be made again", "run: make merge, or give MANIFEST=")
    return found


def _empty(again: Path) -> None:
    """Begin with an empty folder that has what was fetched for base models: nothing is fetched twice."""
    shutil.rmtree(again, ignore_errors=True)
    fetched = BUILD / "cache" / "models"
    if fetched.is_dir():
        shutil.copytree(fetched, again / "cache" / "models", copy_function=os.link)


def _beside(result: Path, again: Path) -> Path:
    return again / result.relative_to(BUILD)


def compare(old: Manifest, new: Manifest) -> list[str]:
    """Return a line for each file of a result that is not the same in both."""
    return [
        f"{name}: {_digest(old, name)}, now {_digest(new, name)}"
        for name in sorted({*old["outputs"], *new["outputs"]})
        if old["outputs"].get(name) != new["outputs"].get(name)
    ]


def _digest(manifest: Manifest, name: str) -> str:
    return str(manifest["outputs"].get(name, {}).get("sha256", "not there"))[:12]


def reasons(old: Manifest, new: Manifest) -> list[str]:
    """Say what of two results' origins differs: inputs, keys, lock, image, what was chosen, versions."""
    return [*stage.differences(old["made_from"], new["made_from"]), *_changed(old, new)]


def _changed(old: Manifest, new: Manifest) -> Iterator[str]:
    for part in ("chosen", "tools"):
        for key in sorted({*old[part], *new[part]}):
            before, after = old[part].get(key), new[part].get(key)
            if before != after:
                yield f"{key}: {before} -> {after}"
