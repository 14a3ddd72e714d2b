"""Measures this machine's CPU as a host: what onnxruntime reaches, as the TOML file that `--host`
takes."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from compiler.graph.reference import open_session, quiet_options

_REPEATS = 7
# A matrix product of this size is bound by arithmetic, a sum of vectors of this length by memory.
_SIZE = 1024
_LENGTH = 1 << 24
# Small operators in a chain: what they take is what any operator takes.
_STEPS = 200
# Scores of a detector, all of which are sorted and compared.
_CLASSES, _BOXES = 20, 1000

Arrays = dict[str, np.ndarray]


def measure(threads: int) -> str:
    """The text of a host file: multiply-accumulates, bytes and scalars per second, seconds for each
    operator."""
    product = _seconds(_chain(["MatMul"], _floats((_SIZE, _SIZE), (_SIZE, _SIZE))), threads)
    int8 = _seconds(_int8_product(), threads)
    total = _seconds(_chain(["Add"], _floats((_LENGTH,), (_LENGTH,))), threads)
    selection = _seconds(_selection(), threads)
    chain = _seconds(_chain(["Tanh"] * _STEPS, _floats((1, 16))), threads)
    single = _seconds(_chain(["Tanh"], _floats((1, 16))), threads)
    macs = _SIZE**3 / product
    # Two vectors of 4-byte floats are read, one is written.
    moved = 3 * 4 * _LENGTH / total
    operator = max(chain - single, 0.0) / (_STEPS - 1)
    name = platform.node() or "this machine"
    software = f"onnxruntime {onnxruntime.__version__}"
    lines = [
        f'name = "{name}"',
        f'description = "{platform.machine()}, {software}, {threads} threads"',
        f"# Measured: a {_SIZE} x {_SIZE} matrix product.",
        f"macs = {macs:.4g}",
        "# Measured: the same in int8.",
        f"int8_macs = {_SIZE**3 / int8:.4g}",
        f"cores = {threads}",
        f"# Measured: two vectors of {_LENGTH} floats added.",
        f"bytes = {moved:.4g}",
        f"# Measured: non-maximum suppression of {_BOXES} boxes of {_CLASSES} classes.",
        f"scalars = {_CLASSES * _BOXES / selection:.4g}",
        f"# Measured: {_STEPS} small operators in a chain.",
        f"operator = {operator:.3g}",
    ]
    return "\n".join([*lines, ""])


def _floats(*shapes: tuple[int, ...]) -> Arrays:
    """Inputs x0, x1 ... of random numbers."""
    rng = np.random.default_rng(0)
    return {f"x{i}": rng.random(shape, np.float32) for i, shape in enumerate(shapes)}


def _chain(op_types: Sequence[str], feeds: Arrays) -> tuple[bytes, Arrays]:
    """A chain of operators; the first reads all inputs."""
    names = list(feeds)
    nodes = []
    for index, op_type in enumerate(op_types):
        nodes.append(helper.make_node(op_type, names, [f"y{index}"]))
        names = [f"y{index}"]
    return _model(nodes, feeds, {}), feeds


def _int8_product() -> tuple[bytes, Arrays]:
    """A matrix product as host segments have it in int8 (compiler/emit/qgemm.py)."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.integers(0, 255, (_SIZE, _SIZE), np.uint8)}
    constants: Arrays = {
        "scale": np.array(0.01, np.float32),
        "x_zero": np.array(128, np.uint8),
        "w": rng.integers(-127, 127, (_SIZE, _SIZE), np.int8),
        "w_zero": np.array(0, np.int8),
    }
    inputs = ["x", "scale", "x_zero", "w", "scale", "w_zero"]
    node = helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft")
    return _model([node], feeds, constants), feeds


def _selection() -> tuple[bytes, Arrays]:
    """Non-maximum suppression with a threshold that all scores pass."""
    rng = np.random.default_rng(0)
    corners = rng.random((1, _BOXES, 2), np.float32)
    sizes = rng.random((1, _BOXES, 2), np.float32) / 5
    boxes = np.concatenate([corners, corners + sizes], axis=2)
    feeds = {"boxes": boxes, "scores": rng.random((1, _CLASSES, _BOXES), np.float32)}
    limits = np.array([0.6, 0], np.float32)
    constants = {"most": np.array([100]), "overlap": limits[:1], "least": limits[1:]}
    node = helper.make_node("NonMaxSuppression", [*feeds, *constants], ["y"])
    return _model([node], feeds, constants), feeds


def _model(nodes: Sequence[NodeProto], feeds: Arrays, constants: Arrays) -> bytes:
    """A model whose last node gives its output."""
    inputs = []
    for name, array in feeds.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    selects = nodes[-1].op_type == "NonMaxSuppression"
    kind = TensorProto.INT64 if selects else TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], kind, None)]
    weights = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "measure", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


def _seconds(case: tuple[bytes, Arrays], threads: int) -> float:
    """Median time of a run of a model with its inputs."""
    model, feeds = case
    options = quiet_options()
    options.intra_op_num_threads = threads
    session = open_session(model, options)
    session.run(None, feeds)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
