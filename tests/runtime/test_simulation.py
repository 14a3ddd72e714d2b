"""Simulated devices on a clock of their own: what takes how long, and what waits for what."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from compiler.runtime import Bundle, DeviceError, Pipeline, Runner, Simulated
from compiler.runtime.bench import bench, planned_spans
from compiler.runtime.devices import Link
from compiler.runtime.fleet import Fleet
from compiler.runtime.simulation import Simulation, simulate
from tests.conftest import Cli
from tests.schedules import (
    Computing,
    ComputingCpu,
    Trouble,
    bundle,
    in_order,
    random_bundle,
    random_inputs,
    segment,
)

TILES = [segment(n, n, ["x"], [f"tile{n}"], ms=2.0) for n in range(4)]
JOIN = segment(4, None, [f"tile{n}" for n in range(4)], ["y"], ms=0.25)
TILED = bundle([*TILES, JOIN], ["x"], ["y"])


class Timed(Simulated):
    """A simulated device that computes the segments of tests/schedules.py."""

    def __init__(self, name: str, link: Link | None = None, trouble: Trouble | None = None) -> None:
        super().__init__(name, 0, link=link)
        self.open = Computing(name, trouble or Trouble()).open  # type: ignore[method-assign]


def pipeline(made: Bundle, tpus: Sequence[Timed], slots: int = 1) -> Pipeline:
    return Pipeline(made, fleet=Fleet(tpus, ComputingCpu(Trouble(), slots)))


def run(made: Pipeline, count: int = 1, depth: int = 1) -> list[Simulation]:
    dice = random.Random(0)
    samples = [random_inputs(made.bundle, dice) for _ in range(count)]
    requests = simulate(made, samples, depth, keep=True)
    for request, sample in zip(requests, samples, strict=True):
        wanted = in_order(made.bundle.manifest, sample)
        assert all(np.array_equal(request.results[name], wanted[name]) for name in wanted)
    return requests


@pytest.mark.parametrize(("tpus", "ms"), [(4, 2.25), (2, 4.25), (1, 8.25)])
def test_four_tiles_take_the_time_of_one_on_four_devices(tpus: int, ms: float) -> None:
    (request,) = run(pipeline(TILED, [Timed(f"sim:{n}") for n in range(tpus)]))
    assert request.seconds * 1e3 == pytest.approx(ms)


def test_devices_on_one_link_wait_for_each_other() -> None:
    """Each tile needs 1 ms of the link, 1 ms of the device, 1 ms of the link."""
    times = {"in": 0.75, "stream": 0.25, "invoke": 0.5, "compute": 0.5, "out": 1.0}
    tiles = [{**tile, "predicted_ms": times} for tile in TILES[:2]]
    made = bundle(tiles, ["x"], ["tile0", "tile1"])
    (alone,) = run(pipeline(made, [Timed("sim:0"), Timed("sim:1")]))
    assert alone.seconds * 1e3 == pytest.approx(3)
    link = Link()
    (shared,) = run(pipeline(made, [Timed("sim:0", link), Timed("sim:1", link)]))
    assert shared.seconds * 1e3 == pytest.approx(4)
    assert [(span.begin * 1e3, span.end * 1e3) for span in shared.spans] == [
        pytest.approx((0, 3)),
        pytest.approx((0, 4)),
    ]


def test_the_host_has_slots() -> None:
    made = bundle([segment(n, None, ["x"], [f"y{n}"]) for n in range(4)], ["x"], ["y0", "y3"])
    for slots, ms in ((1, 4), (2, 2), (4, 1), (8, 1)):
        (request,) = run(pipeline(made, [], slots))
        assert request.seconds * 1e3 == pytest.approx(ms)


def test_several_host_segments_at_once_are_slower_as_planned() -> None:
    """Four at once get twice as much done as one at a time; alone a segment is as fast as ever."""
    for count, ms in ((1, 1), (40, 20)):
        segments = [segment(n, None, ["x"], [f"y{n}"]) for n in range(count)]
        made = bundle(segments, ["x"], ["y0"])
        made.manifest["prediction"].update({"host_slots": 4, "host_gain": 2.0})
        (request,) = run(pipeline(made, [], slots=4))
        assert request.seconds * 1e3 == pytest.approx(ms)


def test_the_longest_path_goes_first() -> None:
    """The oldest segment first would take 7 ms: the long path would start behind two others."""
    made = bundle(
        [
            segment(0, 0, ["x"], ["a"], ms=1),
            segment(1, 0, ["x"], ["b"], ms=1),
            segment(2, 0, ["x"], ["c"], ms=1),
            segment(3, None, ["c"], ["d"], ms=4),
        ],
        ["x"],
        ["a", "b", "d"],
    )
    (request,) = run(pipeline(made, [Timed("sim:0")]))
    assert request.seconds * 1e3 == pytest.approx(5)


def test_a_full_pipeline_goes_at_the_pace_of_its_busiest_device() -> None:
    made = bundle(
        [
            segment(0, None, ["x"], ["a"], ms=1),
            segment(1, 0, ["a"], ["b"], ms=2),
            {**segment(2, 1, ["b"], ["c"], ms=4), "replicas": [2]},
            segment(3, None, ["c"], ["y"], ms=0.5),
        ],
        ["x"],
        ["y"],
    )
    devices = [Timed(f"sim:{n}") for n in range(3)]
    requests = run(pipeline(made, devices), 40, depth=6)
    ends = [request.ended * 1e3 for request in requests]
    assert (ends[35] - ends[5]) / 30 == pytest.approx(2, rel=0.02)
    # Request n runs on the replica whose turn it is.
    for number, request in enumerate(requests):
        span = next(span for span in request.spans if span.index == 2)
        assert span.device == f"sim:{1 + number % 2}"


def test_requests_follow_each_other_through_devices_that_alternate_with_the_host() -> None:
    """Three segments on each of two Edge TPUs, the host between any two. If the longest path of all
    requests went first, the second Edge TPU would wait until all requests have left the first."""
    segments: list[dict[str, Any]] = []
    for number in range(6):
        tpu = number // 3
        read, given = f"t{2 * number}", f"t{2 * number + 1}"
        segments.append(segment(2 * number, tpu, [read], [given], ms=2))
        segments.append(segment(2 * number + 1, None, [given], [f"t{2 * number + 2}"], ms=0.125))
    planned = pipeline(bundle(segments, ["t0"], ["t12"]), [Timed("sim:0"), Timed("sim:1")])
    ends = [request.ended * 1e3 for request in run(planned, 60, depth=5)]
    assert (ends[45] - ends[15]) / 30 == pytest.approx(6, rel=0.02)


def test_requests_that_come_at_their_times_wait_for_each_other() -> None:
    """Segments of 2 ms and 1 ms on two devices; the second request comes when the first is half
    done, the third when all is idle."""
    made = bundle(
        [segment(0, 0, ["x"], ["a"], ms=2), segment(1, 1, ["a"], ["y"], ms=1)], ["x"], ["y"]
    )
    planned = pipeline(made, [Timed("sim:0"), Timed("sim:1")])
    samples = [random_inputs(made, random.Random(n)) for n in range(3)]
    requests = simulate(planned, samples, arrivals=[0.0, 0.001, 0.010])
    assert [request.arrived * 1e3 for request in requests] == pytest.approx([0, 1, 10])
    assert [request.seconds * 1e3 for request in requests] == pytest.approx([3, 4, 3])


def test_no_schedule_beats_its_bounds() -> None:
    """A request takes no less than its longest path and its busiest device, and no more than all
    segments in a row; no device runs two at a time."""
    for seed in range(40):
        dice = random.Random(seed)
        made = random_bundle(dice)
        planned = pipeline(made, [Timed(f"sim:{n}") for n in range(4)])
        (request,) = run(planned)
        seconds = [sum(s["predicted_ms"].values()) / 1e3 for s in made.manifest["segments"]]
        assert request.seconds <= sum(seconds) + 1e-9
        assert request.seconds >= max(planned.flow.ranks) / 1e3 - 1e-9
        by_device = sorted(request.spans, key=lambda span: (span.device, span.begin))
        for span, after in itertools.pairwise(by_device):
            assert span.device != after.device or after.begin >= span.end - 1e-9


def test_a_lost_device_is_replaced_in_a_simulation() -> None:
    runs = itertools.count()

    def lose(name: str) -> bool:
        return name == "sim:1" and next(runs) >= 2

    trouble = Trouble(lose=lose)
    made = pipeline(TILED, [Timed(f"sim:{n}", trouble=trouble) for n in range(4)])
    requests = run(made, 6)
    assert requests[0].seconds * 1e3 == pytest.approx(2.25)
    # Two tiles on one device from then on.
    assert requests[-1].seconds * 1e3 == pytest.approx(4.25)
    assert any("sim:1 is lost" in notice for notice in made.fleet.notices)


def test_bench_compares_simulated_with_planned(small_bundle: Any, run_cli: Cli) -> None:
    made = Bundle.open(small_bundle)
    with Runner(made, [Simulated(f"sim:{n}", 0) for n in range(2)]) as runner:
        figures = bench(runner, 10)
    assert figures["simulated"]
    latency = figures["predicted_latency_ms"]
    assert figures["latency_ms"]["p99"] == pytest.approx(latency, rel=1e-3)
    rate = figures["predicted_results_per_second"]
    assert figures["results_per_second"] == pytest.approx(rate, rel=0.05)
    for row in figures["segments"]:
        for name in ("start_ms", "end_ms", "ms"):
            assert row[name] == pytest.approx(row[f"predicted_{name}"], rel=1e-3, abs=1e-3)
    code, out, _ = run_cli("bench", small_bundle, "--devices", "sim:2", "--runs", 3)
    assert code == 0 and "simulated latency" in out and "plan" in out
    with Runner(made, "cpu") as runner:
        assert not bench(runner, 2)["simulated"]


def test_without_planned_starts_segments_follow_each_other() -> None:
    spans = planned_spans(TILED.manifest["segments"])
    assert [span.begin * 1e3 for span in spans] == pytest.approx([0, 2, 4, 6, 8])
    planned = [{**made, "start_ms": 1.5} for made in TILES]
    assert [span.begin * 1e3 for span in planned_spans(planned)] == pytest.approx([1.5] * 4)  # type: ignore[arg-type]


def test_a_device_error_that_nobody_may_mend_ends_the_simulation() -> None:
    made = Pipeline(
        TILED,
        fleet=Fleet(
            [Timed("sim:0", trouble=Trouble(lose=lambda name: True))],
            ComputingCpu(Trouble()),
            "stop",
        ),
    )
    with pytest.raises(Exception, match="sim:0: unplugged") as raised:
        run(made)
    assert isinstance(raised.value.__cause__, DeviceError)
