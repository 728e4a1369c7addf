"""What Make calls: `python -m temper.images make|resolve IMAGE …`."""

from __future__ import annotations

import argparse
import os

from temper import containers, errors, paths
from temper.__main__ import say


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m temper.images", description=__doc__)
    parser.add_argument("what", choices=("make", "resolve"), help="make: build and check; resolve: choose parts anew")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--pin", action="store_true", help="record what is built as the wanted image")
    parser.add_argument("--runtime", default="local", help="docker or podman: load it there too")
    return parser.parse_args()


def run() -> int:
    """Do what is asked."""
    given = options()
    paths.enter_root()
    from temper.images import parts, provide, resolve

    for image in given.images:
        if given.what == "resolve":
            resolve.resolve(image, say)
            continue
        if image != "temper-serve":
            parts.known(image)
        made = provide.make(image, given.pin, say)
        if given.runtime != "local":
            say(f"image   {given.runtime} has it as {provide.load(containers.find(given.runtime), made, say)}")
    if given.what == "make" and given.runtime == "local" and not os.environ.get("CI"):
        say("image   to load it into an engine: make image RUNTIME=docker (or podman)")
    return 0


if __name__ == "__main__":
    errors.main(run)
