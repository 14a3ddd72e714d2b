"""Which outputs go back into which inputs: told by names and shapes, or by the user."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from compiler import importer
from compiler.errors import OptionError
from compiler.importer import state
from tests.conftest import save


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("hn", "h"),
        ("cn", "c0"),
        ("stateN", "state"),
        ("output_states", "input_states"),
        ("Y_h", "initial_h"),
        ("hy", "hx"),
        ("cache_out", "cache_in"),
        ("out_cache_3", "in_cache_3"),
        ("new_cached_len_0", "cached_len_0"),
        ("cache_last_channel_next", "cache_last_channel"),
        ("r_att_cache", "att_cache"),
        ("present", "past"),
        ("next_frame", "prev_frame"),
        ("rnn_state_out", "rnn_state"),
    ],
)
def test_names_of_one_state(output: str, name: str) -> None:
    assert state.is_pair(output, name)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("output", "input"),
        ("output_image", "input_image"),
        ("y", "x"),
        ("cache_out_1", "cache_in_2"),
        ("hn", "c0"),
        ("present", "x"),
        ("next_token", "token"),
        ("logits", "state"),
    ],
)
def test_names_of_other_tensors(output: str, name: str) -> None:
    assert not state.is_pair(output, name)


MODEL = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,8] x, float[1,4] h, float[1,8] state)
        => (float[1,8] y, float[1,4] hn, float[1,4] stateN, float[1,8] left) {
        y = Add (x, state)
        hn = Tanh (h)
        stateN = Abs (h)
        left = Relu (x)
    }"""


def imported(tmp_path: Path) -> ir.Model:
    return importer.load(save(tmp_path / "m.onnx", onnx.parser.parse_model(MODEL)))


def test_shapes_have_to_fit(tmp_path: Path) -> None:
    """`stateN` has the name of `state` and another shape."""
    model = imported(tmp_path)
    assert state.settle(model, None) == {"hn": "h"}
    assert state.of(model.clone()) == {"hn": "h"}
    assert state.settle(model, {}) == {}


def test_named_pairs(tmp_path: Path) -> None:
    model = imported(tmp_path)
    assert state.settle(model, {"left": "state"}) == {"left": "state"}


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"hm": "h"}, "hm=h: the model has no output 'hm'; the closest are 'hn'"),
        ({"hn": "stat"}, "hn=stat: the model has no input 'stat'; the closest are 'state'"),
        ({"stateN": "state"}, "output 'stateN' is [1, 4] float32, input 'state' is [1, 8] float32"),
    ],
)
def test_bad_pairs_get_one_line(tmp_path: Path, named: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError) as raised:
        state.settle(imported(tmp_path), named)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_open_batch_of_a_state_is_one(tmp_path: Path) -> None:
    """What samples cannot tell, as they leave the state out; a length stays open."""
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,8] x, float[2,N,4] state, float[1,T,4] cache)
        => (float[1,8] y, float[2,N,4] stateN, float[1,T,4] cache_out) {
        y = Relu (x) stateN = Tanh (state) cache_out = Abs (cache)
    }"""
    proto = onnx.parser.parse_model(text)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "N":
                dim.ClearField("dim_param")
    loaded = importer.load(save(tmp_path / "m.onnx", proto), {"T": 3})
    shapes = {value.name: list(value.shape) for value in loaded.graph.inputs}
    assert shapes["state"] == [2, 1, 4] and shapes["cache"] == [1, 3, 4]
