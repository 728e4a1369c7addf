"""Run a loaded model for several requests: one worker thread, each request a step at a time in turn.

Every request has its own cache and its own forward passes, so an answer never depends on what else is running, and a
greedy one equals `transformers.generate(do_sample=False)` token for token.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from temper.serve import faults
from temper.serve.faults import Fault
from temper.serve.load import Loaded
from temper.serve.sampling import Chooser
from temper.serve.stream import Ending, Pieces
from temper.serve.validate import Limits, Prompt, Valid

# Requests that take turns; the others wait in order. More would only grow the memory of caches: on a CPU each
# step costs a pass over the weights, however many take turns.
TURNS = 8


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

    def __init__(self, loaded: Loaded, wanted: Valid) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=loaded.model.config)
        self.ids, self.fresh = list(wanted.input_ids), list(wanted.input_ids)  # fresh: not yet seen by the model
        self.choose = Chooser(wanted)
        self.pieces = Pieces(loaded.tokenizer, wanted.input_ids)
        self.ending = Ending(wanted.max_new_tokens, loaded.eos, wanted.stop)
        self.prefill: list[Token] = []
        self.made = 0
        self.started = time.monotonic()


def short(value: float) -> float | None:
    """Return a float32 as the shortest decimal that reads back the same; None where JSON has no word for it."""
    import numpy

    return float(str(numpy.float32(value))) if math.isfinite(value) else None


class Engine:
    """The model, its worker thread, and the count of requests let in."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.loaded, self.limits = loaded, limits
        self.healthy = True
        self._inside = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._turns: deque[Job] = deque()
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
                for _ in range(len(self._turns)):
                    job = self._turns.popleft()
                    if not job.cancelled and self._advance(job):
                        self._turns.append(job)

    def _admit(self) -> bool:
        """Let waiting jobs take part, blocking while there is nothing to do; False: the engine stops."""
        while len(self._turns) < TURNS:
            try:
                job = self._queue.get(block=not self._turns)
            except queue.Empty:
                break
            if job is None:
                return False
            if not job.cancelled:
                self._turns.append(job)
        return True

    def _advance(self, job: Job) -> bool:
        """Make one token for `job`; return whether it goes on."""
        try:
            step = self._step(job)
        except Exception as error:  # one request's failure must not end the others
            self.healthy = False
            job.emit(faults.generation(f"{type(error).__name__}: {error}"))
            return False
        job.emit(step)
        return step.end is None

    def _step(self, job: Job) -> Step:
        state = job.state = job.state or _State(self.loaded, job.wanted)
        logits = self._forward(state, job.wanted.prefill and not state.made)
        token, logprob = state.choose(state.ids, logits)
        state.ids.append(token)
        state.fresh = [token]
        state.made += 1
        text = state.pieces.push(token)
        reason = state.ending.push(token, text)
        return Step(
            Token(token, text, short(logprob), token in self.loaded.special),
            self._end(job, state, reason) if reason else None,
        )

    def _forward(self, state: _State, prefill: bool) -> Any:
        """Return float32 logits [vocabulary] after the fresh tokens; keep the prompt's own when `prefill`."""
        import torch

        logits = (
            self.loaded.model(
                input_ids=torch.tensor([state.fresh]),
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=0 if prefill else 1,
            )
            .logits[0]
            .float()
        )
        if prefill:
            state.prefill = self._prefill(state.fresh, logits)
        return logits[-1]

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
