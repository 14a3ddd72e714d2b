"""Layers that several Edge TPUs run at once: the same numbers, and faster."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler import BuildOptions, PartitionOptions, Runner, build, planner
from compiler.driver import build as building
from compiler.driver import quantizing
from compiler.partition import Program, partition, partition_for_all
from compiler.partition.placement import place_nodes
from compiler.partition.problem import units_of
from compiler.partition.segments import assemble
from compiler.partition.shards import PARTIAL_SUMS, can_divide, divide
from compiler.partition.task import Task
from compiler.quantize.samples import Samples
from compiler.targets import Target

WIDTH, HIDDEN = 64, 384
# Little memory, and a slow link for what does not fit.
SMALL_TARGET = """
name = "small"
description = "small"
chip = "edgetpu"
tile_bytes = 20000
activation_bytes = 0
invoke = 0.02e-3
operator = 7.7e-6
stream = 5e6
down = 454e6
up = 66e6
"""


def layers(path: Path, sizes: list[int], relu: bool = True) -> Path:
    """A chain of products, with Relu between them."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        array = (rng.random((inputs, outputs), np.float32) - 0.5) / np.float32(np.sqrt(inputs))
        bias = rng.standard_normal(outputs).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        weights.append(numpy_helper.from_array(bias, f"b{index}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [f"y{index}"]))
        value = f"y{index}"
        if relu and index < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, sizes[0]))],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, (1, sizes[-1]))],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def rewritten(path: Path) -> ir.Model:
    options = BuildOptions()
    return building.rewrite(building.read(path, options), options)


def results(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("sizes", [[WIDTH, HIDDEN], [WIDTH, HIDDEN, WIDTH]])
@pytest.mark.parametrize("parts", [2, 3])
def test_shards_compute_what_the_file_computes(
    tmp_path: Path, sizes: list[int], parts: int
) -> None:
    path = layers(tmp_path / "x.onnx", sizes)
    x = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)
    want = ort.InferenceSession(path).run(None, {"x": x})[0]
    model = rewritten(path)
    chosen = [node for node in model.graph if can_divide(node)]
    assert len(chosen) == len(sizes) - 1
    divide(model, chosen, parts, 64)
    np.testing.assert_allclose(results(model, x), want, rtol=1e-5, atol=1e-5)
    shards = [node for node in model.graph if can_divide(node)]
    assert len(shards) == parts * len(chosen)
    # The second layer's shards take what the first one's made: nothing is joined in between.
    joins = [node for node in model.graph if node.op_type == "Concat"]
    assert len(joins) == (1 if len(sizes) == 2 else 0)
    added = [node for node in model.graph if PARTIAL_SUMS in node.metadata_props.values()]
    assert len(added) == (parts - 1 if len(sizes) == 3 else 0)


def test_a_hidden_value_that_others_read_is_joined(tmp_path: Path) -> None:
    path = layers(tmp_path / "x.onnx", [WIDTH, HIDDEN, WIDTH])
    proto = onnx.load(path)
    proto.graph.output.append(helper.make_tensor_value_info("r0", TensorProto.FLOAT, (1, HIDDEN)))
    onnx.save(proto, path)
    x = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)
    want = ort.InferenceSession(path).run(None, {"x": x})
    model = rewritten(path)
    divide(model, [node for node in model.graph if can_divide(node)], 2, 64)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    for found, expected in zip(session.run(None, {"x": x}), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert PARTIAL_SUMS not in {
        text for node in model.graph for text in node.metadata_props.values()
    }


def test_wide_layers_on_more_edge_tpus(tmp_path: Path) -> None:
    """4096 x 4096, twice: four Edge TPUs hold what one streams."""
    model = rewritten(layers(tmp_path / "x.onnx", [4096, 4096, 4096]))
    one = partition(model, Target.load(), PartitionOptions(1))
    _, four = partition_for_all(model, Target.load(), PartitionOptions(4))
    assert four.latency < one.latency / 3
    starts = [interval.start for interval in four.schedule]
    assert starts[:4] == [0.0] * 4, "the first segments run at once"


def test_a_join_on_the_host_keeps_the_scale_of_its_parts(tmp_path: Path) -> None:
    """Tiles of two Edge TPUs that a third one reads are rounded once, as on one Edge TPU."""
    model = rewritten(layers(tmp_path / "x.onnx", [WIDTH, HIDDEN, WIDTH, WIDTH]))
    first, *_ = [node for node in model.graph if can_divide(node)]
    divide(model, [first], 2, 64)
    task = Task(model.graph, Target.load(), PartitionOptions(3))
    placements = place_nodes(task)
    units = units_of(model.graph, placements)
    joined = next(i for i, unit in enumerate(units) if unit[0].op_type == "Concat")
    tiles = [i for i, unit in enumerate(units) if can_divide(unit[0]) and i < joined]
    rest = [i for i in range(len(units)) if i > joined]
    before = [i for i in range(joined) if i not in tiles]
    stages = [(i, (tile,)) for i, tile in enumerate(tiles)]
    host, tpu = (planner.HOST, (joined,)), (2, tuple(rest))
    all_stages = (*([(planner.HOST, tuple(before))] if before else []), *stages, host, tpu)
    plan = assemble(all_stages, units, placements.costs, task)
    program = Program(model, plan, Target.load())
    assert [node.op_type for node in program.joins] == ["Concat"]
    rng = np.random.default_rng(2)
    rows = [{"x": rng.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(4)]
    samples = Samples([partial(dict, row) for row in rows])
    quantized = quantizing.quantize(program, samples, BuildOptions())
    (concat,) = program.joins
    names = [str(value.name) for value in (*concat.inputs, *concat.outputs) if value is not None]
    assert len({quantized.quants[name] for name in names}) == 1


@pytest.mark.slow
def test_segments_at_once_give_what_one_edge_tpu_gives(tmp_path: Path) -> None:
    """Two heads on two Edge TPUs: no layer is divided by its inputs, so that all int8 numbers are
    the same."""
    target = tmp_path / "small.toml"
    target.write_text(SMALL_TARGET)
    path = layers(tmp_path / "x.onnx", [128, 256, 1024])
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("Relu", ["y1"], ["r1"]))
    del proto.graph.output[:]
    rng = np.random.default_rng(3)
    for head in ("p", "q"):
        weight = rng.standard_normal((1024, 256)).astype(np.float32) / 32
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{head}"))
        proto.graph.node.append(helper.make_node("Gemm", ["r1", f"w{head}"], [head]))
        output = helper.make_tensor_value_info(head, TensorProto.FLOAT, (1, 256))
        proto.graph.output.append(output)
    onnx.save(proto, path)
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((8, 128)).astype(np.float32))
    x = {"x": rng.standard_normal((1, 128)).astype(np.float32)}
    found = []
    for tpus in (1, 4):
        options = BuildOptions(
            calibration=str(tmp_path / "c.npz"),
            target=str(target),
            partitioning=PartitionOptions(tpus, place="tpu"),
            quality=None,
        )
        bundle = build(str(path), options, output=str(tmp_path / f"b{tpus}"))
        with Runner(bundle) as runner:
            found.append(runner.run(x))
    starts = [segment["start_ms"] for segment in bundle.manifest["segments"]]
    assert len(set(starts)) < len(starts), "some segments start at once"
    for name in ("p", "q"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
