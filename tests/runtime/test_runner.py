"""The pipeline over devices: same results in the same order, side by side, bounded, and through
failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, DeviceError, Pipeline, Runner, SegmentError, Simulated
from compiler.runtime.devices import DeviceChoiceError


def inputs(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture
def expected(bundle: Bundle) -> list[np.ndarray]:
    pipeline = Pipeline(bundle)
    return [pipeline.run(sample)["y"] for sample in inputs(20)]


def same(results: list[dict[str, np.ndarray]], expected: list[np.ndarray]) -> bool:
    """Bit for bit: the devices here all compute with TFLite's kernels on one thread or two."""
    return len(results) == len(expected) and all(
        np.array_equal(r["y"], e) for r, e in zip(results, expected, strict=True)
    )


@pytest.mark.parametrize("devices", ["cpu", "sim:1", "sim:2", "sim:5"])
def test_run_stream_and_async_agree(
    bundle: Bundle, expected: list[np.ndarray], devices: str
) -> None:
    async def all_at_once(runner: Runner) -> list[dict[str, np.ndarray]]:
        return list(await asyncio.gather(*(runner.run_async(sample) for sample in inputs(20))))

    async def in_turn(runner: Runner) -> list[dict[str, np.ndarray]]:
        async def source() -> AsyncIterator[dict[str, np.ndarray]]:
            for sample in inputs(20):
                yield sample

        return [result async for result in runner.stream_async(source())]

    with Runner(bundle, devices) as runner:
        assert same([runner.run(sample) for sample in inputs(20)], expected)
        assert same(list(runner.stream(inputs(20))), expected)
        assert same(asyncio.run(all_at_once(runner)), expected)
        assert same(asyncio.run(in_turn(runner)), expected)


def test_devices_work_side_by_side(bundle: Bundle, expected: list[np.ndarray]) -> None:
    """The second Edge TPU waits in each run until the first has begun with the next request, which
    it must have."""
    begun = threading.Semaphore(0)
    last = 20

    def first() -> None:
        begun.release()

    runs = iter(range(1, last + 1))

    def second() -> None:
        if next(runs) < last and not begun.acquire(timeout=20):
            raise AssertionError("the first Edge TPU is idle")

    with Runner(bundle, [Simulated("sim:0", 0, first), Simulated("sim:1", 0, second)]) as runner:
        begun.acquire(blocking=False)
        results = list(runner.stream(_behind(begun, inputs(20))))
    assert same(results, expected)


