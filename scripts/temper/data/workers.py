"""The same functions over many pieces of work: on this machine's cores, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper.data.options import Options
from temper.errors import ConfigError, MachineError

# glibc's mallopt(3): freed memory is kept for the next piece of work, which is as large; faulting it in anew is slow.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def tune() -> None:
    """Set up a worker process: no garbage collector for data without cycles, no returned memory."""
    import ctypes
    import gc

    gc.disable()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(M_MMAP_THRESHOLD, 64 << 20)


def trim() -> None:
    """Give back to the machine what is free, after work that takes much more than the work that follows."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _begin(parent: int) -> None:
    import ctypes
    import signal

    from temper import child

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    ctypes.CDLL(None).prctl(child.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if os.getppid() != parent:
        os._exit(1)
    tune()


def cores() -> int:
    """Return how many processes may run at once here."""
    return len(os.sched_getaffinity(0))


@contextmanager
def pool(options: Options, large: bool) -> Iterator[Map]:
    """Give a map over pieces of work, results in the order of the pieces; `large`: worth starting processes for."""
    if options.engine == "ray":
        yield _ray(options)
        return
    count = options.workers or cores()
    if count == 1 or not large:
        yield lambda function, items: map(function, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    import numpy  # noqa: F401 - once, before processes are forked

    from temper.data import second  # noqa: F401

    def over(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        # Processes of their own for each pass: what the last one left in theirs would add to what this one holds.
        executor = ProcessPoolExecutor(count, get_context("fork"), _begin, (os.getpid(),))
        try:
            yield from executor.map(function, items)
        except BrokenProcessPool:
            raise MachineError(
                "a worker process was killed, most likely for want of memory", "set data.workers (--workers) lower"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)

    yield over


def _ray(options: Options) -> Map:
    """Return a map over a Ray cluster, through Ray Data; the folders must be on storage that every node sees."""
    cluster = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    if not cluster:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what makes a Ray of its own listen on loopback only
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            "data.engine: ray needs Ray, which is not installed here",
            "make install EXTRA=ray, or set data.engine to local",
        ) from None
    if not ray.is_initialized():
        code = str(Path(__file__).resolve().parents[2])
        own: dict[str, Any] = {} if cluster else {"num_cpus": options.workers or None}
        ray.init(
            address=cluster,
            runtime_env={"env_vars": {"PYTHONPATH": code, "RAY_USAGE_STATS_ENABLED": "0"}},
            include_dashboard=False if not cluster else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True

    def over(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        import pickle

        def one(row: dict[str, Any]) -> dict[str, Any]:
            return {"number": row["number"], "result": pickle.dumps(function(pickle.loads(row["item"])))}

        if not items:
            return iter(())
        numbered = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        done = ray.data.from_items(numbered, override_num_blocks=len(numbered)).map(one).take_all()
        return (pickle.loads(row["result"]) for row in sorted(done, key=lambda row: row["number"]))

    return over
