"""Measures this machine's CPU as a host: what onnxruntime reaches in float, as the TOML file that
`--host` takes."""

from __future__ import annotations

import platform
import statistics
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from compiler.graph.reference import open_session, quiet_options

_REPEATS = 7


def measure(threads: int) -> str:
    """The text of a host file: multiply-accumulates and bytes per second, seconds for each
    operator."""
    size, length, steps = 1024, 1 << 24, 200
    product = _seconds(_model(["MatMul"], [(size, size), (size, size)]), threads)
    total = _seconds(_model(["Add"], [(length,), (length,)]), threads)
    chain = _seconds(_model(["Tanh"] * steps, [(1, 16)]), threads)
    single = _seconds(_model(["Tanh"], [(1, 16)]), threads)
    return (
        f'name = "{platform.node() or "this machine"}"\n'
        f'description = "{platform.machine()}, onnxruntime {onnxruntime.__version__}, {threads} threads, float"\n'
        f"# Measured: a {size} x {size} matrix product.\nmacs = {size**3 / product:.4g}\n"
        f"# Measured: two vectors of {length} floats added.\nbytes = {12 * length / total:.4g}\n"
        f"# Measured: {steps} small operators in a chain.\noperator = {max(chain - single, 0.0) / (steps - 1):.3g}\n"
    )


def _model(kinds: list[str], shapes: list[tuple[int, ...]]) -> bytes:
    """A chain of operators; the first reads all inputs."""
    inputs = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, s) for i, s in enumerate(shapes)
    ]
    nodes, names = [], [i.name for i in inputs]
    for index, kind in enumerate(kinds):
        nodes.append(helper.make_node(kind, names, [f"y{index}"]))
        names = [f"y{index}"]
    outputs = [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "measure", inputs, outputs)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _seconds(model: bytes, threads: int) -> float:
    """Median time of a run."""
    options = quiet_options()
    options.intra_op_num_threads = threads
    session = open_session(model, options)
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    session.run(None, feeds)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
