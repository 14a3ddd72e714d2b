"""Random valid models over the operators that the compiler knows, drawn through `Draw`: by
hypothesis in the tests, which makes failures small, and by a seeded generator in the benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

T = TypeVar("T")
Shape = tuple[int, ...]


class Draw(Protocol):
    def integer(self, low: int, high: int) -> int: ...

    def choice(self, options: Sequence[T]) -> T: ...


@dataclass
class Builder:
    """A graph that grows: `open` are the tensors that later nodes may read, with their shapes."""

    draw: Draw
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    open: dict[str, Shape] = field(default_factory=dict)

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        """He-normal over all axes but the first."""
        fan = max(1, math.prod(shape[1:]))
        return self.constant(
            (self.rng.standard_normal(shape) * math.sqrt(2 / fan)).astype(np.float32)
        )

    def add(self, kind: str, inputs: Sequence[str], shape: Shape, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], f"{kind}{len(self.nodes)}", **attributes)
        )
        self.open[name] = shape
        return name

    def pick(self, rank: int) -> tuple[str, Shape] | None:
        names = [n for n, s in self.open.items() if len(s) == rank]
        return (name := self.draw.choice(names), self.open[name]) if names else None


def conv(b: Builder, x: str, shape: Shape) -> None:
    n, c, h, w = shape
    k, stride = b.draw.choice([1, 3, 5]), b.draw.choice([1, 1, 2])
    groups = b.draw.choice([1, 1, c])
    out = c * b.draw.choice([1, 2]) if groups == c else b.draw.choice([4, 8, 16])
    pad = b.draw.choice([0, k // 2])
    size = [(d + 2 * pad - k) // stride + 1 for d in (h, w)]
    if min(size) < 1:
        return
    bias = b.constant(b.rng.standard_normal(out).astype(np.float32))
    inputs = [x, b.weight(out, c // groups, k, k), bias]
    b.add("Conv", inputs, (n, out, *size), pads=[pad] * 4, strides=[stride] * 2, group=groups)


def pool(b: Builder, x: str, shape: Shape) -> None:
    n, c, h, w = shape
    k = b.draw.choice([2, 3])
    if min(h, w) < k:
        return
    size = [(d - k) // 2 + 1 for d in (h, w)]
    b.add(
        b.draw.choice(["MaxPool", "AveragePool"]),
        [x],
        (n, c, *size),
        kernel_shape=[k, k],
        strides=[2, 2],
    )


def global_pool(b: Builder, x: str, shape: Shape) -> None:
    b.add("GlobalAveragePool", [x], (*shape[:2], 1, 1))


def norm(b: Builder, x: str, shape: Shape) -> None:
    c = shape[1]
    gain, bias, mean = (b.constant(b.rng.standard_normal(c).astype(np.float32)) for _ in range(3))
    b.add(
        "BatchNormalization",
        [x, gain, bias, mean, b.constant(b.rng.random(c).astype(np.float32) + 0.5)],
        shape,
    )


def resize(b: Builder, x: str, shape: Shape) -> None:
    n, c, h, w = shape
    if max(h, w) > 16:
        return
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    b.add(
        "Resize", [x, "", scales], (n, c, 2 * h, 2 * w), mode=b.draw.choice(["nearest", "linear"])
    )


def pad(b: Builder, x: str, shape: Shape) -> None:
    pads = b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    b.add("Pad", [x, pads], (*shape[:2], shape[2] + 2, shape[3] + 2))


def flatten(b: Builder, x: str, shape: Shape) -> None:
    if math.prod(shape) <= 4096:
        b.add("Flatten", [x], (shape[0], math.prod(shape[1:])))


def tokens(b: Builder, x: str, shape: Shape) -> None:
    n, c, h, w = shape
    flat = b.add("Reshape", [x, b.constant(np.array([n, c, h * w], np.int64))], (n, c, h * w))
    b.add("Transpose", [flat], (n, h * w, c), perm=[0, 2, 1])


def dense(b: Builder, x: str, shape: Shape) -> None:
    out = b.draw.choice([4, 10, 32])
    bias = b.constant(b.rng.standard_normal(out).astype(np.float32))
    b.add("Gemm", [x, b.weight(out, shape[1]), bias], (shape[0], out), transB=1)


def matmul(b: Builder, x: str, shape: Shape) -> None:
    out = b.draw.choice([4, 8, 32])
    scale = math.sqrt(2 / shape[-1])
    w = b.constant((b.rng.standard_normal((shape[-1], out)) * scale).astype(np.float32))
    b.add("MatMul", [x, w], (*shape[:-1], out))


def layer_norm(b: Builder, x: str, shape: Shape) -> None:
    gain, bias = (b.constant(b.rng.standard_normal(shape[-1]).astype(np.float32)) for _ in range(2))
    b.add("LayerNormalization", [x, gain, bias], shape, axis=-1)


def softmax(b: Builder, x: str, shape: Shape) -> None:
    b.add("Softmax", [x], shape, axis=-1)


def unary(b: Builder, x: str, shape: Shape) -> None:
    kinds = ["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Abs", "Neg", "Gelu"]
    b.add(b.draw.choice(kinds), [x], shape)


def clip(b: Builder, x: str, shape: Shape) -> None:
    b.add(
        "Clip",
        [
            x,
            *(
                b.constant(np.array(v, np.float32))
                for v in b.draw.choice([(0, 6), (-1, 1), (0, 1)])
            ),
        ],
        shape,
    )


def with_constant(b: Builder, x: str, shape: Shape) -> None:
    c = b.rng.standard_normal((1, shape[1], *(1,) * (len(shape) - 2))).astype(np.float32)
    b.add(b.draw.choice(["Add", "Mul", "Sub"]), [x, b.constant(c)], shape)


def joined(b: Builder, x: str, shape: Shape) -> None:
    """Two tensors of one shape, or concatenated along the channels."""
    alike = [n for n, s in b.open.items() if s == shape]
    other = b.draw.choice(alike)
    kind = b.draw.choice(["Add", "Mul", "Max", "Concat"])
    if kind == "Concat":
        b.add("Concat", [x, other], (shape[0], 2 * shape[1], *shape[2:]), axis=1)
    else:
        b.add(kind, [x, other], shape)


def cut(b: Builder, x: str, shape: Shape) -> None:
    if shape[1] < 4:
        return
    begins, ends, axes = (b.constant(np.array([v], np.int64)) for v in (shape[1] // 4, shape[1], 1))
    b.add("Slice", [x, begins, ends, axes], (shape[0], shape[1] - shape[1] // 4, *shape[2:]))


def mean(b: Builder, x: str, shape: Shape) -> None:
    axes = b.constant(np.array([len(shape) - 1], np.int64))
    b.add("ReduceMean", [x, axes], (*shape[:-1], 1), keepdims=1)


ANY: list[Callable[[Builder, str, Shape], None]] = [unary, clip, with_constant, joined, cut, mean]
STEPS: dict[int, list[Callable[[Builder, str, Shape], None]]] = {
    4: [conv, conv, conv, pool, global_pool, norm, resize, pad, flatten, tokens, *ANY],
    3: [matmul, matmul, layer_norm, softmax, *ANY],
    2: [dense, dense, matmul, softmax, *ANY],
}


def random_model(draw: Draw) -> onnx.ModelProto:
    """A model of up to twelve nodes on an image, rows of tokens or a vector; what nobody reads is
    an output."""
    shape: Shape = draw.choice([(1, 3, 16, 16), (1, 4, 9, 7), (1, 8, 5, 5), (1, 12, 16), (1, 24)])
    b = Builder(draw, np.random.default_rng(draw.integer(0, 10**6)))
    b.open["x"] = shape
    for _ in range(draw.integer(1, 12)):
        rank = draw.choice(sorted({len(s) for s in b.open.values()}))
        picked = b.pick(rank)
        assert picked is not None
        draw.choice(STEPS[rank])(b, *picked)
    if not b.nodes:
        unary(b, "x", shape)
    read = {name for node in b.nodes for name in node.input}
    outputs = [name for name in b.open if name not in read and name != "x"]
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, b.open[n]) for n in outputs],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
