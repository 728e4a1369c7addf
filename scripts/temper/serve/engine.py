"""Run a loaded model for several requests at once: one worker thread, a token for each request in every step.

New requests join between two steps, in the order they came, when there is room for their longest answer; room is all
that is ever taken, so memory is known at the start. A greedy answer equals `transformers.generate(do_sample=False)`
token for token, whatever else is running.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from temper.serve import faults
from temper.serve.faults import Fault
from temper.serve.load import EIGHT_BITS, Loaded
from temper.serve.sampling import Chooser
from temper.serve.stream import Ending, Pieces
from temper.serve.validate import Limits, Prompt, Valid

if TYPE_CHECKING:
    from torch import Tensor

    from temper.serve.metrics import Metrics
    from temper.serve.runner import Place

MOST = 32  # requests that run together; the others wait in order
TOGETHER = 128  # tokens of several prompts that are read in one pass: products have got as fast as they get by then


@dataclass(frozen=True)
class Token:
    """One token of a prompt or an answer; no log probability for the first of a prompt."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


@dataclass(frozen=True)
class End:
    """What is known of an answer once it is complete; times are time.monotonic()."""

    text: str
    reason: str
    tokens: int
    seed: int | None
    input_length: int
    prefill: list[Token]
    queued: float
    started: float


@dataclass(frozen=True)
class Step:
    """One token of an answer; the last one carries the end."""

    token: Token
    end: End | None
    top: tuple[Token, ...] = ()  # the likeliest tokens of this place, where they were asked for


@dataclass
class Job:
    """A request in the engine; `emit` is called in the worker thread with each Step, or once with a Fault."""

    wanted: Valid
    emit: Callable[[Step | Fault], None]
    queued: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    state: _State | None = None


class _State:
    """What a running request keeps between its steps."""

    def __init__(self, loaded: Loaded, wanted: Valid, place: Place) -> None:
        self.place, self.ids = place, list(wanted.input_ids)
        self.choose = Chooser(wanted)
        self.pieces = Pieces(loaded.tokenizer, wanted.input_ids)
        self.ending = Ending(wanted.max_new_tokens, loaded.eos, wanted.stop)
        self.prefill: list[Token] = []
        self.made = 0
        self.started = time.monotonic()


