"""Answers several texts at once by continuous batching: requests share the slots of decode, and
join and leave at any step.

One thread runs the model. At each turn it takes the next chunk of one text that is still being
read (prefill), then one token of each text that is being written (decode). A request waits in a
bounded queue until a slot is free.

Requests come from other threads, through the queue and its lock; tokens go back by each request's
`emit`. All else belongs to the model's thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.runtime.grammar import Constraint
from compiler.runtime.language import LEAST_COPIED, LanguageModel, Slot
from compiler.runtime.prefixes import PrefixStore
from compiler.runtime.sampling import Sampler, Sampling, Scored, scored

# A token, then None at the end of an answer, or the error that ended it.
Emitted = int | Scored | Exception | None

_FIRST_TOKENS_KEPT = 1000


class BusyError(Exception):
    """There is no room for a request."""


@dataclass
class Request:
    """A text to continue by up to `limit` tokens.

    emit:      gets each token, then None or the error that ended the answer. It is called in the
               thread of the model
    constraint: what the answer may be; None: anything
    likeliest: where given, tokens come as `Scored`, each with so many of the likeliest ones
    cancelled: set from any thread by whoever wants no more
    arrived:   seconds on the monotonic clock
    begun:     the same, where it got a slot; 0 before
    first_token: the same, where its first token was drawn; 0 before
    reused:    tokens of the prompt that were in the cache already
    """

    tokens: list[int]
    limit: int
    sampling: Sampling
    emit: Callable[[Emitted], None]
    likeliest: int | None = None
    constraint: Constraint | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    first_token: float = 0.0
    reused: int = 0


@dataclass
class Counters:
    """What happened so far; seconds to the first token are kept for the last thousand requests."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    first_token: list[float] = field(default_factory=list)


@dataclass
class _Work:
    """A request in a slot.

    text:    tokens of the prompt, then those of the answer
    prefill: the chunks of the prompt that are still to be read; None once all are
    """

    request: Request
    slot: Slot
    sampler: Sampler
    text: list[int]
    prefill: Iterator[np.ndarray] | None

    @property
    def generated(self) -> int:
        return len(self.text) - len(self.request.tokens)


