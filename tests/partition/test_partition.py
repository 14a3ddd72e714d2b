"""The contract of `partition`, on real networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph import is_constant, origin_of, values_read
from compiler.partition import PartitionOptions, Program
from fixtures import demo, light
from tests.conftest import save, small_network


def program(path: Path) -> Program:
    return building.plan_program(building.read(path, BuildOptions()), BuildOptions())


def check_contract(made: Program) -> None:
    placed = [node for segment in made.plan.segments for node in segment.nodes]
    assert sorted(map(id, placed)) == sorted(map(id, made.model.graph))
    known = set(made.model.graph.inputs)
    for segment in made.plan.segments:
        assert set(segment.inputs) <= known
        inside = set(segment.inputs)
        for node in segment.nodes:
            assert made.plan.placements[node].device == segment.device
            assert {v for v in values_read(node) if not is_constant(v)} <= inside
            inside |= set(node.outputs)
        known |= set(segment.outputs)
        if segment.device == "tpu":
            assert segment.layers
            assert segment.cached + segment.streamed == segment.parameter_bytes
    for tpu in {s.tpu for s in made.plan.segments} - {None}:
        assert sum(s.cached for s in made.plan.segments if s.tpu == tpu) <= made.target.sram_bytes
    assert set(made.model.graph.outputs) <= known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "inception_v1", "inception_v2", "shufflenet"])
def test_contract(name: str, tmp_path: Path) -> None:
    check_contract(program(light.generate(name, tmp_path / "m.onnx")))


@pytest.mark.slow
def test_contract_when_tiled(tmp_path: Path) -> None:
    made = program(demo.generate(tmp_path)[0])
    check_contract(made)
    assert sum(s.device == "tpu" for s in made.plan.segments) == 1
    spread = building.partition_model(made.model, "usb3", PartitionOptions(tpus=6))
    check_contract(spread)
    assert len({s.tpu for s in spread.plan.segments} - {None}) == 5
    assert not any(s.streamed for s in spread.plan.segments)


def test_host_reasons(tmp_path: Path) -> None:
    made = program(save(tmp_path / "m.onnx", small_network()))
    check_contract(made)
    reasons = {
        origin_of(n): p.reason for n, p in made.plan.placements.items() if p.device == "host"
    }
    assert (
        "LOCAL_RESPONSE_NORMALIZATION" in reasons["normalise"]
        and "probability" in reasons["softmax"]
    )


@pytest.mark.parametrize(("filters", "device"), [(1, "host"), (2, "tpu")])
def test_later_segments_that_move_more_than_they_multiply(
    filters: int, device: str, tmp_path: Path
) -> None:
    """Behind rows of a softmax, as distances of boxes are read off: one filter multiplies each
    value once."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[1,3,8,8] x) => (float[1,{filters},8,8] y) {{
        c = Conv (x, w)
        s = Softmax <axis = 1> (c)
        y = Conv (s, v)
    }}"""
    proto = onnx.parser.parse_model(text)
    arrays = {
        "w": np.ones((16, 3, 1, 1), np.float32),
        "v": np.ones((filters, 16, 1, 1), np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    made = program(save(tmp_path / "m.onnx", proto))
    placements = {origin_of(n): p for n, p in made.plan.placements.items() if n.op_type == "Conv2D"}
    assert [p.device for p in placements.values()] == ["tpu", device]