def _runner(loaded: Loaded, tokens: int, longest: int, variant: bool) -> Any:
    """Return what runs the model, with memory for so many tokens."""
    if loaded.dtype == EIGHT_BITS:
        from temper.serve import llama_cpp

        return llama_cpp.Quantised(loaded.model, max(1, min(MOST, tokens // longest)), longest)
    from temper.serve import runner

    return runner.make(loaded.model, tokens, variant)


def short(value: float) -> float | None:
    """Return a float32 as the shortest decimal that reads back the same; None where JSON has no word for it."""
    import numpy

    return float(str(numpy.float32(value))) if math.isfinite(value) else None


class Engine:
    """The model, its worker thread, and the count of requests let in."""

    def __init__(self, loaded: Loaded, limits: Limits, tokens: int, metrics: Metrics, variant: bool = False) -> None:
        """Take memory for so many tokens of prompts and answers: at least those of the longest request.

        With `variant` the last bits of an answer may depend on what else runs and ran.
        """
        self.loaded, self.limits, self.metrics = loaded, limits, metrics
        self.runner = _runner(loaded, tokens, limits.max_total_tokens, variant)
        self.variant = getattr(self.runner, "variant", False)
        self.healthy = True
        self._inside = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def enter(self) -> None:
        """Take a place; Fault (429) when max_concurrent_requests are taken. Give it back with leave()."""
        with self._lock:
            if self._inside >= self.limits.max_concurrent_requests:
                raise faults.overloaded()
            self._inside += 1

    def leave(self) -> None:
        """Give back a place taken with enter()."""
        with self._lock:
            self._inside -= 1

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the prompt as token ids."""
        return list(self.loaded.tokenizer(prompt.text, add_special_tokens=prompt.special_tokens)["input_ids"])

    def submit(self, wanted: Valid, emit: Callable[[Step | Fault], None]) -> Job:
        """Queue a request; set the job's `cancelled` to end it at its next step."""
        job = Job(wanted, emit)
        self._queue.put(job)
        return job

    def stop(self) -> None:
        """End the worker thread after the step it is in."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def probe(self) -> bool:
        """Return whether the model works; after a failure, find out with one real token."""
        if not self._thread.is_alive():
            return False
        if not self.healthy:
            answer: queue.SimpleQueue[Step | Fault] = queue.SimpleQueue()
            self.submit(Valid([min(self.loaded.eos, default=0)], 1, [], False, 0), answer.put)
            self.healthy = isinstance(answer.get(), Step)
        return self.healthy

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while self._admit():
                for job in [job for job in self._running if job.cancelled]:
                    self._leave(job)
                if self._running:
                    self._pass(self._running, "decode")

    def _admit(self) -> bool:
        """Let waiting requests join, blocking while there is nothing to do; False: the engine stops."""
        while True:
            idle = not (self._waiting or self._running)
            if idle:
                self._tell()  # else the last requests would seem to run for as long as nobody asks
            try:
                job = self._queue.get(block=idle)
                if job is None:
                    return False
                self._waiting.append(job)
                continue
            except queue.Empty:
                pass
            while self._join():
                pass
            self._tell()
            return True

    def _join(self) -> bool:
        """Make the first token of whoever waits longest, and of those that may be read along; False: nobody joins."""
        began, others, jobs, left = time.monotonic(), bool(self._running), list[Job](), TOGETHER
        while self._waiting and len(self._running) < MOST:
            job = self._waiting[0]
            if jobs and (left <= 0 or not all(map(self._may_join, (jobs[0], job)))):
                break
            if not job.cancelled:
                ids, room = job.wanted.input_ids, len(job.wanted.input_ids) + job.wanted.max_new_tokens
                place = self.runner.start([] if job.wanted.prefill else ids, room)
                if place is None:
                    break
                left -= len(ids) - place.length
                self._running.append(job)
                try:
                    job.state = _State(self.loaded, job.wanted, place)
                    jobs.append(job)
                except Exception as error:  # of this request alone
                    self.runner.finish(place)
                    self._fail(job, error)
            self._waiting.popleft()
        if jobs:
            self._pass(jobs, "prefill")
            if others:
                self.metrics.concat("backpressure", time.monotonic() - began)
        return bool(jobs)

    def _may_join(self, job: Job) -> bool:
        """Say whether a prompt may be read in one pass with others: without `variant` that could change its answer."""
        return self.variant and len(job.wanted.input_ids) <= TOGETHER and not job.wanted.prefill

    def _tell(self) -> None:
        self.metrics.queue_size(len(self._waiting))
        self.metrics.batch_size(len(self._running), sum(job.state.place.room for job in self._running if job.state))

    def _pass(self, jobs: Sequence[Job], method: str) -> None:
        """Make one token for each of the jobs."""
        began, jobs = time.monotonic(), list(jobs)
        try:
            logits = self._forward(jobs)
        except Exception as error:  # a failure must end these requests, not the server
            for job in jobs:
                self._fail(job, error)
            self.metrics.batch_failed(method)
            return
        passed = time.monotonic()
        for job, row in zip(jobs, logits, strict=True):
            try:
                step = self._step(job, row)
            except Exception as error:  # of this request alone
                self._fail(job, error)
                continue
            if step.end:
                self._leave(job)
            job.emit(step)
        ended = time.monotonic()
        self.metrics.batch(method, len(jobs), ended - began, passed - began, ended - passed)

    def _forward(self, jobs: Sequence[Job]) -> Tensor:
        """Return float32 logits [jobs, vocabulary] after all tokens so far; keep a prompt's own when wanted."""
        states = [(job.wanted, job.state) for job in jobs if job.state]
        parts = [(state.place, state.ids[state.place.length :]) for _, state in states]
        wanted, state = states[0]
        if not (wanted.prefill and not state.made):
            return self.runner.forward(parts)
        logits = self.runner.forward(parts, every=True)
        state.prefill = self._prefill(state.ids, logits)
        return logits[-1:]

    def _fail(self, job: Job, error: Exception) -> None:
        self.healthy = False
        self._leave(job)
        job.emit(faults.generation(f"{type(error).__name__}: {error}"))

    def _leave(self, job: Job) -> None:
        self._running.remove(job)
        if job.state:
            self.runner.finish(job.state.place)

    def _step(self, job: Job, logits: Tensor) -> Step:
        state = job.state
        assert state
        token, logprob, likeliest = state.choose(state.ids, logits)
        state.ids.append(token)
        state.made += 1
        text = state.pieces.push(token)
        reason = state.ending.push(token, text)
        special, decode = self.loaded.special, self.loaded.tokenizer.decode
        return Step(
            Token(token, text, short(logprob), token in special),
            self._end(job, state, reason) if reason else None,
            tuple(Token(each, decode([each]), short(value), each in special) for each, value in likeliest),
        )

    def _prefill(self, ids: list[int], logits: Any) -> list[Token]:
        logs = logits.log_softmax(-1)
        known = [None] + [short(float(logs[at, token])) for at, token in enumerate(ids[1:])]
        return [
            Token(token, self.loaded.tokenizer.decode([token]), logprob)
            for token, logprob in zip(ids, known, strict=True)
        ]

    def _end(self, job: Job, state: _State, reason: str) -> End:
        return End(
            state.pieces.all(),
            reason,
            state.made,
            job.wanted.seed if job.wanted.sampling else None,
            len(job.wanted.input_ids),
            state.prefill,
            job.queued,
            state.started,
        )
