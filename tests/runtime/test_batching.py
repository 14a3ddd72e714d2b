"""What goes wrong with one request ends that request alone: a model that fails on purpose, and
others beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from compiler.runtime.batching import Batcher, BusyError, Request
from compiler.runtime.language import Slot
from compiler.runtime.sampling import Sampling

VOCABULARY, CONTEXT = 16, 64
POISON_READ, POISON_WRITE, POISON_NAN = 13, 14, 15


class Model:
    """Counts: behind token t comes t + 1, modulo 8. Texts that begin with poison fail where it
    says."""

    def __init__(self, slots: int = 3) -> None:
        self.context, self.chunk, self.vocabulary = CONTEXT, 4, VOCABULARY
        self.settings: dict[str, Any] = {"tokenizer": {"ends": []}}
        self.slots = [Slot(index) for index in range(slots)]
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def kept(self, slot: Slot, tokens: Sequence[int]) -> int:
        return 0

    def adopt(self, slot: Slot, tokens: Sequence[int]) -> int:
        return 0

    def prefill_steps(self, slot: Slot, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        slot.tokens.clear()
        for begin in range(0, len(tokens), self.chunk):
            if tokens[0] == POISON_READ:
                raise RuntimeError("a node failed")
            slot.tokens += tokens[begin : begin + self.chunk]
            yield self.logits(tokens[-1])

    def decode(self, tokens: dict[int, int]) -> dict[int, np.ndarray]:
        self.gate.wait(10)
        if self.broken or any(self.slots[index].tokens[0] == POISON_WRITE for index in tokens):
            raise RuntimeError("a step failed")
        for index, token in tokens.items():
            self.slots[index].tokens.append(token)
        found = {index: self.logits(token) for index, token in tokens.items()}
        for index in tokens:
            if self.slots[index].tokens[0] == POISON_NAN:
                found[index][3] = np.nan
        return found

    def logits(self, token: int) -> np.ndarray:
        return np.eye(VOCABULARY, dtype=np.float32)[(token + 1) % 8]


class Asked:
    """A request and what it got."""

    def __init__(
        self, tokens: list[int], limit: int = 20, how: Sampling | None = None, broken: bool = False
    ) -> None:
        self.got: list[int] = []
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.broken = broken
        self.request = Request(tokens, limit, how or Sampling(), self.emit)

    def emit(self, what: int | Exception | None) -> None:
        if isinstance(what, int):
            self.got.append(what)
        else:
            self.error = what
            self.ended.set()
        if self.broken:
            raise RuntimeError("Event loop is closed")


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(Model(), waiting=8)  # type: ignore[arg-type]
    yield made
    made.model.gate.set()  # type: ignore[attr-defined]
    made.close()


def counted(start: int, limit: int = 20) -> list[int]:
    return [(start + step) % 8 for step in range(1, limit + 1)]


@pytest.mark.parametrize("poison", [POISON_READ, POISON_WRITE, POISON_NAN])
def test_a_request_that_fails_fails_alone(batcher: Batcher, poison: int) -> None:
    good = [Asked([1, 2, 3, 4, 5, start]) for start in range(4)]
    bad = [Asked([poison, 1]) for _ in range(3)]
    for asked in [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3]]:
        batcher.submit(asked.request)
    for asked in [*good, *bad]:
        assert asked.ended.wait(10)
    assert [asked.got for asked in good] == [counted(start) for start in range(4)]
    assert all(asked.error is None for asked in good)
    assert all(asked.error is not None for asked in bad)
    assert batcher.counters.failed == 3 and batcher.alive and batcher.active == 0


def test_a_client_that_cannot_be_told_harms_nobody(batcher: Batcher) -> None:
    good, bad = [Asked([start]) for start in range(3)], [Asked([5], broken=True) for _ in range(4)]
    for asked in [*bad[:2], *good, *bad[2:]]:
        batcher.submit(asked.request)
    for asked in good:
        assert asked.ended.wait(10)
    assert [asked.got for asked in good] == [counted(start) for start in range(3)] and batcher.alive


@pytest.mark.parametrize("temperature", [1e-308, 5e-324, 100.0])
def test_no_number_ends_the_others(batcher: Batcher, temperature: float) -> None:
    good = [Asked([start]) for start in range(2)]
    odd = Asked(
        [3], how=Sampling(temperature, top_k=1 << 30, repetition_penalty=100, seed=(1 << 64) - 1)
    )
    for asked in [*good, odd]:
        batcher.submit(asked.request)
        assert asked.ended.wait(10) and asked.error is None
    assert [asked.got for asked in good] == [counted(start) for start in range(2)]


def test_a_model_that_is_broken_ends_its_requests_and_waits_for_better_times(
    batcher: Batcher,
) -> None:
    model: Any = batcher.model
    model.broken = True
    lost = Asked([1])
    batcher.submit(lost.request)
    assert lost.ended.wait(10) and isinstance(lost.error, RuntimeError)
    model.broken = False
    good = Asked([1])
    batcher.submit(good.request)
    assert good.ended.wait(10) and good.got == counted(1)


def test_a_waiting_client_that_leaves_frees_its_place(batcher: Batcher) -> None:
    model: Any = batcher.model
    model.gate.clear()
    busy = [Asked([1]) for _ in range(3)]
    for asked in busy:
        batcher.submit(asked.request)
    until = threading.Event()
    while batcher.active < 3:
        until.wait(0.01)
    gone = [Asked([2]) for _ in range(8)]
    for asked in gone:
        batcher.submit(asked.request)
    with pytest.raises(BusyError, match="8 requests"):
        batcher.submit(Asked([3]).request)
    for asked in gone:
        asked.request.cancelled.set()
    last = Asked([3])
    batcher.submit(last.request)
    assert batcher.queued == 1 and batcher.counters.cancelled == 8
    model.gate.set()
    assert last.ended.wait(10) and last.got == counted(3)


def test_tokens_that_the_model_does_not_have_are_refused(batcher: Batcher) -> None:
    for tokens in ([VOCABULARY], [-1], [0, 1 << 70], [], [1] * CONTEXT):
        with pytest.raises(ValueError, match="token"):
            batcher.submit(Asked(tokens).request)


def test_closing_ends_what_is_under_way_and_takes_no_more() -> None:
    model: Any = Model()
    batcher = Batcher(model)
    model.gate.clear()
    under_way = [Asked([1], limit=50) for _ in range(5)]
    for asked in under_way:
        batcher.submit(asked.request)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._stopped:
        closing.join(0.01)
    model.gate.set()
    closing.join(10)
    assert all(asked.ended.is_set() for asked in under_way)
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit(Asked([1]).request)
