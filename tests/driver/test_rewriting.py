"""The driver of the passes: which it runs, what it says of them, and the graphs that it dumps."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from rich.console import Console

from compiler.checks.pass_checks import Checker
from compiler.driver.dump import INLINE_BYTES, WEIGHTS, GraphDump
from compiler.driver.rewriting import PassDriver
from compiler.driver.stages import StageTimer
from compiler.errors import InternalError, OutputError
from compiler.graph import OPSET, array_of, origin_of
from compiler.view.timings import show_timings
from passes import PASSES, Pass, PassContext, SampleContext, Steps
from tests.passes.golden import TARGET, parsed

RELU = "g (float[1,4] x) => (float[1,4] y) { n = Neg (x) y = Relu (n) }"


def model_of(text: str, **constants: np.ndarray) -> ir.Model:
    return ir.serde.deserialize_model(parsed(text, constants))


def visit(model: ir.Model, context: PassContext) -> None:
    """Matches each Relu, and nearly each Neg."""
    for node in model.graph:
        if node.op_type == "Relu":
            context.matched(node)
        if node.op_type == "Neg":
            context.missed(node, "it is negative", fitted=1)
            context.missed(node, "nothing follows", fitted=2)


def double(model: ir.Model, context: PassContext) -> None:
    """Adds a value to itself that was only given on."""
    node = next(iter(model.graph))
    other = ir.node("Add", [node.inputs[0], node.inputs[0]], num_outputs=1)
    other.outputs[0].name = "twice"
    model.graph.insert_before(node, other)
    node.replace_input_with(0, other.outputs[0])


def test_which_passes_run() -> None:
    """Those left out do not, optional ones where asked for, none that needs a newer opset."""
    records = [
        Pass("always", visit),
        Pass("left_out", visit, kind="accuracy"),
        Pass("accurate", visit, kind="accuracy"),
        Pass("unwanted", visit, kind="optional"),
        Pass("wanted", visit, kind="optional"),
        Pass("newer", visit, lowest_opset=OPSET + 1),
    ]
    driver = PassDriver(Steps(frozenset({"left_out"}), frozenset({"wanted"})))
    steps: list[int] = []
    driver.run(records, model_of(RELU), PassContext(TARGET), lambda: steps.append(1))
    assert [run.name for run in driver.runs] == ["always", "accurate", "wanted"]
    assert len(steps) == len(records)


def test_a_step_is_chosen_for_single_nodes() -> None:
    """A pass that is left out runs where it is wanted, and one that runs leaves nodes alone."""
    taken: list[bool] = []

    def look(model: ir.Model, context: PassContext) -> None:
        taken.append(context.takes(model.graph[-1]))

    model = model_of(RELU)
    name = origin_of(model.graph[-1])
    records = [
        Pass("left_out", look, kind="accuracy"),
        Pass("unwanted", look, kind="optional"),
        Pass("not_here", look, kind="accuracy"),
        Pass("always", look),
    ]
    at = {"left_out": {name: True}, "unwanted": {"other": False}, "not_here": {name: False}}
    driver = PassDriver(Steps(frozenset({"left_out"}), at=at))
    driver.run(records, model, PassContext(TARGET))
    assert [run.name for run in driver.runs] == ["left_out", "not_here", "always"]
    assert taken == [True, False, True]


def test_what_is_remembered_of_a_run() -> None:
    driver = PassDriver()
    driver.run([Pass("visit", visit), Pass("again", visit)], model_of(RELU), PassContext(TARGET))
    assert [run.rewrites for run in driver.runs] == [1, 1]
    nearest = driver.runs[0].nearest
    assert nearest is not None and nearest.reason == "nothing follows"
    assert all(0 <= run.seconds < 1 for run in driver.runs)


def test_a_line_for_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "compiler.driver.rewriting"):
        PassDriver().run([Pass("visit", visit)], model_of(RELU), PassContext(TARGET))
    (line,) = caplog.messages
    assert line.startswith("visit: 1 matched") and "nothing follows (and 1 more)" in line


def test_why_a_gelu_was_not_recognised(caplog: pytest.LogCaptureFixture) -> None:
    """Its factor is not a half, as the nearest miss says."""
    text = """
    g (float[2,8] x) => (float[2,8] y)
    <float root = {1.4142135}, float one = {1}, float half = {0.25}>
    { d = Div (x, root) e = Erf (d) f = Add (e, one) h = Mul (x, f) y = Mul (h, half) }"""
    with caplog.at_level(logging.INFO, "compiler.driver.rewriting"):
        PassDriver().run(PASSES[:4], model_of(text), PassContext(TARGET))
    line = next(line for line in caplog.messages if line.startswith("recognise_gelu"))
    assert "no match; nearly" in line and "0.5" in line


def test_the_checker_sees_what_each_pass_leaves() -> None:
    model = model_of(RELU)
    driver = PassDriver(checker=Checker(model, 0))
    driver.run([Pass("visit", visit)], model, PassContext(TARGET))
    with pytest.raises(InternalError, match="tensor 'n' differs") as caught:
        driver.run([Pass("double", double)], model, PassContext(TARGET))
    assert caught.value.stage == "double"


def test_the_checker_does_not_look_at_passes_that_only_read() -> None:
    model = model_of(RELU)
    driver = PassDriver(checker=Checker(model, 0))
    driver.run([Pass("double", double, reads_only=True)], model, PassContext(TARGET))
    assert [run.name for run in driver.runs] == ["double"]


def test_the_checker_lets_pass_what_is_rescaled() -> None:
    """`n` is twice what it was, and its reader makes half of it."""

    def rescale(model: ir.Model, context: SampleContext) -> None:
        neg, relu = model.graph
        double(model, context)
        half = ir.node("Mul", [neg.outputs[0], model.graph.initializers["half"]], num_outputs=1)
        half.outputs[0].name = "again"
        model.graph.insert_before(relu, half)
        relu.replace_input_with(0, half.outputs[0])
        context.rescaled.add("n")

    text = "g (float[1,4] x) => (float[1,4] y) <float half = {0.5}> { n = Neg (x) y = Relu (n) }"
    model = model_of(text)
    driver = PassDriver(checker=Checker(model, 0))
    driver.run([Pass("rescale", rescale)], model, SampleContext(TARGET))


def test_unforeseen_errors_name_the_pass() -> None:
    def fail(model: ir.Model, context: PassContext) -> None:
        raise KeyError("nothing")

    with pytest.raises(InternalError) as caught:
        PassDriver().run([Pass("fail", fail)], model_of(RELU), PassContext(TARGET))
    assert caught.value.stage == "fail"


LAYER = """
    g (float[1,3,4,4] x) => (float[1,64,4,4] y)
    { c = Conv (x, w) n = Relu (c) y = Conv (n, v) }"""
LAYERS = {
    "w": np.random.default_rng(0).standard_normal((512, 3, 1, 1)).astype(np.float32),
    "v": np.random.default_rng(1).standard_normal((64, 512, 1, 1)).astype(np.float32),
}


def test_every_dump_is_a_model_that_computes_the_same(tmp_path: Path) -> None:
    """onnxruntime runs each of them, dialect included, by itself."""
    model = model_of(LAYER, **LAYERS)
    original = ir.serde.serialize_model(model).SerializeToString()
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    (wanted,) = ort.InferenceSession(original).run(None, feeds)
    driver = PassDriver(dump=GraphDump(tmp_path / "dump"))
    driver.run(PASSES, model, PassContext(TARGET))
    paths = sorted((tmp_path / "dump").glob("*.onnx"))
    assert [path.stem for path in paths] == [
        f"{number:02}-{run.name}" for number, run in enumerate(driver.runs, 1)
    ]
    for path in paths:
        onnx.checker.check_model(path)
        (got,) = ort.InferenceSession(path).run(None, feeds)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    kinds = {node.domain for node in onnx.load(paths[-1], load_external_data=False).graph.node}
    assert "edgetpu" in kinds


def test_large_weights_are_written_once(tmp_path: Path) -> None:
    model = model_of(LAYER, **LAYERS)
    driver = PassDriver(dump=GraphDump(tmp_path))
    driver.run([Pass(f"visit{i}", visit) for i in range(4)], model, PassContext(TARGET))
    assert LAYERS["w"].nbytes < INLINE_BYTES < LAYERS["v"].nbytes
    assert (tmp_path / WEIGHTS).stat().st_size == LAYERS["v"].nbytes
    assert np.array_equal(array_of(model.graph.initializers["v"]), LAYERS["v"])


def test_a_dump_needs_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        GraphDump(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        GraphDump(tmp_path / "other" / "below")


def test_timings_of_stages_and_passes() -> None:
    heard: list[str] = []
    timer = StageTimer(lambda stage, steps: lambda: heard.append(stage))
    timer("reading", 1)()
    timer("rewriting", 2)
    timer.end()
    timer.end()
    assert heard == ["reading"]
    assert [name for name, _ in timer.seconds] == ["reading", "rewriting"]
    console = Console(file=io.StringIO(), width=80)
    show_timings(console, timer.seconds, [("lower", 0.25, 7)])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading" in text and "lower" in text and "0.250" in text and "7" in text
