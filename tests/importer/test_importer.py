"""What real exporters write: old opsets, external data, functions, initializers that are inputs,
odd names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from compiler import importer
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import ModelError
from compiler.graph import OPSET, array_of
from compiler.importer import onnxfile
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Pipeline
from tests.conftest import save, small_network

FIXTURES = Path(__file__).parents[2] / "fixtures"


def builds(path: Path, tmp_path: Path) -> Pipeline:
    on_tpu = PartitionOptions(place="tpu")
    building.build(path, tmp_path / "b", BuildOptions(partitioning=on_tpu))
    return Pipeline(Bundle.open(tmp_path / "b"))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 22, onnx.defs.onnx_opset_version()])
def test_opsets(opset: int, tmp_path: Path) -> None:
    text = f"""
    <ir_version: 3, opset_import: ["" : {opset}]>
    g (float[1,3,8,8] x) => (float[1,2] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (c)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        f = Flatten (p)
        d = Gemm <transB = 1> (f, v, b)
        y = Softmax <axis = 1> (d)
    }}"""
    proto = onnx.parser.parse_model(text)
    proto.ir_version = 3 if opset < 22 else 10
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (2, 64)), ("b", (2,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    model = importer.load(save(tmp_path / "m.onnx", proto))
    assert model.graph.opset_imports[""] >= OPSET
    builds(tmp_path / "m.onnx", tmp_path)


@pytest.mark.parametrize("external", [False, True])
def test_weights_stay_in_their_files(external: bool, tmp_path: Path) -> None:
    """Those that are large, wherever the file has them, so that what ends at an odd byte is read
    right too."""
    path = tmp_path / "m.onnx"
    onnx.save(
        small_network(), path, save_as_external_data=external, location="w.bin", size_threshold=100
    )
    weights = [v.const_value for v in importer.load(path).graph.initializers.values()]
    assert any(isinstance(w, ir.LazyTensor) for w in weights)
    builds(path, tmp_path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", small_network())
    graph = importer.load(path).graph
    value = next(v for v in graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor))
    assert np.isfinite(array_of(value)).all()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="changed while it was being read"):
        importer.check_weights(graph)


@pytest.mark.parametrize(
    "path", sorted((FIXTURES / "exports").rglob("*.onnx")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("smallest", [1, 100])
def test_files_are_read_without_their_weights(path: Path, smallest: int) -> None:
    """What protobuf reads itself, and what it reads after the weights have been left out, is the
    same."""
    found, wanted = onnxfile.load(path, smallest), onnx.load(path, load_external_data=False)
    for mine, theirs in zip(found.graph.initializer, wanted.graph.initializer, strict=True):
        outside = len(theirs.raw_data) >= smallest or bool(theirs.external_data)
        assert bool(mine.external_data) == outside and len(mine.raw_data) < smallest
    for proto in (found, wanted):
        onnx.load_external_data_for_model(proto, str(path.parent))
        for tensor in proto.graph.initializer:
            tensor.ClearField("data_location")
    assert found == wanted


def test_initializers_that_are_inputs(tmp_path: Path) -> None:
    proto = small_network()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    model = importer.load(save(tmp_path / "m.onnx", proto))
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_names_with_any_character(tmp_path: Path) -> None:
    proto = small_network()
    names = {"x": "gpu_0/data_0", "c1": "a b:c;0", "r2": "größe\\1", "y": "out[0]{1}"}
    for node in proto.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(n, n) for n in field]
    proto.graph.input[0].name, proto.graph.output[0].name = names["x"], names["y"]
    pipeline = builds(save(tmp_path / "m.onnx", proto), tmp_path)
    result = pipeline.run({"gpu_0/data_0": np.zeros((1, 3, 16, 16), np.float32)})
    assert result["out[0]{1}"].shape == (1, 10)


def test_nodes_without_names(tmp_path: Path) -> None:
    proto = small_network()
    for node in proto.graph.node:
        node.name = ""
    model = importer.load(save(tmp_path / "m.onnx", proto))
    assert len({n.name for n in model.graph}) == len(model.graph)


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 18]>
    twice (a) => (b) { s = Sigmoid (a) b = Add (s, a) }
    """
    model = importer.load(save(tmp_path / "m.onnx", onnx.parser.parse_model(text)))
    assert [n.op_type for n in model.graph] == ["Sigmoid", "Add"] and not model.functions


def test_weights_from_constant_nodes(tmp_path: Path) -> None:
    proto = small_network()
    tensor = proto.graph.initializer[0]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=tensor))
    del proto.graph.initializer[0]
    pipeline = builds(save(tmp_path / "m.onnx", proto), tmp_path)
    assert [s["device"] for s in pipeline.bundle.manifest["segments"]].count("tpu") == 2


