"""One image, built once and loaded into both engines. A missing engine fails these tests; it does not skip them."""

from __future__ import annotations

import boxes
import pytest

from temper import containers
from temper.containers import Engine


@pytest.fixture(scope="session", params=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Return an engine that has temper-cpu as the lock says it is."""
    boxes.make("image", "IMAGE=temper-cpu", f"RUNTIME={request.param}")
    return containers.find(request.param)


@pytest.fixture(scope="session")
def image() -> str:
    """Build temper-cpu, if it is not built yet, and return what make said."""
    return boxes.make("image", "IMAGE=temper-cpu")
