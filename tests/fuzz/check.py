"""What must hold of any model: passes are exact, the bundle is as good as int8 allows, and the same
each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from compiler.checks.difference import Difference
from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.driver.options import BuildOptions
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle, Pipeline
from tests.fuzz.simulate import simulated

# A bundle may lose this much more than rounding alone does: kernels round sums and tables by
# themselves, and where two errors of the simulation happen to cancel, the kernels' may not.
SLACK_DB = 2.0
# Above this, it is good enough whatever the simulation says.
GOOD_DB = 30.0


def check(model: onnx.ModelProto, folder: Path) -> tuple[float, float]:
    """(SQNR of the bundle, SQNR of the simulation), the least of all outputs. Raises
    AssertionError, or what fails."""
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    onnx.save(model, path)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal((40, *shape[1:])).astype(np.float32)
    np.savez(folder / "samples.npz", x=x[:8])
    options = BuildOptions(
        calibration=folder / "samples.npz",
        check_passes=True,
        force=True,
        partitioning=PartitionOptions(seconds=0.2),
    )
    building.build(path, folder / "bundle", options)
    first = _bytes(folder / "bundle")
    # Checked once, passes do the same again.
    options = replace(options, check_passes=False)
    building.build(path, folder / "bundle", options)
    assert first == _bytes(folder / "bundle"), "two builds differ"

    imported = building.read(path, options)
    samples = sampling.load(options.calibration, imported.graph.inputs)
    calibration, _ = samples.split()
    # So many that luck in one of them, where errors of rounding cancel, does not count.
    held_out = [{"x": row[None]} for row in x[8:]]
    with Reference(imported) as reference:
        wanted = [reference.run(sample) for sample in held_out]
    program = quantizing.quantize(building.plan_program(imported, options), calibration, options)
    with Reference(simulated(program)) as reference:
        rounded = [reference.run(sample) for sample in held_out]
    pipeline = Pipeline(Bundle.open(folder / "bundle"))
    got = [pipeline.run(sample) for sample in held_out]
    worst = (200.0, 200.0)
    for name in wanted[0]:
        ours, ideal = _sqnr(got, wanted, name), _sqnr(rounded, wanted, name)
        assert ours >= min(ideal - SLACK_DB, GOOD_DB), (
            f"'{name}' has {ours} dB, int8 allows {ideal}"
        )
        worst = min(worst, (ours, ideal))
    return worst


def _sqnr(
    got: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]], name: str
) -> float:
    difference = Difference()
    for one, other in zip(got, wanted, strict=True):
        difference.add(one[name], other[name])
    return difference.plain_sqnr_db


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
