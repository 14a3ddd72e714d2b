"""The arithmetic that carries a state is kept on the host; layers and caches are not."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from compiler import importer
from compiler.graph import HOST_REASON
from compiler.importer import state
from compiler.targets import Target
from passes import keep_states
from passes.context import PassContext
from tests import streaming
from tests.conftest import save


def kept(path: Path) -> set[str]:
    """First outputs of the nodes that the pass keeps on the host."""
    model: ir.Model = importer.load(path)
    state.settle(model, None)
    keep_states.run(model, PassContext(Target.load("usb3")))
    found = set()
    for node in model.graph:
        if HOST_REASON in node.metadata_props:
            found.add(str(node.outputs[0].name))
    return found


def test_a_gated_unit(tmp_path: Path) -> None:
    """Its gates and layers stay, and what is made of the state."""
    assert kept(streaming.gru(tmp_path / "m.onnx")) == {"kept", "rest", "new", "hn"}


def test_a_cache_is_only_moved(tmp_path: Path) -> None:
    assert kept(streaming.encoder(tmp_path / "m.onnx")) == set()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Mul (h, decay) hn = Add (s, x) y = Relu (hn)", {"s", "hn"}),
        # What passes a layer or a threshold does not add up.
        ("t = Tanh (h) hn = Add (t, x) y = Relu (hn)", set()),
        # Others read the sum too, so it is made where they want it.
        ("d = Add (x, x) y = Relu (d) hn = Sub (d, h)", {"hn"}),
        ("r = Reshape (h, shape) n = Neg (r) hn = Max (r, x) y = Relu (n)", {"hn"}),
    ],
)
def test_other_ways_of_a_state(tmp_path: Path, body: str, wanted: set[str]) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] hn)
    <float decay = {{0.9}}, int64[2] shape = {{1, 4}}> {{ {body} }}"""
    assert kept(save(tmp_path / "m.onnx", onnx.parser.parse_model(text))) == wanted


def test_without_state_nothing_is_kept(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,4] x, float[1,4] z) => (float[1,4] y) { y = Add (x, z) }"""
    assert kept(save(tmp_path / "m.onnx", onnx.parser.parse_model(text))) == set()
