"""Several texts at once by continuous batching: requests share decode's slots, and join and leave
at any step.

One thread runs the model. At each turn it takes the next chunk of one text that is still being
read, then one token of each text that is being written. A request waits in a bounded queue until a
slot is free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.runtime.language import LanguageModel, Slot
from compiler.runtime.sampling import Sampler, Sampling


class BusyError(Exception):
    """No slot is free and the queue is full."""


@dataclass
class Request:
    """A text to continue by up to `limit` tokens. `emit` gets each token, then None or the error
    that ended it; it is called in the thread of the model."""

    tokens: list[int]
    limit: int
    sampling: Sampling
    emit: Callable[[int | Exception | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)


@dataclass
class Counters:
    """What happened so far; seconds to the first token are kept for the last thousand requests."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token: list[float] = field(default_factory=list)


class _Work:
    """A request in a slot."""

    def __init__(self, request: Request, slot: Slot, model: LanguageModel) -> None:
        self.request, self.slot = request, slot
        self.sampler, self.text = Sampler(request.sampling), list(request.tokens)
        self.reading: Iterator[np.ndarray] | None = model.prefill_steps(slot, request.tokens)
        self.made = 0


class Batcher:
    """Runs requests on a model; `waiting` of them may queue for a slot.

    What goes wrong with one request ends that request alone.
    """

    def __init__(self, model: LanguageModel, waiting: int = 32) -> None:
        self.model, self.waiting, self.counters = model, waiting, Counters()
        self._queue: deque[Request] = deque()
        self._active: list[_Work] = []
        self._ends = set(model.settings["tokenizer"]["ends"])
        self._stopped = False
        self._changed = threading.Condition()  # guards the queue and `_stopped`
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def check(self, tokens: Sequence[int]) -> None:
        """Raises ValueError for tokens that the model cannot read."""
        if not 0 < len(tokens) < self.model.context:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; it must have 1 to {self.model.context - 1}"
            )
        if not 0 <= min(tokens) <= max(tokens) < self.model.vocabulary:
            raise ValueError(
                f"the prompt has a token that is not from 0 to {self.model.vocabulary - 1}"
            )

    def submit(self, request: Request) -> None:
        """Take a request. Raises BusyError, or ValueError for tokens that the model cannot read."""
        self.check(request.tokens)
        with self._changed:
            if self._stopped:
                raise BusyError("the server is stopping")
            self._forget_cancelled()
            if len(self._queue) >= self.waiting:
                self.counters.refused += 1
                raise BusyError(f"{self.queued} requests are waiting already")
            self._queue.append(request)
            self.counters.requests += 1
            self._changed.notify()

    def close(self) -> None:
        """End the thread; requests under way end with an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._drop_cancelled()
                self._read()
                self._write()
            except Exception as error:
                # Errors of a request were caught where they arose: this one belongs to nobody in
                # particular.
                for work in list(self._active):
                    self._fail(work, error)
        left = [*(w.request for w in self._active), *self._queue]
        for request in left:
            _emit(request, RuntimeError("the server is stopping"))

    def _wait(self) -> bool:
        """Wait for something to do; False when there is nothing more to come."""
        with self._changed:
            while not (self._stopped or self._active or self._queue):
                self._changed.wait()
            return not self._stopped

    def _forget_cancelled(self) -> None:
        """Free the places of waiting requests whose clients left; `_changed` is held."""
        left = [r for r in self._queue if not r.cancelled.is_set()]
        self.counters.cancelled += len(self._queue) - len(left)
        self._queue = deque(left)

    def _admit(self) -> None:
        """Give waiting requests free slots; each the one that holds most of its text already."""
        taken = {w.slot.index for w in self._active}
        free = [s for s in self.model.slots if s.index not in taken]
        with self._changed:
            self._forget_cancelled()
            admitted = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
        for request in admitted:
            slot = max(free, key=lambda s: (self.model.kept(s, request.tokens), -len(s.tokens)))
            free.remove(slot)
            try:
                work = _Work(request, slot, self.model)
            except Exception as error:
                self.counters.failed += 1
                _emit(request, error)
                continue
            self._active.append(work)
            self.counters.prompt_tokens += len(request.tokens)

    def _drop_cancelled(self) -> None:
        for work in [w for w in self._active if w.request.cancelled.is_set()]:
            self.counters.cancelled += 1
            self._finish(work, None)

    def _read(self) -> None:
        """The next chunk of the text that came first and is not read yet."""
        work = next((w for w in self._active if w.reading is not None), None)
        if work is None or work.reading is None:
            return
        try:
            logits = next(work.reading)
        except Exception as error:
            self._fail(work, error)
            return
        if len(work.slot.tokens) == len(work.request.tokens):
            work.reading = None
            waited = time.monotonic() - work.request.arrived
            self.counters.first_token = [*self.counters.first_token[-999:], waited]
            self._take(work, logits)

    def _write(self) -> None:
        """One token of each text that is read."""
        writing = {w.slot.index: w for w in self._active if w.reading is None}
        if not writing:
            return
        tokens = {index: w.text[-1] for index, w in writing.items()}
        try:
            found = self.model.decode(tokens)
        except Exception:
            found = self._one_by_one(tokens, writing)
        for index, logits in found.items():
            self._take(writing[index], logits)

    def _one_by_one(
        self, tokens: dict[int, int], writing: dict[int, _Work]
    ) -> dict[int, np.ndarray]:
        """A step that failed, again for each text alone, which shows whose fault it was.

        The step that failed appended nothing, and a repeated one writes the same place of the
        cache.
        """
        found: dict[int, np.ndarray] = {}
        for index, token in tokens.items():
            try:
                found |= self.model.decode({index: token})
            except Exception as error:
                self._fail(writing[index], error)
        return found

    def _take(self, work: _Work, logits: np.ndarray) -> None:
        if np.isnan(logits).any():
            self._fail(work, ArithmeticError("its logits are not numbers"))
            return
        token = work.sampler.next(logits, work.text)
        work.text.append(token)
        work.made += 1
        self.counters.generated_tokens += 1
        _emit(work.request, token)
        full = len(work.slot.tokens) >= self.model.context
        if token in self._ends or work.made >= work.request.limit or full:
            self._finish(work, None)

    def _fail(self, work: _Work, error: Exception) -> None:
        self.counters.failed += 1
        work.slot.tokens.clear()  # what the cache holds is not known
        self._finish(work, error)

    def _finish(self, work: _Work, error: Exception | None) -> None:
        self._active.remove(work)
        _emit(work.request, error)


def _emit(request: Request, what: int | Exception | None) -> None:
    """Tell whoever asked; who cannot be told any more has left."""
    try:
        request.emit(what)
    except Exception:
        request.cancelled.set()
