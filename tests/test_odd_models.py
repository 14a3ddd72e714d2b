"""Models that are valid, and odd: fixed values, classic operators, dictionaries, strange dimensions
and names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compiler.cli.common import Terminal
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import ModelError, OptionError, visible
from compiler.graph import shape_of, shapes
from compiler.importer import load as importer
from compiler.runtime import Bundle, Pipeline

CHOICE = """
<ir_version: 10, opset_import: ["" : 17]>
agraph (float[1, 8] x, int64 rate) => (float[1, 8] y) {
    fast = Constant <value_int = 16000> ()
    is_fast = Equal (rate, fast)
    y = If (is_fast) <
        then_branch = yes () => (float[1, 8] a) { a = Exp (x) },
        else_branch = no () => (float[1, 8] b) { b = Neg (x) }
    >
}
"""


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_fixed_value_takes_a_branch(rate: int, tmp_path: Path) -> None:
    path = saved(tmp_path, onnx.parser.parse_model(CHOICE))
    manifest = building.build(path, tmp_path / "b", BuildOptions(values={"rate": str(rate)}))
    assert [i["name"] for i in manifest["inputs"]] == ["x"]
    assert '"operator": "If"' not in json.dumps(manifest["segments"])
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    (want,) = onnxruntime.InferenceSession(path).run(None, {"x": x, "rate": np.array(rate)})
    np.testing.assert_allclose(
        Pipeline(Bundle.open(tmp_path / "b")).run({"x": x})["y"], want, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"speed": "1"}, "no such input"),
        ({"rate": "quick"}, "write a number"),
        ({"rate": "1.5"}, "does not hold that"),
        ({"rate": "1,2"}, "takes 1 number"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, str], why: str, tmp_path: Path) -> None:
    path = saved(tmp_path, onnx.parser.parse_model(CHOICE))
    with pytest.raises(OptionError, match=why):
        importer.load(path, values=values)


def classic(nodes: list[onnx.NodeProto], dims: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=10,
    )


def test_an_operator_without_inference_hides_no_shape(tmp_path: Path) -> None:
    scaled = helper.make_node(
        "Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5], scale=[2.0]
    )
    model = importer.load(
        saved(tmp_path, classic([scaled, helper.make_node("Relu", ["s"], ["y"])], [1, 6]))
    )
    shapes.infer(model)
    assert [shape_of(node.outputs[0]) for node in model.graph] == [(1, 6), (1, 6)]


def test_dictionaries_name_their_node(tmp_path: Path) -> None:
    labels = helper.make_node(
        "ZipMap", ["x"], ["y"], "labels", domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )
    model = classic([labels], [1, 2])
    model.graph.output[0].type.CopyFrom(
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            )
        )
    )
    with pytest.raises(ModelError, match=r"ZipMap 'labels' .*zipmap=False"):
        importer.load(saved(tmp_path, model))


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ([-1, 4], "--shape x="),
        ([2**31, 4], "2\\^31 elements"),
        ([2**62, 8], "2\\^31 elements"),
        ([1] * 65, "65 dimen"),
    ],
)
def test_strange_dimensions(dims: list[int], why: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(ModelError, match=why):
        importer.load(saved(tmp_path, model))


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible("a\x1b[31m\x9b\u202e\nb") == "a\\x1b[31m\\x9b\\u202e\nb"
    Terminal().print("\x1b]0;title", markup=False)
    assert capsys.readouterr().out == "\\x1b]0;title\n"
