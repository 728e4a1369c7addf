"""The builder of an image: put the parts where `make image` keeps them, build, compare with the lock, write a layout.

Reads the variables that image.nix sets; writes $out.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Build one image."""
    asked = os.environ
    shutil.copytree(asked["source"], "temper", copy_function=shutil.copyfile)
    for folder, _, _ in os.walk("temper"):
        os.chmod(folder, 0o755)
    os.chdir("temper")
    sys.path.insert(0, "scripts")
    from temper.images import build, oci, parts, pinned

    name = asked["image"]
    Path(pinned.LOCK).symlink_to(asked["lock"])
    stored = json.loads(Path(asked["partsPath"]).read_text())  # sha256 to path
    for part in parts.read(name):
        place = parts.place(name, part)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(stored[part.sha256])
    image = build.build(name, "", lambda line: print(line, flush=True))
    pinned.check(image, name, build.BLOBS)
    oci.write_layout(image, build.BLOBS, Path(asked["out"]), f"localhost/{name}:{image.config[:18]}")


main()
