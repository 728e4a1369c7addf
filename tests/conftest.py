"""For all tests: Ctrl-C reaches the programs they start, also when the tests run in the background."""

from __future__ import annotations

import signal

# A shell without job control starts background commands with SIGINT ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
