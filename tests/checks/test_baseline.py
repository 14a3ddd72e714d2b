"""Bundles are compared with the user's file as it is, and an import that computes something else is
an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler import importer
from compiler.checks import baseline, evaluator
from compiler.checks.distance import distance
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import InternalError, ModelError
from compiler.importer import adapters
from compiler.importer import model as importing
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle, Pipeline
from tests.conftest import Cli, save, small_network

FLOAT, HALF, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE
RNG = np.random.default_rng(0)


def model(
    nodes: list[onnx.NodeProto],
    shape: tuple[Any, ...],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    types: tuple[int, int] = (FLOAT, FLOAT),
) -> onnx.ModelProto:
    """A model from x to y."""
    x, y = (
        helper.make_tensor_value_info("x", types[0], shape),
        helper.make_tensor_value_info("y", types[1], None),
    )
    tensors = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, *inputs: str, to: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs or ["x"], [to], **attributes)


def quality(path: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = building.build(path, path.with_suffix(".b"), BuildOptions(**options))[
        "quality"
    ]
    return found


def compared(path: Path, **options: Any) -> baseline.Baseline:
    imported = building.read(path, BuildOptions(**options))
    return baseline.baseline(path, imported, sampling.load(None, imported.graph.inputs))


def test_a_file_of_dynamic_shapes_is_compared_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model([node("Relu")], ("n", 3)))
    found = quality(path, dims={"n": 2})
    assert found["baseline"] == "file" and "baseline_note" not in found


@pytest.mark.parametrize("external", [False, True])
def test_shapes_other_than_the_file_allows(external: bool, tmp_path: Path, run_cli: Cli) -> None:
    """Weights are found in the file itself or beside it."""
    weights = {"w": RNG.standard_normal((64, 64)).astype(np.float32)}
    path = tmp_path / "m.onnx"
    proto = model([node("MatMul", "x", "w")], (4, 64), weights)
    onnx.save(proto, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    found = quality(path, shapes={"x": (1, 64)})
    assert found["baseline"] == "fixed shapes" and "invalid dimensions" in found["baseline_note"]
    assert found["outputs"]["y"]["sqnr_db"] > 25
    code, out, _ = run_cli("inspect", path.with_suffix(".b"))
    assert (
        code == 0
        and "Compared with the file with fixed shapes: onnxruntime does not run"
        in " ".join(out.split())
    )


def test_files_that_onnxruntime_does_not_run(tmp_path: Path) -> None:
    """Clip of opset 6 has no kernel for float64, that of opset 13 has; ONNX's own evaluator knows
    both."""
    proto = model([node("Clip", min=-0.5, max=0.5)], (4, 3), opset=10, types=(DOUBLE, DOUBLE))
    found = quality(save(tmp_path / "m.onnx", proto))
    assert found["baseline"] == "imported" and "evaluator agrees" in found["baseline_note"]
    assert "Could not find an implementation for Clip(6)" in found["baseline_note"]


@pytest.mark.parametrize(
    ("nodes", "weights", "words"),
    [
        ([node("Relu")], {}, None),
        ([node("Add", "x", "b", broadcast=1)], {"b": np.ones(4, np.float32)}, "evaluator agrees"),
        (
            [node("Mul", "x", "b", broadcast=1, axis=0)],
            {"b": np.ones(2, np.float32)},
            "evaluator does not run it",
        ),
        ([node("AveragePool", kernel_shape=[3], pads=[1, 1])], {}, "evaluator does NOT agree"),
    ],
    ids=["relu", "add", "mul", "pool"],
)
def test_opsets_before_7(
    nodes: list[onnx.NodeProto], weights: Any, words: str | None, tmp_path: Path
) -> None:
    """What onnxruntime lacks is compared with the import, and what ONNX's evaluator says of it is
    said.

    The evaluator counts padding in the averages of opset 6, which "does not support including pad"
    (ONNX's converter).
    """
    proto = model(nodes, (2, 3, 4), weights, opset=6)
    proto.graph.input.extend(
        helper.make_tensor_value_info(n, FLOAT, a.shape) for n, a in weights.items()
    )
    found = compared(save(tmp_path / "m.onnx", proto))
    if words is None:
        assert found == baseline.Baseline("file", found.results)
    else:
        assert found.kind == "imported" and words in found.note


def test_slopes_per_channel_before_opset_7(tmp_path: Path) -> None:
    """Converted, they would be broadcast along the last axis."""
    proto = model([node("PRelu", "x", "s")], (2, 4, 4), {"s": np.ones(4, np.float32)}, opset=6)
    with pytest.raises(
        ModelError, match="PRelu 'y' of opset 6 has slopes per channel: export in opset 7"
    ):
        importer.load(save(tmp_path / "m.onnx", proto))


def test_an_import_that_the_evaluator_does_not_confirm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(one: Any, edit: Any) -> None:
        edit.become("Identity", one.inputs[:1])

    monkeypatch.setitem(adapters.ADAPTERS, "Clip", adapters.Adapter(11, wrong))
    proto = model([node("Clip", min=-0.5, max=0.5)], (4, 3), opset=10, types=(DOUBLE, DOUBLE))
    found = compared(save(tmp_path / "m.onnx", proto))
    assert found.kind == "imported" and "does NOT agree with the import: output 'y'" in found.note


def test_an_evaluator_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "EVALUATOR_SECONDS", 0.01)
    proto = model([node("Clip", min=-0.5, max=0.5)], (4, 3), opset=10, types=(DOUBLE, DOUBLE))
    assert "more than 0.01 s" in compared(save(tmp_path / "m.onnx", proto)).note


def _leave_softmax(one: Any, edit: Any) -> None:
    """What a converter did that only raised the number."""


def test_an_import_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> None:
    monkeypatch.setitem(adapters.ADAPTERS, "Softmax", adapters.Adapter(13, _leave_softmax))
    path = save(tmp_path / "m.onnx", model([node("Softmax")], (2, 3, 4), opset=11))
    code, _, err = run_cli("build", path)
    assert (
        code == 70
        and "output 'y' is not what onnxruntime gives for the file as it is"
        in " ".join(err.split())
    )
    assert not path.with_suffix(".bundle").exists()


def test_an_import_that_gives_another_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)]
    path = save(tmp_path / "m.onnx", model(nodes, (2, 3), types=(HALF, FLOAT)))
    assert compared(path).kind == "file"
    load = importer.load

    def narrowed(*arguments: Any, **options: Any) -> Any:
        imported = load(*arguments, **options)
        cast = next(n for n in imported.graph if n.outputs[0].name == "y")
        cast.attributes["to"] = ir.AttrInt64("to", HALF)
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        return imported

    monkeypatch.setattr(importer, "load", narrowed)
    with pytest.raises(InternalError, match=r"output 'y' .*another type or shape"):
        compared(path)


def test_float16_weights_between_float32(tmp_path: Path) -> None:
    """As converters write with keep_io_types: the output has numbers that float16 does not hold."""
    weight = RNG.standard_normal((8, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=HALF),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=FLOAT),
        node("Mul", "c", "k"),
    ]
    path = save(
        tmp_path / "m.onnx", model(nodes, (1, 8), {"w": weight, "k": np.array(1e6, np.float32)})
    )
    assert quality(path)["outputs"]["y"]["sqnr_db"] > 25
    x = RNG.standard_normal((1, 8)).astype(np.float32)
    (want,) = ort.InferenceSession(path).run(None, {"x": x})
    got = Pipeline(Bundle.open(path.with_suffix(".b"))).run({"x": x})["y"]
    assert got.dtype == want.dtype == np.float32
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


def test_float16_outputs_that_are_weights_or_inputs(tmp_path: Path) -> None:
    proto = model(
        [node("Mul", "x", "w")],
        (1, 4),
        {"w": RNG.standard_normal(4).astype(np.float16)},
        types=(HALF, HALF),
    )
    proto.graph.output.extend(
        [helper.make_tensor_value_info("w", HALF, (4,)), proto.graph.input[0]]
    )
    path = save(tmp_path / "m.onnx", proto)
    x = RNG.standard_normal((1, 4)).astype(np.float16)
    assert compared(path).kind == "file"
    quality(path)
    got = Pipeline(Bundle.open(path.with_suffix(".b"))).run({"x": x})
    assert {name: array.dtype for name, array in got.items()} == dict.fromkeys("ywx", np.float16)


def test_float16_that_overflows_is_no_error_of_the_import(tmp_path: Path) -> None:
    weights = {"k": np.array(6e4, np.float16)}
    path = save(
        tmp_path / "m.onnx", model([node("Mul", "x", "k")], (1, 64), weights, types=(HALF, HALF))
    )
    found = compared(path)
    assert found.kind == "file" and np.isinf(found.results[0]["y"]).any()


def test_float16_far_from_float32_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the import without wider types agrees with the file, it is no error of the import."""
    widen = importing.widen_halves

    def widen_otherwise(imported: Any) -> None:
        widen(imported)
        weights = imported.graph.initializers["w"]
        weights.const_value = ir.tensor(2 * weights.const_value.numpy())

    monkeypatch.setattr(importing, "widen_halves", widen_otherwise)
    weights = {"w": RNG.standard_normal((8, 8)).astype(np.float16)}
    path = save(
        tmp_path / "m.onnx", model([node("MatMul", "x", "w")], (1, 8), weights, types=(HALF, HALF))
    )
    assert (
        "the file's float16 takes output 'y' far from what float32 gives, 100.0% off"
        in compared(path).note
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: model([node("RandomNormalLike", "x", to="r"), node("Add", "x", "r")], (4, 3)),
        lambda: model(
            [node("Mul", "x", "k", to="m"), node("Sin", "m")],
            (4, 3),
            {"k": np.array(1e7, np.float32)},
        ),
        lambda: model(
            [node("Mul", "x", "k", to="m"), node("Exp", "m")],
            (4, 3),
            {"k": np.array(90, np.float32)},
        ),
        lambda: model([node("SequenceConstruct", "x", "x")], (4, 3)),
    ],
    ids=["random", "blows rounding up", "infinite", "sequence"],
)
def test_no_false_alarms(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    proto = make()
    if proto.graph.node[0].op_type == "SequenceConstruct":
        proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    assert compared(save(tmp_path / "m.onnx", proto)).kind == "file"


def test_distance() -> None:
    one, nan, inf = np.ones(4, np.float32), np.float32(np.nan), np.float32(np.inf)
    assert distance(one, one) == 0
    assert distance(one * np.float32(1.01), one) == pytest.approx(0.01, rel=1e-3)
    assert distance(one.astype(np.float16), one) == np.inf
    assert distance(one[:3], one) == np.inf
    assert distance(np.array([1, nan]), np.array([1, nan])) == 0
    assert distance(np.array([1, nan]), np.array([1, inf])) == np.inf
    assert distance(np.array([nan, 1]), np.array([1, 1])) == np.inf
    assert distance(np.array([1, 2]), np.array([1, 3])) == 0.5
    assert distance([one, one], [one]) == np.inf
    assert distance(one * 0, one * 0) == 0 and distance(one, one * 0) > 1


def test_one_sample_at_a_time_gives_what_all_gave(tmp_path: Path) -> None:
    """Of the file, and of the import where onnxruntime does not run the file."""
    path = save(tmp_path / "m.onnx", small_network())
    imported = importer.load(path)
    samples = sampling.load(None, imported.graph.inputs)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for kind in (baseline.FILE, baseline.IMPORTED):
        with baseline.running(path, imported, kind) as run:
            for sample in samples:
                wanted = session.run(None, sample)
                for got, want in zip(run(sample).values(), wanted, strict=True):
                    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
