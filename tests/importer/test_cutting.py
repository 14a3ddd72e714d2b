"""Models that end at tensors which the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler import importer
from compiler.checks import baseline
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import OptionError
from compiler.graph.reference import Reference
from compiler.importer import cutting
from compiler.quantize import samples as sampling
from tests.conftest import Cli, save, small_network


def test_the_model_ends_at_the_tensors_in_their_order(small_model: Path) -> None:
    model = importer.load(small_model, reading=importer.Reading(("r2", "l1")))
    assert [value.name for value in model.graph.outputs] == ["r2", "l1"]
    assert [node.name for node in model.graph] == ["first", "normalise", "second", "relu"]
    # What only the rest needs is gone: two convolutions have three weights.
    assert set(model.graph.initializers) == {"w1", "b1", "w2"}
    assert cutting.of(model) == ("r2", "l1")


def test_the_baseline_is_the_file_at_the_same_tensors(small_model: Path) -> None:
    options = BuildOptions(outputs=("c1",))
    model = building.read(small_model, options)
    samples = sampling.load(None, model.graph.inputs)
    found = baseline.baseline(small_model, model, samples)
    assert found.kind == baseline.FILE
    # The same convolution as a file of its own, which nothing of ours has cut.
    whole = small_network()
    del whole.graph.node[1:]
    whole.graph.output[0].name = "c1"
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    alone = importer.load(save(small_model.with_name("alone.onnx"), whole))
    with Reference(alone) as reference:
        for sample, result in zip(samples, found.results, strict=True):
            assert list(result) == ["c1"]
            np.testing.assert_allclose(result["c1"], reference.run(sample)["c1"], atol=1e-6)


def test_a_cut_build_gives_those_tensors(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "b"
    assert run_cli("build", small_model, "-o", out, "--outputs", "p,c2")[0] == 0
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    np.savez(tmp_path / "x.npz", **inputs)
    code, _, _ = run_cli("run", out, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as results:
        assert code == 0 and results["p"].shape == (1, 16, 1, 1)
        assert results["c2"].shape == (1, 16, 16, 16)


def test_inputs_that_are_no_longer_needed_go(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "b"], ["y"])]
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 4)) for n in "aby"]
    graph = helper.make_graph(nodes, "two", infos[:2], infos[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = save(tmp_path / "m.onnx", proto)
    options = BuildOptions(outputs=("r",))
    model = building.read(path, options)
    assert [value.name for value in model.graph.inputs] == ["a"]
    found = baseline.baseline(path, model, sampling.load(None, model.graph.inputs))
    assert found.kind == baseline.FILE and list(found.results[0]) == ["r"]


def test_what_a_branch_reads_stays(tmp_path: Path) -> None:
    """A branch reads `w` and `r` of the graph around it."""
    float32 = onnx.TensorProto.FLOAT
    branches = {}
    for name, op_type in (("then_branch", "Add"), ("else_branch", "Sub")):
        inner = helper.make_node(op_type, ["r", "w"], [f"{op_type}_out"])
        info = helper.make_tensor_value_info(f"{op_type}_out", float32, (1, 4))
        branches[name] = helper.make_graph([inner], name, [], [info])
    nodes = [
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("If", ["flag"], ["chosen"], **branches),
        helper.make_node("Exp", ["chosen"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("a", float32, (1, 4)),
        helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, ()),
    ]
    output = helper.make_tensor_value_info("y", float32, (1, 4))
    weights = [numpy_helper.from_array(np.ones((1, 4), np.float32), "w")]
    graph = helper.make_graph(nodes, "branches", inputs, [output], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    cutting.cut(proto, ["chosen"])
    assert [node.op_type for node in proto.graph.node] == ["Relu", "If"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["w"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c3", "the model has no such tensor; the closest are 'c2', 'c1'"),
        ("second", "is the name of a node; the tensor that it gives is 'c2'"),
        ("x", "is an input of the model: end it at a tensor that a node gives"),
        ("nothing like it", "the model has no such tensor; the closest are 'y'"),
    ],
)
def test_names_that_are_no_tensor(name: str, message: str, small_model: Path) -> None:
    with pytest.raises(OptionError) as caught:
        building.read(small_model, BuildOptions(outputs=(name,)))
    assert caught.value.message == f"{name}: {message}" and caught.value.option == "outputs"


def test_a_name_twice(small_model: Path) -> None:
    with pytest.raises(OptionError, match="c1: is named twice"):
        BuildOptions(outputs=("c1", "c1"))
