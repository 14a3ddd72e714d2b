"""Execution by the flow of data: what may run at once does, in the right order, with nothing lost
and nothing kept."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Device, DeviceError, Pipeline, SegmentError
from compiler.runtime.dataflow import Flight, Flow
from compiler.runtime.devices import Executable
from compiler.runtime.dispatch import Dispatcher
from compiler.runtime.executor import Executor
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import SegmentEntry
from tests.schedules import (
    SHAPE,
    ComputingCpu,
    Trouble,
    bundle,
    computed,
    in_order,
    random_inputs,
    run_one,
    segment,
)

# One input for four tiles on four Edge TPUs, which the host joins.
TILES = [segment(n, n, ["x"], [f"tile{n}"]) for n in range(4)]
TILED = bundle([*TILES, segment(4, None, [f"tile{n}" for n in range(4)], ["y"])], ["x"], ["y"])


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_schedules(first: int) -> None:
    """benchmarks/schedules.py runs 2,000 of them."""
    for seed in range(first, first + 20):
        run_one(seed)


class Scripted(Device):
    """Calls `script` with a segment's entry and arrays; what that gives are its results."""

    def __init__(self, name: str, script) -> None:  # type: ignore[no-untyped-def]
        super().__init__(name)
        self.script = script

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        script = self.script

        class Run:
            def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
                results: list[np.ndarray] = script(segment, arrays)
                return results

        return Run()