class Batcher:
    """Runs requests on a model, in a thread of its own; `waiting` of them may queue for a slot.
    Prompts that were read are kept in a `store`.

    What goes wrong with one request ends that request alone.
    """

    def __init__(
        self, model: LanguageModel, waiting: int = 32, store: PrefixStore | None = None
    ) -> None:
        self.model = model
        self.waiting = waiting
        self._store = store
        self.counters = Counters()
        self._queue: deque[Request] = deque()
        self._active: list[_Work] = []
        self._ends = set(model.settings["tokenizer"]["ends"])
        self._stopped = False
        # Guards the queue and `_stopped`, which other threads change.
        self._changed = threading.Condition()
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

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have: one place of the context is left for the answer."""
        return self.model.context - 1

    def submit(self, *requests: Request) -> None:
        """Take requests, all or none, from any thread; each is answered by its `emit`.

        Raises BusyError where the queue is full, ValueError for tokens that the model cannot read.
        """
        for request in requests:
            self._check(request.tokens)
        with self._changed:
            if self._stopped:
                raise BusyError("the server is stopping")
            self._forget_cancelled()
            if len(self._queue) + len(requests) > self.waiting:
                self.counters.refused += len(requests)
                raise BusyError(f"{self.queued} requests are waiting already")
            self._queue += requests
            self.counters.requests += len(requests)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; requests under way end with an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        if self._store is not None:
            self._store.close()

    def _check(self, tokens: Sequence[int]) -> None:
        if not 1 <= len(tokens) <= self.longest_prompt:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; it must have 1 to {self.longest_prompt}"
            )
        largest = self.model.vocabulary - 1
        if min(tokens) < 0 or max(tokens) > largest:
            raise ValueError(f"the prompt has a token that is not from 0 to {largest}")

    # From here on, all runs in the model's thread.

    def _run(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._drop_cancelled()
                self._prefill_chunk()
                self._decode_step()
            except Exception as error:
                # Errors of a request were caught where they arose: this one belongs to nobody in
                # particular.
                for work in list(self._active):
                    self._fail(work, error)
        left = [work.request for work in self._active]
        for request in [*left, *self._queue]:
            _emit(request, RuntimeError("the server is stopping"))

    def _wait(self) -> bool:
        """Wait for something to do; False when there is nothing more to come."""
        with self._changed:
            while not (self._stopped or self._active or self._queue):
                self._changed.wait()
            return not self._stopped

    def _forget_cancelled(self) -> None:
        """Free the places of waiting requests whose clients left; `_changed` is held."""
        wanted = [request for request in self._queue if not request.cancelled.is_set()]
        self.counters.cancelled += len(self._queue) - len(wanted)
        self._queue = deque(wanted)

    def _admit(self) -> None:
        """Give free slots to waiting requests, in the order in which they came."""
        taken = {work.slot.index for work in self._active}
        free = [slot for slot in self.model.slots if slot.index not in taken]
        for request in self._next_requests(len(free)):
            slot = self._best_slot(free, request)
            free.remove(slot)
            try:
                work = self._begin(request, slot)
            except Exception as error:
                self.counters.failed += 1
                _emit(request, error)
                continue
            self._active.append(work)
            self.counters.prompt_tokens += len(request.tokens)

    def _next_requests(self, most: int) -> list[Request]:
        """Take up to `most` requests from the queue."""
        with self._changed:
            self._forget_cancelled()
            count = min(most, len(self._queue))
            return [self._queue.popleft() for _ in range(count)]

    def _best_slot(self, free: Sequence[Slot], request: Request) -> Slot:
        """The slot whose cache holds most of the prompt already; of equal ones the emptiest."""

        def preference(slot: Slot) -> tuple[int, int]:
            return self.model.kept(slot, request.tokens), -len(slot.tokens)

        return max(free, key=preference)

    def _begin(self, request: Request, slot: Slot) -> _Work:
        request.begun = time.monotonic()
        prefill = self._read(request, slot)
        return _Work(request, slot, Sampler(request.sampling), list(request.tokens), prefill)

    def _read(self, request: Request, slot: Slot) -> Iterator[np.ndarray]:
        """The logits behind each chunk of a prompt but for what the cache holds already."""
        # This runs when the prompt's turn comes, not when it gets its slot: prompts that were read
        # meanwhile may begin as it does.
        request.reused = self.model.adopt(slot, request.tokens)
        if self._store is not None:
            request.reused = self._restored(self._store, request, slot)
        self.counters.reused_tokens += request.reused
        yield from self.model.prefill_steps(slot, request.tokens)

    def _restored(self, store: PrefixStore, request: Request, slot: Slot) -> int:
        """How many tokens of a prompt a slot holds once the store was looked into."""
        # Never all, as the last one gives the logits.
        count, path = store.find(request.tokens[:-1])
        if path is None or count - request.reused < LEAST_COPIED:
            return request.reused
        held = store.read(path, self.model.row_shapes, count)
        if held is None:
            return request.reused
        self.model.write_cache(slot, request.tokens[:count], held)
        return count

    def _drop_cancelled(self) -> None:
        cancelled = [work for work in self._active if work.request.cancelled.is_set()]
        for work in cancelled:
            self.counters.cancelled += 1
            self._finish(work, None)

    def _prefill_chunk(self) -> None:
        """Read the next chunk of the prompt that came first and is not read yet."""
        unread = (work for work in self._active if work.prefill is not None)
        work = next(unread, None)
        if work is None or work.prefill is None:
            return
        try:
            logits = next(work.prefill)
        except Exception as error:
            self._fail(work, error)
            return
        is_whole = len(work.slot.tokens) == len(work.request.tokens)
        if is_whole:
            work.prefill = None
            self._keep(work)
            work.request.first_token = time.monotonic()
            self._count_first_token(work.request.first_token - work.request.arrived)
            self._append_token(work, logits)

    def _keep(self, work: _Work) -> None:
        """Give a prompt that was read to the store, where it is worth it."""
        tokens = work.request.tokens
        if self._store is not None and self._store.wants(tokens):
            self._store.keep(tokens, self.model.read_cache(work.slot, len(tokens)))

    def _count_first_token(self, seconds: float) -> None:
        # A new list: threads that read the counters keep the one that they have.
        kept = self.counters.first_token[-(_FIRST_TOKENS_KEPT - 1) :]
        self.counters.first_token = [*kept, seconds]

    def _decode_step(self) -> None:
        """Write one token of each text whose prompt is read."""
        writing = {work.slot.index: work for work in self._active if work.prefill is None}
        if not writing:
            return
        last_tokens = {index: work.text[-1] for index, work in writing.items()}
        try:
            logits = self.model.decode(last_tokens)
        except Exception:
            logits = self._decode_one_by_one(last_tokens, writing)
        for index, row in logits.items():
            self._append_token(writing[index], row)

    def _decode_one_by_one(
        self, last_tokens: dict[int, int], writing: dict[int, _Work]
    ) -> dict[int, np.ndarray]:
        """A step that failed, again for each text alone, which shows whose fault it was.

        The step that failed appended nothing, and a repeated one writes the same place of the
        cache.
        """
        logits: dict[int, np.ndarray] = {}
        for index, token in last_tokens.items():
            try:
                logits |= self.model.decode({index: token})
            except Exception as error:
                self._fail(writing[index], error)
        return logits

    def _append_token(self, work: _Work, logits: np.ndarray) -> None:
        """Draw the next token of a text from logits [V] and send it."""
        if np.isnan(logits).any():
            self._fail(work, ArithmeticError("its logits are not numbers"))
            return
        try:
            token = self._next_token(work, logits)
        except Exception as error:
            self._fail(work, error)
            return
        work.text.append(token)
        self.counters.generated_tokens += 1
        count = work.request.likeliest
        _emit(work.request, token if count is None else scored(token, logits, count))
        is_full = len(work.slot.tokens) >= self.model.context
        if token in self._ends or work.generated >= work.request.limit or is_full:
            self._finish(work, None)

    def _next_token(self, work: _Work, logits: np.ndarray) -> int:
        constraint = work.request.constraint
        if constraint is None:
            return work.sampler.next(logits, work.text)
        token = work.sampler.next(constraint.allowed(logits), work.text)
        constraint.take(token)
        return token

    def _fail(self, work: _Work, error: Exception) -> None:
        self.counters.failed += 1
        # What the cache holds of the text is not known.
        work.slot.tokens.clear()
        self._finish(work, error)

    def _finish(self, work: _Work, error: Exception | None) -> None:
        self._active.remove(work)
        _emit(work.request, error)


def _emit(request: Request, item: Emitted) -> None:
    try:
        request.emit(item)
    except Exception:
        # Who cannot be told any more has left.
        request.cancelled.set()
