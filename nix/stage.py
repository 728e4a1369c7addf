"""The builder of one stage: lay the repository out, run what Make runs, keep what belongs to the result.

Reads the variables that stage.nix sets; writes $out.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

KEPT = ("run.yaml", "run.config.yaml")  # what was asked for; other run.* files tell of one run
SETTINGS = {
    "PATH": str(Path(sys.executable).parent),
    "PYTHONPATH": "scripts",
    "HOME": "/tmp",
    "USER": "temper",
    "LANG": "C.UTF-8",
}


def lay(source: str, target: Path, put: Callable[[str, str], object]) -> None:
    """Lay a folder out with `put` for each file, so that what is beside them can be written."""
    shutil.copytree(source, target, copy_function=put)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)


def keep(model: str, files: dict[str, str]) -> None:
    """Put a base model's files where its stage keeps what it has fetched."""
    sys.path.insert(0, "scripts")
    from temper.config import resolve
    from temper.models import fetch

    asked = resolve.load_model(model)[1]
    for place in filter(None, (asked.source, asked.also)):
        for name, path in files.items():
            kept = fetch.kept(place, Path("build/cache/models", model)) / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.symlink_to(path)


def main() -> int:
    """Build one stage and return its exit code."""
    asked = os.environ
    lay(asked["source"], Path("temper"), shutil.copyfile)
    os.chdir("temper")
    Path("docker/images.lock").symlink_to(asked["lock"])
    for name, path in json.loads(asked["results"]).items():
        below = ("models", asked["model"]) if name == "base" else (asked["scenario"], asked["profile"], name)
        lay(path, Path("build", *below), os.symlink)
    for name in asked["files"].split():  # the scenario names them: those that this stage does not read have to be there
        if not Path(name).exists():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
    if "kept" in asked:
        keep(asked["model"], json.loads(asked["kept"]))
    words = [f"--scenario={asked['scenario']}", f"--profile={asked['profile']}", *json.loads(asked["overrides"])]
    command = [sys.executable, "-B", "-m", "temper", "stage", asked["stage"], *words, "--runtime=nix"]
    cores = asked["NIX_BUILD_CORES"]  # 0: all of them
    threads = {} if cores == "0" else {"OMP_NUM_THREADS": cores}
    inside = {"NIX_BUILD_TOP": asked["NIX_BUILD_TOP"]}  # what makes --runtime=nix true
    code = subprocess.run(command, env={**SETTINGS, **inside, **threads}).returncode
    if not code:
        about = shutil.ignore_patterns("run.*")
        shutil.copytree(asked["place"], asked["out"], ignore=lambda folder, names: about(folder, names) - {*KEPT})
    return code


sys.exit(main())
