"""Several texts at once by continuous batching: requests share decode's slots, and join and leave
at any step.

One thread runs the model. At each turn it takes the next chunk of one text that is still being
read, then one token of each text that is being written. A request waits in a bounded queue until a
slot is free.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
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
    """Runs requests on a model; `waiting` of them may queue for a slot."""

    def __init__(self, model: LanguageModel, waiting: int = 32) -> None:
        self.model, self.counters = model, Counters()
        self._queue: queue.Queue[Request] = queue.Queue(waiting)
        self._active: list[_Work] = []
        self._ends = set(model.settings["tokenizer"]["ends"])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def queued(self) -> int:
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Take a request. Raises BusyError, or ValueError for a text that does not fit the context."""
        if not 0 < len(request.tokens) < self.model.context:
            raise ValueError(
                f"the prompt has {len(request.tokens)} tokens; it must have 1 to {self.model.context - 1}"
            )
        try:
            self._queue.put_nowait(request)
        except queue.Full as error:
            self.counters.refused += 1
            raise BusyError(f"{self.queued} requests are waiting already") from error
        self.counters.requests += 1

    def close(self) -> None:
        """End the thread; requests under way end with an error."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._admit(block=not self._active)
            for work in [w for w in self._active if w.request.cancelled.is_set()]:
                self.counters.cancelled += 1
                self._finish(work, None)
            try:
                self._read()
                self._write()
            except Exception as error:
                for work in list(self._active):
                    self.counters.failed += 1
                    work.slot.tokens.clear()
                    self._finish(work, error)
        left = [w.request for w in self._active]
        while not self._queue.empty():
            left.append(self._queue.get_nowait())
        for request in left:
            request.emit(RuntimeError("the server is stopping"))

    def _admit(self, block: bool) -> None:
        """Give waiting requests free slots; each the one that holds most of its text already."""
        taken = {w.slot.index for w in self._active}
        free = [s for s in self.model.slots if s.index not in taken]
        while free:
            try:
                request = (
                    self._queue.get(block, timeout=0.05) if block else self._queue.get_nowait()
                )
            except queue.Empty:
                return
            block = False
            if request.cancelled.is_set():
                self.counters.cancelled += 1
                continue
            slot = max(free, key=lambda s: (self.model.kept(s, request.tokens), -len(s.tokens)))
            free.remove(slot)
            self._active.append(_Work(request, slot, self.model))
            self.counters.prompt_tokens += len(request.tokens)

    def _read(self) -> None:
        """The next chunk of the text that came first and is not read yet."""
        work = next((w for w in self._active if w.reading is not None), None)
        if work is None or work.reading is None:
            return
        logits = next(work.reading)
        if len(work.slot.tokens) == len(work.request.tokens):
            work.reading = None
            waited = time.monotonic() - work.request.arrived
            self.counters.first_token = [*self.counters.first_token[-999:], waited]
            self._take(work, logits)

    def _write(self) -> None:
        """One token of each text that is read."""
        writing = {w.slot.index: w for w in self._active if w.reading is None}
        if writing:
            found = self.model.decode({index: w.text[-1] for index, w in writing.items()})
            for index, logits in found.items():
                self._take(writing[index], logits)

    def _take(self, work: _Work, logits: np.ndarray) -> None:
        token = work.sampler.next(logits, work.text)
        work.text.append(token)
        work.made += 1
        self.counters.generated_tokens += 1
        work.request.emit(token)
        full = len(work.slot.tokens) >= self.model.context
        if token in self._ends or work.made >= work.request.limit or full:
            self._finish(work, None)

    def _finish(self, work: _Work, error: Exception | None) -> None:
        self._active.remove(work)
        work.request.emit(error)
