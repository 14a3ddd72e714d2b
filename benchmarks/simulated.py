"""Plans beside what the runtime makes of them on simulated Edge TPUs: latency and pace.

    python -m benchmarks.simulated [NETWORK ...]

The networks are those of benchmarks.partitions. Segments take their predicted time on the clock of
the simulation, and are not computed.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

import compiler
from benchmarks.partitions import NAMES
from compiler.runtime import Pipeline
from compiler.runtime.devices import Cpu, Executable, Simulated
from compiler.runtime.fleet import Fleet
from compiler.runtime.inputs import Arrays
from compiler.runtime.manifest import Manifest, SegmentEntry, TensorEntry, fixed_shape
from compiler.runtime.simulation import simulate
from fixtures import networks

TPUS = (1, 2, 4, 8)
RESULTS = 200


class _Hollow:
    """A segment that gives zeros."""

    def __init__(self, segment: SegmentEntry) -> None:
        self._results = zeros(segment["outputs"])

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(self._results.values())


class HollowTpu(Simulated):
    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        return _Hollow(segment)


class HollowCpu(Cpu):
    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        return _Hollow(segment)


def zeros(tensors: Sequence[TensorEntry]) -> dict[str, np.ndarray]:
    """Arrays for entries of a manifest, without memory."""
    arrays = {}
    for tensor in tensors:
        number = np.zeros((), tensor["dtype"])
        arrays[tensor["name"]] = np.broadcast_to(number, fixed_shape(tensor))
    return arrays


def pipeline_of(plan: Manifest) -> Pipeline:
    """A plan on as many simulated Edge TPUs and host slots as it was made for."""
    prediction = plan["prediction"]
    slots = prediction.get("host_slots", 1)
    tpus = [HollowTpu(f"sim:{n}", 0) for n in range(prediction["tpus"])]
    bundle = compiler.Bundle(Path("nowhere"), plan)
    return Pipeline(bundle, fleet=Fleet(tpus, HollowCpu(slots, slots=slots)))


def pace(pipeline: Pipeline, sample: Arrays) -> float:
    """Seconds between results of the full pipeline, where it neither fills nor empties."""
    fleet = pipeline.fleet
    depth = sum(device.slots for device in fleet.devices) + 2
    requests = simulate(pipeline, itertools.repeat(sample, RESULTS), depth)
    ends = sorted(request.ended for request in requests)
    first, last = RESULTS // 4, 3 * RESULTS // 4
    return (ends[last] - ends[first]) / (last - first)


def compare(name: str, folder: Path) -> None:
    model = networks.generate(name, folder)
    for tpus, objective in itertools.product(TPUS, ("latency", "throughput")):
        partitioning = compiler.PartitionOptions(tpus, objective)  # type: ignore[arg-type]
        options = compiler.BuildOptions(partitioning=partitioning)
        plan = cast(Manifest, compiler.inspect(model, options).plan)
        pipeline = pipeline_of(plan)
        sample = zeros(pipeline.inputs)
        alone = 1e3 * max(request.seconds for request in simulate(pipeline, [sample] * tpus))
        interval = 1e3 * pace(pipeline, sample)
        planned = plan["prediction"]
        cells = [name, str(tpus), objective]
        for there, wanted in ((alone, planned["latency_ms"]), (interval, planned["interval_ms"])):
            cells += [f"{wanted:.2f}", f"{there:.2f}", f"{100 * (there / wanted - 1):+.1f}%"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(arguments: list[str]) -> None:
    heads = ["network", "TPUs", "objective", "latency", "run", "", "interval", "run", ""]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments or NAMES:
            compare(name, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
