"""Where a result is from, as an in-toto Statement with the SLSA provenance predicate, v1 of both.

https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1. Every stage writes one beside its manifest; `make sign`
wraps it in a DSSE envelope.
"""

from __future__ import annotations

import time
from typing import Any

FILE = "run.intoto.json"  # holds times, so it is about the run and belongs to no digest
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:temper:stage:v1"
MEDIA_TYPE = "application/vnd.in-toto+json"


def statement(manifest: dict[str, Any], where: str, started: float, seconds: float) -> dict[str, Any]:
    """Return the statement about a result: its files are the subjects, what it was made from the dependencies.

    `where` says in words where the stage ran; `started` is in seconds since 1970.
    """
    made_from = manifest["made_from"]
    dependencies = [_file(name, known) for name, known in made_from["inputs"].items()]
    dependencies.append({"name": "lock", "digest": {"sha256": made_from["lock"]}})
    if image := made_from["image"]:
        dependencies.append({"name": "image", "digest": {"sha256": image.removeprefix("sha256:")}})
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"stage": made_from["stage"], "config": made_from["config"]},
        "internalParameters": {"revision": made_from["revision"], "chosen": manifest["chosen"]},
        "resolvedDependencies": dependencies,
    }
    details = {
        "builder": {"id": "urn:temper:local", "version": {"temper": manifest["temper"], **manifest["tools"]}},
        "metadata": {"startedOn": _time(started), "finishedOn": _time(started + seconds)},
        "byproducts": [{"name": "ran in", "annotations": {"where": where}}],
    }
    return {
        "_type": STATEMENT,
        "subject": [_file(name, known) for name, known in manifest["outputs"].items()],
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }


def _file(name: str, known: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": known["sha256"]}}


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
