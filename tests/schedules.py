"""Random programs on random devices, some of which keep what they compute: made up of integer
arithmetic, so that whatever the schedule, results are equal to the last bit or wrong."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from compiler.runtime import Bundle, Device, DeviceError, Pipeline, SegmentError
from compiler.runtime.devices import Cpu, Executable
from compiler.runtime.executor import Executor
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import Manifest, SegmentEntry
from compiler.runtime.remote import Feed, Tensor, TensorLostError

SHAPE = (3, 5)
Arrays = dict[str, np.ndarray]


def entry(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "int64", "shape": list(SHAPE), "layout": None}


def segment(
    index: int, tpu: int | None, reads: Sequence[str], gives: Sequence[str], ms: float = 1.0
) -> dict[str, Any]:
    """As the manifest has it, as far as the runtime looks at it."""
    return {
        "index": index,
        "device": "host" if tpu is None else "tpu",
        "tpu": tpu,
        "inputs": [entry(name) for name in reads],
        "outputs": [entry(name) for name in gives],
        "parameter_bytes": 0,
        "predicted_ms": {"compute": ms},
        "compiled": None,
        "files": [{"path": f"{index}", "sha256": "", "bytes": 0}],
    }


def bundle(
    segments: Sequence[dict[str, Any]], inputs: Sequence[str], outputs: Sequence[str]
) -> Bundle:
    program = {
        "inputs": [entry(name) for name in inputs],
        "outputs": [entry(name) for name in outputs],
        "segments": list(segments),
        "prediction": {},
    }
    return Bundle(Path("nowhere"), cast(Manifest, program))


def random_bundle(dice: random.Random, in_place: bool = False) -> Bundle:
    """Up to 12 segments on the host and up to 4 Edge TPUs, some with replicas; each reads some
    tensors that are there and gives one or two. With `in_place` one on the host may write its first
    result over an input of the program."""
    there = [f"in{number}" for number in range(dice.randint(1, 2))]
    inputs = list(there)
    tpus = dice.randint(1, 4)
    segments = []
    read: set[str] = set()
    for index in range(dice.randint(1, 12)):
        # Recent tensors make long programs, all of them wide ones.
        recent = there[-dice.choice([1, 2, len(there)]) :]
        reads = dice.sample(recent, dice.randint(1, min(3, len(recent))))
        gives = [f"t{index}.{number}" for number in range(dice.randint(1, 2))]
        tpu = dice.choice([None, *range(tpus)])
        made = segment(index, tpu, reads, gives, dice.uniform(0.1, 3))
        others = [number for number in range(tpus) if number != tpu]
        if tpu is not None and others and dice.random() < 0.3:
            made["replicas"] = dice.sample(others, dice.randint(1, len(others)))
        written = [name for name in reads if name in inputs]
        if in_place and tpu is None and written:
            made["in_place"] = {gives[0]: written[0]}
            in_place = False
        segments.append(made)
        read |= set(reads)
        there += gives
    unread = [name for name in there if name not in read]
    extra = dice.sample(there, 1)
    return bundle(segments, inputs, list(dict.fromkeys([*unread, *extra])))


def computed(made: SegmentEntry, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a segment gives: order and values of what it reads matter."""
    names = [tensor["name"] for tensor in made["inputs"]]
    over = made.get("in_place", {})
    total = np.full(SHAPE, made["index"] + 1, np.int64)
    for name, array in zip(names, arrays, strict=True):
        if name not in over.values():
            total = total * 1_000_003 + array  # wraps around
    results = []
    for number, tensor in enumerate(made["outputs"]):
        result = total * (number + 1) ^ number
        if tensor["name"] in over:
            # As a cache gets rows: where it has others, it stays as it is.
            cache = arrays[names.index(over[tensor["name"]])]
            cache[1] = result[1]
            result = cache
        results.append(result)
    return results


def in_order(manifest: Manifest, inputs: Arrays) -> Arrays:
    """The outputs, computed segment by segment without any runtime."""
    values = {name: array.copy() for name, array in inputs.items()}
    for made in manifest["segments"]:
        arrays = [values[tensor["name"]] for tensor in made["inputs"]]
        results = computed(made, arrays)
        for tensor, result in zip(made["outputs"], results, strict=True):
            values[tensor["name"]] = result
    return {tensor["name"]: values[tensor["name"]] for tensor in manifest["outputs"]}


@dataclass
class Trouble:
    """What may go wrong in a run; each is called with the device's name or the segment's index."""

    delay: Callable[[], float] = lambda: 0.0
    lose: Callable[[str], bool] = lambda name: False
    fail: Callable[[int], bool] = lambda index: False
    runs: Counter[int] = field(default_factory=Counter)


