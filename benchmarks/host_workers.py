"""Whether the host runs more requests a second with several segments at once on a thread each, or
with one segment at a time on all threads.

    python -m benchmarks.host_workers BUNDLE [THREADS]

Segments of the Edge TPUs are not computed: each takes its predicted time, asleep, and gives what it
gave once. So the cores are the host segments' own, as beside real Edge TPUs.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from compiler.runtime import Bundle, Device, Pipeline, Runner
from compiler.runtime.bench import random_inputs
from compiler.runtime.devices import Executable
from compiler.runtime.fleet import HostThreads
from compiler.runtime.manifest import SegmentEntry

WARM, RUNS, REPEATS = 8, 24, 3


class Recorded(Device):
    """Gives what the segments of a pipeline gave once."""

    def __init__(self, name: str, results: dict[int, list[np.ndarray]]) -> None:
        super().__init__(name)
        self._results = results

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        return _Sleep(segment, self._results[segment["index"]])


class _Sleep:
    def __init__(self, segment: SegmentEntry, results: list[np.ndarray]) -> None:
        self._seconds = sum(segment["predicted_ms"].values()) / 1e3
        self._results = results

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        time.sleep(self._seconds)
        return self._results


def recorded(bundle: Bundle, sample: dict[str, np.ndarray]) -> dict[int, list[np.ndarray]]:
    """By segment what it gives for a sample."""
    pipeline = Pipeline(bundle)
    values = pipeline.check_inputs(sample)
    found = {}
    for index in range(len(pipeline.segments)):
        results = pipeline.run_segment(index, values)
        found[index] = list(results.values())
        values.update(results)
    return found


def rate(bundle: Bundle, threads: HostThreads, sample: dict[str, np.ndarray]) -> float:
    """Results a second of the full pipeline, the best of some tries."""
    results = recorded(bundle, sample)
    tpus = [Recorded(f"tpu:{n}", results) for n in range(bundle.manifest["prediction"]["tpus"])]
    best = 0.0
    with Runner(bundle, tpus, threads) as runner:
        for _ in range(REPEATS):
            times = []
            for _ in runner.stream(itertools.repeat(sample, WARM + RUNS)):
                times.append(time.perf_counter())
            best = max(best, RUNS / (times[-1] - times[WARM - 1]))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("threads", type=int, nargs="?", default=2)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    sample = random_inputs(bundle.manifest["inputs"])
    for workers in range(1, options.threads + 1):
        found = rate(bundle, HostThreads(options.threads, workers), sample)
        print(f"{workers} workers, {options.threads} threads: {found:.1f} results/s")


if __name__ == "__main__":
    main()
