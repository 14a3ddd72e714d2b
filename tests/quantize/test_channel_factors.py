"""Channel factors are exact and worth it; ranges end where nothing is lost; biases make up for
rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph import activations_around
from compiler.graph.reference import Reference
from compiler.ops.activation import SIGMOID_END
from compiler.partition import PartitionOptions
from compiler.quantize import weights
from compiler.quantize.calibrate import ChannelStats, observe
from compiler.quantize.equalise import equalise
from compiler.quantize.saturate import saturated
from tests.conftest import save

HEAD = '<ir_version: 11, opset_import: ["" : 23]>\n'
GAINS = np.geomspace(1, 100, 8).astype(np.float32)


def uneven(outputs: int, inputs: int, kernel: int = 1) -> np.ndarray:
    """Weights whose outputs differ a hundredfold."""
    w = (
        np.random.default_rng(outputs)
        .normal(size=(outputs, inputs, kernel, kernel))
        .astype(np.float32)
    )
    return w * np.resize(GAINS, outputs)[:, None, None, None]


def even(outputs: int, inputs: int, kernel: int = 1) -> np.ndarray:
    """Weights that make up for such inputs, so that small channels matter as much as large ones."""
    w = (
        np.random.default_rng(inputs)
        .normal(size=(outputs, inputs, kernel, kernel))
        .astype(np.float32)
    )
    return w / np.resize(GAINS, inputs)[None, :, None, None]


def depthwise(channels: int) -> np.ndarray:
    w = np.random.default_rng(3).normal(size=(channels, 1, 3, 3)).astype(np.float32)
    return w / np.resize(GAINS, channels)[:, None, None, None]


NETWORKS = {
    "relu": "c = Conv (x, a) r = Relu (c) y = Conv (r, b)",
    "leaky": "c = Conv (x, a) r = LeakyRelu (c) y = Conv (r, b)",
    "pools": """c = Conv (x, a) r = Relu (c) m = MaxPool <kernel_shape = [2, 2]> (r)
                q = AveragePool <kernel_shape = [2, 2]> (m) y = Conv (q, b)""",
    "depthwise": "c = Conv (x, a) r = Relu (c) d = Conv <group = 8> (r, w) y = Conv (d, b8)",
    "residual": """c = Conv (x, a) r = Relu (c) d = Conv (r, b8) s = Add (r, d) k = Add (s, row)
                   y = Conv (k, b)""",
    "concat": """c = Conv (x, a) r = Relu (c) l = Conv (x, a) z = Concat <axis = 1> (r, l)
                 y = Conv (z, wide)""",
    "split": """c = Conv (x, a) p, q = Split <axis = 1, num_outputs = 2> (c) s = Add (p, q)
                y = Conv (s, narrow)""",
    "gate": "c = Conv (x, a) g = Sigmoid (c) m = Mul (c, g) y = Conv (m, b)",
    "hard swish": "c = Conv (x, a) m = HardSwish (c) y = Conv (m, b)",
    "gelu": "c = Conv (x, a) m = Gelu (c) y = Conv (m, b)",
    "excitation": """c = Conv (x, a) r = Relu (c) mean = GlobalAveragePool (r) f = Conv (mean, b8)
                     g = Sigmoid (f) m = Mul (r, g) y = Conv (m, b)""",
    "dense": "c = Conv (x, a) r = Relu (c) f = Flatten (r) y = MatMul (f, flat)",
    "transposed": "c = Conv (x, a) r = Relu (c) y = ConvTranspose <strides = [2, 2]> (r, up)",
}
# Where channels cannot be told from what a clamp at six means for all.
FIXED = "c = Conv (x, a) r = Clip (c, zero, six) y = Conv (r, b)"


def network(body: str) -> onnx.ModelProto:
    text = f"g (float[1,4,8,8] x) => (float[1,a,b,c] y) {{ {body} }}".replace(
        "[1,a,b,c]", "[n,k]" if "MatMul" in body else "[1,a,b,c]"
    )
    proto = onnx.parser.parse_model(HEAD + text)
    arrays = {
        "a": uneven(8, 4),
        "b": even(4, 8),
        "b8": even(8, 8) * GAINS[:, None, None, None] / 4,
        "w": depthwise(8),
        "wide": even(4, 16),
        "narrow": even(4, 4),
        "up": even(8, 8).transpose(1, 0, 2, 3)[:, :4].repeat(2, 2).repeat(2, 3),
        "flat": np.random.default_rng(5).normal(size=(512, 3)).astype(np.float32)
        / np.repeat(GAINS, 64)[:, None],
        "row": GAINS[:, None, None] / 10,
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v, np.float32), k)
        for k, v in arrays.items()
        if k in used
    )
    return proto


def samples(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


def lowered(body: str, folder: Path) -> building.Program:
    path = save(folder / "model.onnx", network(body))
    options = BuildOptions()
    return building.plan_program(building.read(path, options), options)


def tpu_nodes(program: building.Program) -> list[ir.Node]:
    return [n for s in program.plan.segments if s.device == "tpu" for n in s.nodes]


def seen(program: building.Program) -> tuple[list[ir.Node], dict[str, ChannelStats]]:
    nodes = tpu_nodes(program)
    return nodes, saturated(nodes, observe(program.model, activations_around(nodes), samples()))


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_change_nothing_in_float(name: str, tmp_path: Path) -> None:
    program = lowered(NETWORKS[name], tmp_path)
    with Reference(program.model) as before:
        wanted = [before.run(s)["y"] for s in samples(2)]
    nodes, shown = seen(program)
    then = equalise(program.model, nodes, shown)
    assert any(not np.array_equal(then[k].high, shown[k].high) for k in shown), (
        "nothing was equalised"
    )
    with Reference(program.model) as after:
        for sample, want in zip(samples(2), wanted, strict=True):
            assert np.abs(after.run(sample)["y"] - want).max() <= 1e-4 * np.abs(want).max()
    for key, now in observe(program.model, activations_around(nodes), samples()).items():
        assert np.allclose(now.mean, then[key].mean, rtol=1e-3, atol=1e-4)


def test_what_cannot_bear_factors_keeps_its_weights(tmp_path: Path) -> None:
    program = lowered(FIXED, tmp_path)
    nodes, shown = seen(program)
    assert equalise(program.model, nodes, shown) == shown


def test_small_channels_are_told_apart(tmp_path: Path) -> None:
    """On held-out samples, with the same ranges otherwise."""
    path = save(tmp_path / "model.onnx", network(NETWORKS["residual"]))
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.concatenate([s["x"] for s in samples(24)]))
    found = {}
    for without in ((), ("equalise",)):
        options = BuildOptions(
            calibration=data,
            without=frozenset(without),
            quality=None,
            partitioning=PartitionOptions(place="tpu"),
        )
        manifest = building.build(path, tmp_path / f"{len(without)}.bundle", options)
        found[without] = manifest["quality"]["outputs"]["y"]["sqnr_db"]
    assert found[()] > found["equalise",] + 6


def shown(low: float, high: float) -> ChannelStats:
    ends = np.full((2, 1), low, np.float32), np.full((2, 1), high, np.float32)
    # Values spread evenly between the ends.
    square = np.full(1, (low**2 + low * high + high**2) / 3, np.float32)
    return ChannelStats(*ends, np.full(1, (low + high) / 2, np.float32), square)


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("c = Conv (x, a) y = HardSwish (c)", -2.79, 50.0),
        ("c = Conv (x, a) g = Sigmoid (c) y = Mul (c, g)", -3.57, 50.0),
        ("c = Conv (x, a) y = Gelu (c)", -1.61, 50.0),
        ("c = Conv (x, a) y = Sigmoid (c)", -SIGMOID_END, SIGMOID_END),
        ("c = Conv (x, a) g = Sigmoid (c) m = Mul (c, g) y = Add (m, c)", -50.0, 50.0),
        ("c = Conv (x, a) y = Relu (c)", -50.0, 50.0),
        (
            "c = Conv (x, a) m = MaxPool <kernel_shape = [2, 2]> (c) y = Sigmoid (m)",
            -SIGMOID_END,
            SIGMOID_END,
        ),
        ("c = Conv (x, a) j = Concat <axis = 3> (c, c) y = Sigmoid (j)", -SIGMOID_END, SIGMOID_END),
        (
            "c = Conv (x, a) j = Concat <axis = 3> (c, c) s = Sigmoid (j) y = Add (s, j)",
            -50.0,
            50.0,
        ),
    ],
)
def test_ranges_end_where_gates_close(body: str, low: float, high: float, tmp_path: Path) -> None:
    """That is where the product is less than a quarter of a step of its own range, [-50, 50], from
    zero."""
    program = lowered(body, tmp_path)
    nodes = tpu_nodes(program) or list(program.model.graph)
    conv = next(n for n in nodes if n.op_type == "Conv2D").outputs[0]
    ranges = {str(v.name): shown(-50, 50) for v in activations_around(nodes)}
    got = saturated(nodes, ranges)[str(conv.name)].range
    assert got == pytest.approx((low, high), abs=0.03)


def test_biases_make_up_for_rounded_weights() -> None:
    rng = np.random.default_rng(0)
    w, bias = rng.normal(size=(16, 32, 3, 3)).astype(np.float32), np.zeros(16, np.float32)
    means = np.abs(rng.normal(size=32)).astype(np.float32)
    wanted = w.sum(axis=(2, 3)) @ means
    off = {}
    for given in (None, means):
        q, scales, b = weights.quantize(w, bias, weights.Surroundings("w", 0.01, 1.0, None, given))
        steps = scales.astype(np.float64)
        off[given is None] = np.abs(
            (q * steps[:, None, None, None]).sum(axis=(2, 3)) @ means + b * steps * 0.01 - wanted
        )
    assert off[False].max() < 0.1 * off[True].max()
    assert off[False].max() <= (steps * 0.01).max()


def test_biases_of_depthwise_layers() -> None:
    w = np.random.default_rng(1).normal(size=(6, 1, 3, 3)).astype(np.float32)
    means = np.array([5, -3, 2], np.float32)
    q, scales, b = weights.quantize(
        w, np.zeros(6, np.float32), weights.Surroundings("w", 0.01, 1.0, None, means)
    )
    got = (q * scales[:, None, None, None]).sum(axis=(1, 2, 3)) * np.repeat(
        means, 2
    ) + b * scales * 0.01
    assert np.allclose(
        got, w.sum(axis=(1, 2, 3)) * np.repeat(means, 2), atol=float(scales.max()) * 0.01
    )