def test_subgraphs_run_on_the_host(tmp_path: Path) -> None:
    """An If whose branches read tensors of the graph around it."""
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4] x) => (float[1,4] y) {
        s = Sigmoid (x)
        t = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        c = Greater (t, zero)
        y = If (c) <then_branch = a () => (float[1,4] p) { p = Add (s, x) },
                    else_branch = b () => (float[1,4] q) { q = Sub (s, x) }>
    }"""
    pipeline = builds(save(tmp_path / "m.onnx", onnx.parser.parse_model(text)), tmp_path)
    x = np.array([[1.0, -3.0, 0.5, 0.2]], np.float32)
    assert np.allclose(pipeline.run({"x": x})["y"], 1 / (1 + np.exp(-x)) - x, atol=1e-6)


def test_output_that_is_an_input(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4] x) => (float[1,4] y, float[1,4] z) { y = Identity (x) z = Dropout (x) }"""
    x = np.ones((1, 4), np.float32)
    result = builds(save(tmp_path / "m.onnx", onnx.parser.parse_model(text)), tmp_path).run(
        {"x": x}
    )
    assert np.array_equal(result["y"], x) and np.array_equal(result["z"], x)


def test_float16_models_compute_in_float32(tmp_path: Path) -> None:
    """Their inputs and outputs stay float16, and their layers reach the Edge TPU."""
    proto = small_network()
    for tensor in list(proto.graph.initializer):
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    pipeline = builds(save(tmp_path / "m.onnx", proto), tmp_path)
    assert [s["device"] for s in pipeline.bundle.manifest["segments"]].count("tpu") == 2
    result = pipeline.run({"x": np.zeros((1, 3, 16, 16), np.float16)})["y"]
    assert (
        result.dtype == np.float16
        and pipeline.bundle.manifest["quality"]["outputs"]["y"]["plain_sqnr_db"] > 20
    )


def test_shapes_computed_from_fixed_dimensions_are_folded(tmp_path: Path) -> None:
    """What exporters write around dynamic dimensions leaves nothing behind once these are fixed."""
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[batch,4,8] x) => (float[batch,a,b] y)
    <int64[1] first = {0}, int64[1] rest = {-1}, int64[1] eight = {8}> {
        s = Shape (x)
        b = Gather (s, first)
        two = Concat <axis = 0> (b, rest)
        flat = Reshape (x, two)
        z = ConstantOfShape <value = int64[1] {1}> (b)
        w = Concat <axis = 0> (b, z)
        q = Cast <to = 1> (w)
        t = ReduceSum <keepdims = 0> (q)
        m = Mul (flat, t)
        three = Concat <axis = 0> (b, rest, eight)
        r = Reshape (m, three)
        y = Relu (r)
    }"""
    proto = onnx.parser.parse_model(text)
    options = BuildOptions(dims={"batch": 1})
    program = building.plan_program(
        building.read(save(tmp_path / "m.onnx", proto), options), options
    )
    assert [n.op_type for n in program.model.graph] == ["Reshape", "Mul", "Relu", "Reshape"]


def test_models_in_training_mode_are_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,8] x) => (float[1,8] y)
    <float ratio = {0.1}, bool training = {1}> { y = Dropout (x, ratio, training) }""")
    with pytest.raises(
        ModelError, match=r"Dropout 'Dropout_0' is in training mode.*model.eval\(\)"
    ):
        importer.load(save(tmp_path / "m.onnx", proto))
    proto.graph.initializer[1].int32_data[:] = [0]
    importer.load(save(tmp_path / "m.onnx", proto))


def test_models_whose_opset_cannot_be_raised_keep_their_operators(tmp_path: Path) -> None:
    """Scan of opset 8 stays as it is, so a Gelu, which came with opset 20, must not appear beside
    it."""

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "e"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["out"]),
        ],
        "body",
        [value("s", 2), value("e", 2)],
        [value("sum", 2), value("out", 2)],
    )
    gelu = onnx.parser.parse_graph("""
    g (float[2,8] q, float[1,2] first, float[1,3,2] x) => (float[2,8] y, float[1,3,2] z)
    <float three = {3.0}, float c = {0.044715}, float root = {0.7978845}, float one = {1.0},
     float half = {0.5}> {
        p = Pow (q, three) s = Mul (c, p) a = Add (q, s) i = Mul (root, a) t = Tanh (i)
        o = Add (one, t)
        h = Mul (q, o) y = Mul (h, half)
    }""")
    gelu.node.append(
        helper.make_node("Scan", ["", "first", "x"], ["last", "z"], num_scan_inputs=1, body=body)
    )
    gelu.input.extend(value(t.name) for t in gelu.initializer)
    proto = helper.make_model(gelu, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)
    pipeline = builds(save(tmp_path / "m.onnx", proto), tmp_path)
    assert pipeline.bundle.manifest["quality"]["outputs"]["y"]["sqnr_db"] == 200


def test_outputs_that_fold_to_constants(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4] x) => (float[1,4] y, float[2,4] z, float[2,4] w)
    <float[1,4] a = {1.0, 2.0, 3.0, 4.0}> {
        y = Relu (x)
        z = Concat <axis = 0> (a, a)
        w = Add (z, z)
    }""")
    results = builds(save(tmp_path / "m.onnx", proto), tmp_path).run(
        {"x": np.zeros((1, 4), np.float32)}
    )
    np.testing.assert_array_equal(results["z"], [[1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(results["w"], [[2, 4, 6, 8]] * 2)