def _behind(
    begun: threading.Semaphore, samples: list[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """The start of the first request does not count."""
    yield samples[0]
    assert begun.acquire(timeout=20)
    yield from samples[1:]


def test_a_stream_takes_no_more_than_it_has_room_for(bundle: Bundle) -> None:
    taken = 0

    def endless() -> Iterator[dict[str, np.ndarray]]:
        nonlocal taken
        while True:
            taken += 1
            yield inputs(1)[0]

    with Runner(bundle, "sim:2", depth=3) as runner:
        stream = runner.stream(endless())
        for given in range(1, 8):
            next(stream)
            assert taken == given + 2
        stream.close()  # type: ignore[attr-defined]


def lossy(name: str, when: Callable[[int], bool]) -> Simulated:
    """A simulated Edge TPU that fails in the runs, counted from 0, that `when` says."""
    runs = iter(range(10**6))

    def broken() -> None:
        if when(next(runs)):
            raise DeviceError(f"{name}: USB transfer error 5")

    return Simulated(name, 0, broken)


def test_a_device_that_fails_once_goes_on(bundle: Bundle, expected: list[np.ndarray]) -> None:
    with Runner(bundle, [lossy("sim:0", lambda run: run == 7), Simulated("sim:1", 0)]) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        assert runner.notices == []


@pytest.mark.parametrize(("on_loss", "heir"), [("move", "sim:1"), ("cpu", "cpu")])
def test_a_lost_device_loses_no_request(
    bundle: Bundle, expected: list[np.ndarray], on_loss: str, heir: str
) -> None:
    with Runner(
        bundle, [lossy("sim:0", lambda run: run >= 7), Simulated("sim:1", 0)], on_loss=on_loss
    ) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        assert [runner.pipeline.device(i).name for i in (1, 3)] == [heir, "sim:1"]
        assert len(runner.notices) == 1 and "sim:0 is lost" in runner.notices[0]


def test_when_all_devices_are_lost_the_cpu_is_left(
    bundle: Bundle, expected: list[np.ndarray]
) -> None:
    with Runner(
        bundle, [lossy("sim:0", lambda run: run >= 3), lossy("sim:1", lambda run: run >= 9)]
    ) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        assert {runner.pipeline.device(i).name for i in range(5)} == {"cpu"}
        assert "the CPU takes over" in runner.notices[-1]


def test_stop_ends_the_stream_at_the_request_that_failed(
    bundle: Bundle, expected: list[np.ndarray]
) -> None:
    devices = [lossy("sim:0", lambda run: run >= 7), Simulated("sim:1", 0)]
    got = []
    what = pytest.raises(SegmentError, match=r"request 7: segment 1: sim:0: USB transfer error 5")
    with Runner(bundle, devices, on_loss="stop") as runner, what:
        for result in runner.stream(inputs(20)):
            got.append(result)
    assert same(got, expected[:7])


def test_errors_of_a_segment_name_it_and_leave_the_runner_whole(
    bundle: Bundle, expected: list[np.ndarray]
) -> None:
    with Runner(bundle, "cpu") as runner:
        opened = runner.pipeline._opened[2]
        assert opened is not None

        class Broken:
            def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
                raise RuntimeError("out of memory")

        runner.pipeline._opened[2] = dict.fromkeys(opened, Broken())
        with pytest.raises(SegmentError, match="request 0: segment 2 failed on cpu: out of memory"):
            list(runner.stream(inputs(3)))
        with pytest.raises(SegmentError, match="segment 2 failed on cpu"):
            runner.run(inputs(1)[0])
        runner.pipeline._opened[2] = opened
        assert same(list(runner.stream(inputs(20))), expected)


def test_cancelled_requests_do_not_run_on(bundle: Bundle) -> None:
    held, free = threading.Event(), threading.Event()
    runs = []

    def hold() -> None:
        runs.append(1)
        held.set()
        assert free.wait(20)

    with Runner(bundle, [Simulated("sim:0", 0, hold), Simulated("sim:1", 0)]) as runner:
        first, second = (runner.submit(sample) for sample in inputs(2))
        assert held.wait(20)
        assert second.cancel()
        free.set()
        assert first.result(20)["y"].shape == (1, 10)
        with pytest.raises(CancelledError):
            second.result()
    assert len(runs) == 1


def test_close_ends_everything(bundle: Bundle) -> None:
    runner = Runner(bundle, "sim:2")
    futures = [runner.submit(sample) for sample in inputs(20)]
    runner.close()
    assert all(future.done() for future in futures)
    assert not any(thread.name.startswith("runner") for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(inputs(1)[0])


def test_many_threads_may_run_one_bundle(bundle: Bundle, expected: list[np.ndarray]) -> None:
    found: dict[int, np.ndarray] = {}
    with Runner(bundle, "sim:2") as runner:
        threads = [
            threading.Thread(target=lambda i=i, s=s: found.update({i: runner.run(s)["y"]}))  # type: ignore[misc]
            for i, s in enumerate(inputs(20))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found[i], expected[i]) for i in range(20))


def test_bad_inputs_are_refused_before_anything_runs(bundle: Bundle) -> None:
    with Runner(bundle, "sim:2") as runner, pytest.raises(ValueError, match=r"\[1, 3, 16, 16\]"):
        list(runner.stream([{"x": np.zeros((1, 3, 16, 15), np.float32)}]))


@pytest.mark.parametrize("devices", ["usb:0", "gpu", "sim:0", "sim:x", "", "usb:0,cpu"])
def test_devices_that_are_not_there(bundle: Bundle, devices: str) -> None:
    with pytest.raises(DeviceChoiceError, match=devices or "auto"):
        Runner(bundle, devices)


def test_a_runner_does_not_survive_a_fork(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runner(bundle, "cpu") as runner:
        runner.submit(inputs(1)[0]).result()
        monkeypatch.setattr("compiler.runtime.executor.os.getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="forked"):
            runner.submit(inputs(1)[0])
        assert runner.run(inputs(1)[0])["y"].shape == (1, 10)


def test_nan_is_refused_and_infinity_taken(bundle: Bundle) -> None:
    x = inputs(1)[0]["x"]
    with Runner(bundle, "cpu") as runner:
        for wrong in (np.nan, -np.nan):
            spoilt = x.copy()
            spoilt[0, 1, 2, 3] = wrong
            with pytest.raises(ValueError, match=r"input 'x' .* holds NaN"):
                runner.run({"x": spoilt})
        assert np.isfinite(runner.run({"x": np.full_like(x, -np.inf)})["y"]).all()
