"""Measures this machine's CPU as a host: what onnxruntime reaches in float, as the TOML file that
`--host` takes."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from compiler.graph.reference import open_session, quiet_options

_REPEATS = 7
# A matrix product of this size is bound by arithmetic, a sum of vectors of this length by memory.
_SIZE = 1024
_LENGTH = 1 << 24
# Small operators in a chain: what they take is what any operator takes.
_STEPS = 200


def measure(threads: int) -> str:
    """The text of a host file: multiply-accumulates and bytes per second, seconds for each
    operator."""
    product = _seconds(_model(["MatMul"], [(_SIZE, _SIZE), (_SIZE, _SIZE)]), threads)
    total = _seconds(_model(["Add"], [(_LENGTH,), (_LENGTH,)]), threads)
    chain = _seconds(_model(["Tanh"] * _STEPS, [(1, 16)]), threads)
    single = _seconds(_model(["Tanh"], [(1, 16)]), threads)
    macs = _SIZE**3 / product
    # Two vectors of 4-byte floats are read, one is written.
    moved = 3 * 4 * _LENGTH / total
    operator = max(chain - single, 0.0) / (_STEPS - 1)
    name = platform.node() or "this machine"
    software = f"onnxruntime {onnxruntime.__version__}"
    lines = [
        f'name = "{name}"',
        f'description = "{platform.machine()}, {software}, {threads} threads, float"',
        f"# Measured: a {_SIZE} x {_SIZE} matrix product.",
        f"macs = {macs:.4g}",
        f"# Measured: two vectors of {_LENGTH} floats added.",
        f"bytes = {moved:.4g}",
        f"# Measured: {_STEPS} small operators in a chain.",
        f"operator = {operator:.3g}",
    ]
    return "\n".join([*lines, ""])


def _model(op_types: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> bytes:
    """A chain of operators; the first reads all inputs."""
    inputs = [
        helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape)
        for index, shape in enumerate(shapes)
    ]
    names = [value.name for value in inputs]
    nodes = []
    for index, op_type in enumerate(op_types):
        nodes.append(helper.make_node(op_type, names, [f"y{index}"]))
        names = [f"y{index}"]
    outputs = [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "measure", inputs, outputs)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


def _seconds(model: bytes, threads: int) -> float:
    """Median time of a run."""
    options = quiet_options()
    options.intra_op_num_threads = threads
    session = open_session(model, options)
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        feeds[value.name] = rng.standard_normal(value.shape).astype(np.float32)
    session.run(None, feeds)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
