"""Run by test_graph_chaos.py: makes everything on a small disk that grows, and prints as JSON what happened each time.

It mounts a tmpfs over the build folder, so it runs in a mount namespace of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import scratch


def run(root: Path, kilobytes: list[int], keep: Path) -> None:
    """Make with each disk size in turn until it succeeds; copy what each leaves to `keep`/SIZE."""
    repo, record = scratch.Repo(root), []
    repo.build.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes[0]}k", "tmpfs", repo.build], check=True)
    for size in kilobytes:
        subprocess.run(["mount", "-o", f"remount,size={size}k", repo.build], check=True)
        made = repo.make("merge")
        whole = [stage for stage, folder in repo.results().items() if (folder / "manifest.json").exists()]
        shutil.copytree(repo.build, keep / str(size))
        record.append({"size": size, "code": made.code, "err": made.err, "ran": made.ran, "whole": whole})
        if made.code == 0:
            break
    print(json.dumps(record))


if __name__ == "__main__":
    run(Path(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")], Path(sys.argv[3]))