def compute(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return computed(entry, arrays)


def test_tiles_of_one_request_run_at_once() -> None:
    """Each tile waits until all four run."""
    all_run = threading.Barrier(4, timeout=20)

    def tile(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
        all_run.wait()
        return compute(entry, arrays)

    fleet = Fleet([Scripted(f"tpu:{n}", tile) for n in range(4)], ComputingCpu(Trouble()))
    pipeline = Pipeline(TILED, fleet=fleet)
    executor = Executor(fleet)
    sample = random_inputs(TILED, random.Random(0))
    for _ in range(3):
        results = executor.run(pipeline, sample)
        assert np.array_equal(results["y"], in_order(TILED.manifest, sample)["y"])
    executor.close()


def test_a_lost_tile_is_made_elsewhere() -> None:
    runs: Counter[str] = Counter()

    def breaks(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
        runs["tpu:2"] += 1
        raise DeviceError("tpu:2: unplugged")

    tpus = [Scripted(f"tpu:{n}", breaks if n == 2 else compute) for n in range(4)]
    fleet = Fleet(tpus, ComputingCpu(Trouble()))
    pipeline = Pipeline(TILED, fleet=fleet)
    executor = Executor(fleet)
    for seed in range(3):
        sample = random_inputs(TILED, random.Random(seed))
        results = executor.run(pipeline, sample)
        assert np.array_equal(results["y"], in_order(TILED.manifest, sample)["y"])
    executor.close()
    assert runs["tpu:2"] == 2
    assert ["tpu:2 is lost" in notice for notice in fleet.notices] == [True]


def test_one_failure_of_several_is_told() -> None:
    all_run = threading.Barrier(4, timeout=20)

    def fails(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
        all_run.wait()
        raise ValueError("wrong")

    fleet = Fleet([Scripted(f"tpu:{n}", fails) for n in range(4)], ComputingCpu(Trouble()))
    executor = Executor(fleet)
    future = executor.submit(Pipeline(TILED, fleet=fleet), {"x": np.zeros(SHAPE, np.int64)})
    with pytest.raises(SegmentError, match=r"request 0: segment \d failed on tpu:\d: wrong"):
        future.result(20)
    executor.close()


def test_closing_ends_a_run_that_waits() -> None:
    held, free = threading.Event(), threading.Event()

    def hold(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
        held.set()
        assert free.wait(20)
        return compute(entry, arrays)

    fleet = Fleet([Scripted(f"tpu:{n}", hold) for n in range(4)], ComputingCpu(Trouble()))
    executor = Executor(fleet)
    pipeline = Pipeline(TILED, fleet=fleet)
    told: list[str] = []

    def run() -> None:
        try:
            executor.run(pipeline, {"x": np.zeros(SHAPE, np.int64)})
        except RuntimeError as error:
            told.append(str(error))

    waits = threading.Thread(target=run)
    waits.start()
    assert held.wait(20)
    closes = threading.Thread(target=executor.close)
    closes.start()
    waits.join(20)
    assert told == ["the runner was closed meanwhile"]
    free.set()
    closes.join(20)
    assert not closes.is_alive()


def test_a_fork_runs_without_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet([Scripted(f"tpu:{n}", compute) for n in range(4)], ComputingCpu(Trouble()))
    executor = Executor(fleet)
    pipeline = Pipeline(TILED, fleet=fleet)
    sample = random_inputs(TILED, random.Random(0))
    executor.run(pipeline, sample)
    with monkeypatch.context() as patch:
        patch.setattr("compiler.runtime.executor.os.getpid", lambda: -1)
        results = executor.run(pipeline, sample)
        with pytest.raises(RuntimeError, match="forked"):
            executor.submit(pipeline, sample)
    assert np.array_equal(results["y"], in_order(TILED.manifest, sample)["y"])
    executor.close()


def test_devices_are_let_go_with_the_executor() -> None:
    """At once, so that another program may have them."""
    gc.disable()
    try:
        fleet = Fleet([Scripted("tpu:0", compute)], ComputingCpu(Trouble()))
        executor = Executor(fleet)
        executor.run(Pipeline(TILED, fleet=fleet), random_inputs(TILED, random.Random(0)))
        executor.close()
        device = weakref.ref(fleet.tpus[0])
        del fleet, executor
        assert device() is None
    finally:
        gc.enable()


def test_the_oldest_request_goes_first_and_of_it_the_longest_path() -> None:
    """On one device: a short segment, and one in front of a long path."""
    made = bundle(
        [
            segment(0, 0, ["x"], ["short"], ms=1),
            segment(1, 0, ["x"], ["a"], ms=1),
            segment(2, None, ["a"], ["long"], ms=5),
        ],
        ["x"],
        ["short", "long"],
    )
    flow = Flow(made.manifest)
    assert flow.ranks == [1, 6, 5]
    assert not flow.is_chain
    tpu, cpu = Device("tpu"), Device("cpu")
    dispatcher = Dispatcher([tpu, cpu], lambda flight, index: cpu if index == 2 else tpu)
    x = np.zeros(SHAPE, np.int64)
    for number in (1, 0):
        dispatcher.begin(Flight(flow, {"x": x}, number))
    order = []
    while (task := dispatcher.take(tpu)) is not None:
        order.append((task.number, task.segment))
    assert order == [(0, 1), (0, 0), (1, 1), (1, 0)]


def test_what_writes_over_a_tensor_waits_for_its_readers() -> None:
    """Segment 1 writes where `cache` lies, which 0 reads before and 2 after it."""
    made = bundle(
        [
            segment(0, 0, ["cache"], ["before"]),
            {**segment(1, None, ["cache"], ["present"]), "in_place": {"present": "cache"}},
            segment(2, 1, ["cache"], ["after"]),
        ],
        ["cache"],
        ["before", "present", "after"],
    )
    assert Flow(made.manifest).needs == [set(), {0}, {1}]
    assert Flow(made.manifest).is_chain


def test_a_tensor_is_freed_when_its_last_reader_has_run() -> None:
    """Of a long program only what is still to be read is alive."""
    names = ["x", *(f"t{n}" for n in range(20))]
    segments = [segment(n, n % 2, [names[n]], [names[n + 1]]) for n in range(20)]
    # Beside the others, so that the program is no chain.
    segments.append(segment(20, None, ["x"], ["side"]))
    made = bundle(segments, ["x"], [names[-1], "side"])
    alive: weakref.WeakSet[np.ndarray] = weakref.WeakSet()
    most = 0

    def count(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
        nonlocal most
        results: list[np.ndarray] = [array.view(Counted) for array in compute(entry, arrays)]
        most = max(most, len(alive))
        alive.update(results)
        return results

    class Counted(np.ndarray):
        """An array that can be referred to weakly and hashed by identity."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    fleet = Fleet([Scripted(f"tpu:{n}", count) for n in range(2)], ComputingCpu(Trouble()))
    executor = Executor(fleet)
    pipeline = Pipeline(made, fleet=fleet)
    results = executor.run(pipeline, {"x": np.zeros(SHAPE, np.int64)})
    # What a segment reads, and perhaps what the thread of the other device is about to let go.
    assert most <= 3
    del results
    executor.close()
    gc.collect()
    assert not alive


def test_the_host_runs_as_many_segments_as_it_has_slots() -> None:
    """Two of four segments on the host run at once, and never more."""
    at_once = threading.Barrier(2, timeout=20)

    class Cpu(ComputingCpu):
        def open(self, folder: Path, segment: SegmentEntry) -> Executable:
            def meet(entry: SegmentEntry, arrays: list[np.ndarray]) -> list[np.ndarray]:
                at_once.wait()
                return compute(entry, arrays)

            return Scripted("cpu", meet).open(folder, segment)

    made = bundle([segment(n, None, ["x"], [f"y{n}"]) for n in range(4)], ["x"], ["y0", "y3"])
    fleet = Fleet([], Cpu(Trouble(), slots=2))
    executor = Executor(fleet)
    sample = random_inputs(made, random.Random(1))
    results = executor.run(Pipeline(made, fleet=fleet), sample)
    wanted = in_order(made.manifest, sample)
    assert all(np.array_equal(results[name], wanted[name]) for name in ("y0", "y3"))
    executor.close()