class _Computed:
    """A segment on a device that checks that it has no more runs at a time than slots."""

    def __init__(self, device: Device, made: SegmentEntry, trouble: Trouble) -> None:
        self._device = device
        self._segment = made
        self._trouble = trouble

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        running = _running[self._device]
        assert running.acquire(blocking=False), f"{self._device.name} runs too many at a time"
        try:
            return self._run(arrays)
        finally:
            running.release()

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        seconds = self._trouble.delay()
        if seconds:
            time.sleep(seconds)
        if self._trouble.lose(self._device.name):
            raise DeviceError(f"{self._device.name}: unplugged")
        index = self._segment["index"]
        if self._trouble.fail(index):
            raise ValueError("cannot be computed")
        results = computed(self._segment, arrays)
        self._trouble.runs[index] += 1
        return results


_running: dict[Device, threading.Semaphore] = {}


class Computing(Device):
    """Computes segments of these programs."""

    def __init__(self, name: str, trouble: Trouble) -> None:
        super().__init__(name)
        self._trouble = trouble
        _running[self] = threading.Semaphore(1)

    def open(self, folder: Path, segment: SegmentEntry) -> _Computed:
        return _Computed(self, segment, self._trouble)


class Holding(Computing):
    """Keeps what it computes, and loses all of it when it fails."""

    holds_tensors = True

    def __init__(self, name: str, trouble: Trouble) -> None:
        super().__init__(name, trouble)
        self.era = 0

    def open(self, folder: Path, segment: SegmentEntry) -> _Held:
        return _Held(self, segment, self._trouble)


class _Held(_Computed):
    def run_there(self, feeds: list[np.ndarray | Feed]) -> list[Tensor]:
        device = cast(Holding, self._device)
        arrays = [feed.tensor.fetch() if isinstance(feed, Feed) else feed for feed in feeds]
        era = device.era
        try:
            results = self.run(arrays)
        except DeviceError:
            device.era += 1
            raise
        return [_HeldArray(device, era, result) for result in results]


@dataclass(frozen=True)
class _HeldArray:
    device: Holding
    era: int
    array: np.ndarray

    def fetch(self) -> np.ndarray:
        if self.era != self.device.era:
            raise TensorLostError(f"{self.device.name}: it is gone", self.device)
        return self.array


class ComputingCpu(Cpu):
    """Likewise, with several slots; it is never lost."""

    def __init__(self, trouble: Trouble, slots: int = 1) -> None:
        super().__init__(1, slots=slots)
        self._trouble = trouble
        _running[self] = threading.Semaphore(slots)

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        return _Computed(self, segment, self._trouble)


def random_inputs(made: Bundle, dice: random.Random) -> Arrays:
    rng = np.random.default_rng(dice.randrange(2**32))
    names = [tensor["name"] for tensor in made.manifest["inputs"]]
    return {name: rng.integers(-(2**40), 2**40, SHAPE) for name in names}


def run_one(seed: int, longest_delay: float = 2e-4) -> None:
    """A random program on random devices with random delays and losses: each request has the
    results that it has in order, and is answered once; those that were cancelled or failed are the
    only ones without."""
    dice = random.Random(seed)
    kinds = dice.choice([[Computing], [Holding], [Computing, Holding]])
    # A request that begins again finds what it has written, which is right for a cache only.
    made = random_bundle(dice, in_place=Holding not in kinds)
    losses = dice.choice([0.0, 0.02, 0.2])
    failures = dice.choice([0.0, 0.0, 0.02])
    chance = random.Random(seed + 1)  # of the threads: which run it meets depends on the schedule
    trouble = Trouble(
        delay=lambda: chance.choice([0.0, chance.uniform(0, longest_delay)]),
        lose=lambda name: name != "cpu" and chance.random() < losses,
        fail=lambda index: chance.random() < failures,
    )
    tpus = [dice.choice(kinds)(f"tpu:{number}", trouble) for number in range(dice.randint(0, 5))]
    fleet = Fleet(tpus, ComputingCpu(trouble, dice.randint(1, 3)), dice.choice(["move", "cpu"]))
    pipeline = Pipeline(made, fleet=fleet)
    executor = Executor(fleet)
    samples = [random_inputs(made, dice) for _ in range(dice.randint(1, 6))]
    answers: Counter[Future[Arrays]] = Counter()
    futures = []
    for sample in samples:
        own = {name: array.copy() for name, array in sample.items()}
        future = executor.submit(pipeline, own)
        future.add_done_callback(lambda done: answers.update([done]))
        futures.append(future)
        if dice.random() < 0.05:
            dice.choice(futures).cancel()
    try:
        for sample, future in zip(samples, futures, strict=True):
            _check(made, sample, future, may_fail=failures > 0)
    finally:
        executor.close()
        for device in fleet.devices:
            del _running[device]
    assert all(answers[future] == 1 for future in futures)
    assert not executor._requests


def _check(made: Bundle, sample: Arrays, future: Future[Arrays], may_fail: bool) -> None:
    try:
        results = future.result(timeout=60)
    except CancelledError:
        assert future.cancelled()
        return
    except SegmentError as error:
        assert may_fail and "cannot be computed" in str(error)
        return
    wanted = in_order(made.manifest, sample)
    assert results.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array_equal(results[name], array), name
