"""One real quickstart for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from quickstart_helpers import Made, free_port, run


@pytest.fixture(scope="session")
def made() -> Iterator[Made]:
    """Run `make quickstart` once; leave no server behind."""
    port = free_port()
    done = run("quickstart", f"PORT={port}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield Made(port, done.stdout)
    run("stop")
