"""Tests the simulation of a program against the bundle that is written of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.reference
import pytest

from compiler.checks.difference import Difference
from compiler.checks.simulation import Simulation
from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.driver.options import BuildOptions
from compiler.partition import Program
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle, Pipeline
from tests.conftest import save
from tests.driver.test_joins import detector


def quantized(path: Path, options: BuildOptions) -> tuple[Program, list[sampling.Sample]]:
    options = options.suited_to("onnx", path)
    model = building.read(path, options)
    samples = sampling.load(options.calibration_path, model.graph.inputs)
    program = building.plan_program(model, options)
    return quantizing.quantize(program, samples, options), list(samples)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, BuildOptions]:
    path = save(tmp_path / "m.onnx", detector(one_layer=False))
    samples = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    return path, BuildOptions(calibration=tmp_path / "c.npz", quality=None)


def test_all_roundings_give_what_the_bundle_gives(
    case: tuple[Path, BuildOptions], tmp_path: Path
) -> None:
    path, options = case
    program, samples = quantized(path, options)
    building.build(path, tmp_path / "b", options)
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    ours, simulated = Difference(), Difference()
    with Simulation(program) as simulation:
        for sample in samples:
            want = simulation.run(sample, ())["y"]
            ours.add(pipeline.run(sample)["y"], want)
            simulated.add(simulation.run(sample, simulation.roundings)["y"], want)
    assert ours.sqnr_db is not None
    # The bundle was calibrated on three of four samples.
    assert simulated.sqnr_db == pytest.approx(ours.sqnr_db, abs=2)


def test_without_roundings_it_is_the_float_model(case: tuple[Path, BuildOptions]) -> None:
    path, options = case
    program, samples = quantized(path, options)
    session = onnx.reference.ReferenceEvaluator(str(path))
    (want,) = session.run(None, samples[0])
    with Simulation(program) as simulation:
        got = simulation.run(samples[0], ())["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_nodes_on_the_host_round_nothing(case: tuple[Path, BuildOptions]) -> None:
    path, options = case
    program, _ = quantized(path, options)
    nodes = list(program.model.graph)
    with Simulation(program) as simulation:
        assert simulation.active(()) == simulation.roundings
        assert simulation.active(nodes) == []
        first = simulation.roundings[0]
        left = simulation.active(first.nodes)
        assert first not in left and 0 < len(left) < len(simulation.roundings)
