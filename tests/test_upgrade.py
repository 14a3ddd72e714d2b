"""Operators of old opsets mean after import what onnxruntime takes them to mean in the file."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph import OPSET, RAISED
from compiler.graph.reference import Reference
from compiler.importer import load as importer
from compiler.importer.upgrade import ADAPTERS, ENDING
from compiler.runtime import Bundle, Pipeline

OLDEST = importer.OLDEST_OPSET
Array = np.ndarray
X = (2, 4, 6, 6)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """One node: shapes are inputs of the graph, arrays are weights, None is left out. It is of
    schemas `first` to `last` of its operator."""

    inputs: tuple[Any, ...] = (X,)
    attributes: dict[str, Any] = field(default_factory=dict)
    first: int = 1
    last: int = OPSET
    outputs: int = 1
    dtype: str = "float32"
    positive: bool = False


def case(
    *inputs: Any, first: int = 1, last: int = OPSET, outputs: int = 1, **attributes: Any
) -> Case:
    return Case(inputs or (X,), attributes, first, last, outputs)


def typed(dtype: str, found: Case) -> Case:
    """The case on another float type, its float weights too."""

    def cast(entry: Any) -> Any:
        return (
            entry.astype(dtype) if isinstance(entry, Array) and entry.dtype == np.float32 else entry
        )

    inputs = tuple(map(cast, found.inputs))
    return Case(inputs, found.attributes, found.first, found.last, found.outputs, dtype)


def f(*shape: int) -> Array:
    return (RNG.random(shape) + 0.5).astype(np.float32)


def i(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def scalar(number: float, dtype: str = "float32") -> Array:
    return np.array(number, dtype)


def text(*words: float) -> Array:
    return np.array(words, np.float32)


def both(*cases: Case) -> list[Case]:
    """On three float types."""
    return [typed(dtype, c) for c in cases for dtype in ("float32", "float64", "float16")]


def reduction(first_input: int) -> list[Case]:
    old = {"last": first_input - 1}
    return [
        case(),
        case(keepdims=0),
        case(axes=[1], **old),
        case(axes=[-1, 1], keepdims=0, first=11, **old),
        case(axes=[], **old),
        case(X, i(1, 3), first=first_input),
        case(X, i(), first=first_input, noop_with_empty_axes=1),
    ]


def rows() -> list[Case]:
    """Of all ranks, and shapes with axes of one."""
    shapes: list[tuple[int, ...]] = [
        (5,),
        (3, 5),
        (2, 4, 6),
        X,
        (1, 7, 1, 1),
        (1, 1, 5, 1),
        (2, 3, 1, 5),
    ]
    found = [case(shape) for shape in shapes if len(shape) > 1]
    found += [case(shape, axis=axis) for shape in shapes for axis in range(len(shape))]
    return found + [
        case(shape, axis=-axis, first=11) for shape in shapes for axis in range(1, len(shape) + 1)
    ]


def resizes() -> Iterator[Case]:
    small = (1, 2, 10, 4)
    for scales in ([1, 1, 2, 3], [1, 1, 0.7, 1.6], [1, 1, 0.6, 0.5], [1, 1, 1.3, 2.7]):
        for mode in ("nearest", "linear"):
            yield case(small, text(*scales), last=10, mode=mode)
            yield case(small, text(), text(*scales), first=11, mode=mode)
    yield case((10, 7), text(0.6, 1.6), last=10, mode="linear")
    yield case((10, 7), text(0.6, 1.6), last=10)
    yield case((1, 2, 5, 6, 4), text(1, 1, 2, 1.5, 2), last=10, mode="linear")
    yield case(small, text(), text(1, 1, 2, 3), first=11, mode="cubic")
    yield case(
        small,
        text(),
        text(),
        i(1, 2, 15, 6),
        first=13,
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    )


def upsamples() -> Iterator[Case]:
    for scales in ([1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.5, 2.7]):
        for mode in ("nearest", "linear"):
            yield case((1, 2, 10, 4), last=8, mode=mode, scales=scales)
            yield case((1, 2, 10, 4), text(*scales), first=9, mode=mode)
    yield case((1, 2, 10, 4), last=8, scales=[1.0, 1.0, 2.0, 2.0])
    yield case((5, 4), text(2, 1.5), first=9, mode="linear")
    yield case((1, 2, 3, 4, 5), text(1, 1, 2, 1.5, 3), first=9, mode="linear")


def recurrent(gates: int, **more: Any) -> list[Case]:
    """Weights of a recurrent layer with 3 inputs and 4 states, one way and both."""
    one = (f(1, gates * 4, 3), f(1, gates * 4, 4), f(1, gates * 8))
    two = (f(2, gates * 4, 3), f(2, gates * 4, 4), f(2, gates * 8))
    return [
        case((5, 2, 3), *one, hidden_size=4, outputs=2, **more),
        case((5, 2, 3), *two, hidden_size=4, outputs=2, direction="bidirectional", **more),
        case(
            (5, 2, 3), *one, None, f(1, 2, 4), hidden_size=4, outputs=2, direction="reverse", **more
        ),
        case((2, 5, 3), *one, hidden_size=4, outputs=2, first=14, layout=1, **more),
    ]


def pools(**more: Any) -> list[Case]:
    small, odd = (
        {"kernel_shape": [3, 3], "strides": [2, 2]} | more,
        {"kernel_shape": [3, 2], "strides": [2, 2]} | more,
    )
    return [
        case(kernel_shape=[2, 2], **more),
        case(**small, pads=[1, 1, 0, 1]),
        case(**small, auto_pad="SAME_UPPER"),
        case((2, 4, 7), kernel_shape=[3], strides=[2], **more),
        case((1, 2, 5, 6, 4), kernel_shape=[2, 3, 2], **more),
        case((1, 3, 6, 7), **small, first=10, ceil_mode=1),
        case((1, 3, 7, 6), **small, first=10, ceil_mode=1, pads=[1, 1, 1, 1]),
        case((1, 3, 8, 8), **odd, first=10, ceil_mode=1, pads=[1, 0, 1, 0]),
    ]


def counted_pools() -> list[Case]:
    return [
        Case(c.inputs, c.attributes | {"count_include_pad": 1}, max(c.first, 7), c.last)
        for c in pools()
    ]


STATISTICS = (f(4), f(4), f(4), f(4))
IMAGE, KERNEL = (1, 3, 5, 5), f(4, 3, 3, 3)
BOXES = np.array([[0, 0, 4, 4], [1, 2, 5.5, 5]], np.float32)
CODES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
TINY = scalar(0.1)


UNARY = (
    "Abs",
    "Acos",
    "Asin",
    "Asinh",
    "Atan",
    "Ceil",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
BINARY = ("Add", "Div", "Mul", "Sub", "Pow", "PRelu", "Max", "Mean", "Min", "Sum")

CASES: dict[str, list[Case]] = {
    **{kind: both(case()) if kind in ("Abs", "Relu") else [case()] for kind in UNARY},
    **{kind: [case(X, f(6)), case(X, f(4, 1, 1)), case(X, f(2, 4, 6, 6))] for kind in BINARY},
    **{
        kind: [case(X, f(6)), case(X, f(4, 1, 1)), case(i(1, 5), i(5))]
        for kind in ("Equal", "Greater", "Less")
    },
    **{kind: [case(X, f(6), first=12)] for kind in ("GreaterOrEqual", "LessOrEqual")},
    **{kind: [Case(positive=True)] for kind in ("Acosh", "Log", "Reciprocal", "Sqrt")},
    **{
        f"Reduce{kind}": reduction(18)
        for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    "ReduceLogSum": [
        Case(c.inputs, c.attributes, c.first, c.last, positive=True) for c in reduction(18)
    ],
    "ReduceSum": reduction(13),
    **{kind: rows() for kind in ("Hardmax", "LogSoftmax", "Softmax")},
    **{
        kind: [
            case(),
            case(axis=2, keepdims=0),
            case(axis=-1, first=11),
            case(axis=1, first=12, select_last_index=1),
        ]
        for kind in ("ArgMax", "ArgMin")
    },
    "Atanh": [case()],
    "AveragePool": pools() + counted_pools(),
    "BatchNormalization": [
        *both(case(X, *STATISTICS), case(X, *STATISTICS, epsilon=0.1)),
        *both(case(X, f(4, 6, 6), f(4, 6, 6), f(4, 6, 6), f(4, 6, 6), last=8, spatial=0)),
        case((3, 4), *STATISTICS),
    ],
    "Cast": [case(to=1), case(to=7), case(to=9), case(to=10), case(to=11)],
    "CastLike": [case(X, i(1), first=15), case(X, scalar(1, "float64"), first=15)],
    "Clip": [
        *both(case(min=-0.5, max=0.5, last=6), case(X, scalar(-0.5), scalar(0.5), first=11)),
        *both(case(max=0.5, last=6), case(min=-0.5, last=6)),
        case(X, None, scalar(0.5), first=11),
        case(last=6),
    ],
    "Compress": [
        case(X, np.array([True, False, True]), axis=1),
        case(X, np.array([True, False, True])),
    ],
    "Concat": [case(X, f(*X), axis=1), case(X, f(*X), axis=-1, first=11)],
    "Constant": [case(value=numpy_helper.from_array(f(3)))],
    "ConstantOfShape": [case(i(2, 3)), case(i(2, 3), value=numpy_helper.from_array(i(5)))],
    "Conv": [
        case(IMAGE, KERNEL),
        case(IMAGE, KERNEL, f(4), strides=[2, 2], pads=[1] * 4, dilations=[2, 1]),
    ],
    "ConvTranspose": [
        case((1, 3, 4, 4), f(3, 2, 3, 3), strides=[2, 2], output_shape=[9, 9]),
        case(
            (1, 3, 4, 4), f(3, 2, 3, 3), strides=[2, 2], output_shape=[8, 8], auto_pad="SAME_UPPER"
        ),
        case(
            (1, 3, 4, 4), f(3, 2, 3, 3), strides=[2, 2], output_shape=[8, 8], auto_pad="SAME_LOWER"
        ),
        case((1, 3, 4, 4), f(3, 2, 3, 3), strides=[2, 2], output_padding=[1, 1], pads=[1] * 4),
    ],
    "CumSum": [case(X, i(1)[0]), case(X, i(-1)[0], exclusive=1, reverse=1)],
    "DFT": [
        case((1, 8, 6, 1), last=17, onesided=1),
        case((1, 8, 6, 1), last=17, axis=2),
        case((1, 8, 6, 2), last=17, axis=1, inverse=1),
        case((1, 8, 6, 1), i(4)[0], last=17),
        case((1, 8, 6, 1), None, i(1)[0], first=20),
    ],
    "DeformConv": [case(IMAGE, KERNEL, f(1, 18, 3, 3), first=19)],
    "DepthToSpace": [
        case((1, 8, 2, 3), blocksize=2),
        case((1, 8, 2, 3), blocksize=2, mode="CRD", first=11),
    ],
    "DequantizeLinear": [
        case(CODES, scalar(0.5), np.array(3, np.uint8)),
        case(CODES, f(3), np.array([1, 2, 3], np.uint8), axis=1, first=13),
        case(CODES, f(3), np.array([1, 2, 3], np.uint8), first=13),
    ],
    "Det": [case((2, 3, 3))],
    "Dropout": [case(), case(ratio=0.3, last=10), case(X, scalar(0.3), first=12)],
    "Expand": [case((4, 1, 6), i(2, 4, 6, 6))],
    "EyeLike": [case((4, 5)), case((4, 5), k=1, dtype=7)],
    "Flatten": [case(), case(axis=0), case(axis=3), case(axis=-1, first=11)],
    "GRU": recurrent(3),
    "Gather": [case(X, i(0, 2), axis=1), case(X, i(1, 0)), case(X, i(-1, 2), axis=-1, first=11)],
    "GatherElements": [
        case((3, 4), i(0, 2, 1, 0).reshape(1, 4)),
        case((3, 4), i(-1, 2, 1).reshape(3, 1), axis=1),
    ],
    "GatherND": [
        case((3, 4), i(0, 1, 2, 3).reshape(2, 2)),
        case((2, 3, 4), i(1, 2).reshape(2, 1), batch_dims=1, first=12),
    ],
    "Gemm": [
        *both(case((2, 8), f(8, 4), f(4), alpha=0.5, beta=2.0)),
        case((2, 8), f(4, 8), f(2, 1), transB=1),
        case((8, 2), f(8, 4), f(1), transA=1),
        case((2, 8), f(8, 4), first=11),
    ],
    **{kind: [case()] for kind in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")},
    "GridSample": [
        case((1, 2, 5, 5), (1, 3, 3, 2)),
        case((1, 2, 5, 5), (1, 3, 3, 2), mode="bilinear", padding_mode="border", last=16),
        case((1, 2, 5, 5), (1, 3, 3, 2), mode="bicubic", align_corners=1, last=16),
        case((1, 2, 5, 5), (1, 3, 3, 2), mode="nearest", padding_mode="reflection"),
        case((1, 2, 5, 5), (1, 3, 3, 2), mode="cubic", first=20),
    ],
    "GroupNormalization": [
        *[case(X, f(2), f(2), num_groups=2, last=20), case(X, f(4), f(4), num_groups=4)],
        *[
            case((2, 6, 5), f(3), f(3), num_groups=3, epsilon=0.1, last=20),
            case(X, f(1), f(1), num_groups=1, last=20),
        ],
        case(X, f(4), f(4), num_groups=2, first=21),
    ],
    "IsInf": [case(), case(detect_negative=0)],
    "IsNaN": [case()],
    "LRN": [case(size=3, alpha=0.5)],
    "LSTM": recurrent(4),
    "LpNormalization": [case(), case(p=1, axis=1)],
    "LpPool": [
        case(kernel_shape=[2, 2]),
        case(kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, p=1),
    ],
    "MatMul": [*both(case((2, 3, 8), f(8, 4))), case((8,), f(8, 4))],
    "MaxPool": [*pools(), case(kernel_shape=[2, 2], strides=[2, 2], outputs=2, first=8)],
    "MaxRoiPool": [
        case((1, 2, 6, 6), np.array([[0, 0, 0, 3, 3]], np.float32), pooled_shape=[2, 2])
    ],
    "MaxUnpool": [
        case((1, 1, 2, 2), i(5, 7, 13, 15).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    ],
    "MeanVarianceNormalization": [case(), case(axes=[1, 2])],
    "Mod": [case(X, f(6), fmod=1), case(i(7, -7, 5), i(3, 3, -3))],
    "NonMaxSuppression": [
        case(BOXES[None], np.array([[[0.9, 0.8]]], np.float32), i(2), text(0.5), text(0.1))
    ],
    "NonZero": [case(np.array([[1, 0], [2, 3]], np.float32))],
    "OneHot": [
        case(i(0, 2, 1), scalar(3), text(-1, 5)),
        case(i(0, -1, 9), scalar(3), text(0, 1), axis=0),
    ],
    "Pad": [
        *both(case(pads=[0, 0, 1, 2, 0, 0, 1, -1], value=1.5, last=2)),
        case(pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="reflect", last=2),
        case(pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="edge", last=2),
        case(pads=[0, 0, 1, 1, 0, 0, 2, 2], last=2),
        case(X, i(0, 0, 1, 1, 0, 0, 1, 1), scalar(2), first=11),
    ],
    "QLinearMatMul": [
        case(
            CODES[0],
            scalar(0.1),
            np.uint8(3),
            CODES[0].T.copy(),
            scalar(0.2),
            np.uint8(1),
            scalar(0.4),
            np.uint8(9),
        )
    ],
    "QuantizeLinear": [
        case(X, TINY, np.array(100, np.uint8)),
        case(X, TINY),
        case(X, f(4), np.array([1, 2, 3, 4], np.uint8), first=13),
        case(X, f(6), np.array([1, 2, 3, 4, 5, 6], np.int8), axis=-1, first=13),
    ],
    "RNN": recurrent(1),
    "Reshape": [case(X, i(2, -1)), case(X, i(0, 0, -1)), case(X, i(-1, 36), first=14, allowzero=1)],
    "Resize": list(resizes()),
    "RoiAlign": [
        case((1, 2, 6, 6), BOXES, i(0, 0), output_height=3, output_width=3),
        case(
            (1, 2, 6, 6),
            BOXES,
            i(0, 0),
            output_height=3,
            output_width=2,
            sampling_ratio=2,
            spatial_scale=0.5,
        ),
        case((1, 2, 6, 6), BOXES, i(0, 0), mode="max", output_height=3, output_width=3),
        case(
            (1, 2, 6, 6),
            BOXES,
            i(0, 0),
            coordinate_transformation_mode="half_pixel",
            output_height=3,
            first=16,
        ),
    ],
    **{
        kind: [
            case((3, 4), i(0, 2, 1, 0).reshape(1, 4), f(1, 4)),
            case((3, 4), i(1, 2, 0).reshape(3, 1), f(3, 1), axis=1),
        ]
        for kind in ("Scatter", "ScatterElements")
    },
    "ScatterND": [case((3, 4), i(0, 2).reshape(2, 1), f(2, 4))],
    "Shape": [case(), case(start=1, end=-1, first=15)],
    "Size": [case()],
    "Slice": [
        case(starts=[1, 0], ends=[3, 100], axes=[1, 3], last=1),
        case(starts=[0, -3], ends=[1, -1], last=1),
        case(X, i(1, 5), i(3, 0), i(1, 3), i(1, -2), first=10),
    ],
    "SpaceToDepth": [case((1, 2, 4, 6), blocksize=2)],
    "Split": [
        case(axis=1, outputs=2, last=13),
        case(outputs=2, last=13),
        case(axis=3, split=[1, 2, 3], outputs=3, last=11),
        case(X, i(1, 2, 3), axis=3, outputs=3, first=13),
        case(axis=3, num_outputs=4, outputs=4, first=18),
    ],
    "Squeeze": [
        case((1, 3, 1), axes=[0], last=11),
        case((1, 3, 1)),
        case((1, 3, 1), axes=[-1], first=11, last=11),
        case((1, 3, 1), i(0), first=13),
    ],
    "Unsqueeze": [
        case((3, 4), axes=[0, 2], last=11),
        case((3, 4), axes=[-1], first=11, last=11),
        case((3, 4), i(0, -1), first=13),
    ],
    "Tile": [case(X, i(1, 2, 1, 3))],
    "TopK": [
        case(k=2, outputs=2, last=1),
        case(k=2, axis=1, outputs=2, last=1),
        case(X, i(2), outputs=2, first=10),
        case(X, i(2), outputs=2, axis=1, largest=0, first=11),
    ],
    "Transpose": [case(), case(perm=[0, 2, 3, 1])],
    "Upsample": list(upsamples()),
    "Where": [case(np.array([True, False, True, False, True, True]), X, f(6))],
}
CASES["InstanceNormalization"] = both(case(X, f(4), f(4)))

# Without a case here, each for its reason.
LEFT = {
    **dict.fromkeys(
        ("If", "Loop", "Scan"),
        "hold graphs: test_in_subgraphs, and Scan of opset 8 in test_importer.py",
    ),
    **dict.fromkeys(
        ("OptionalGetElement", "OptionalHasElement"), "take what no output of an old file can be"
    ),
    **dict.fromkeys(
        (
            "Bernoulli",
            "Multinomial",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
        ),
        "their results are random",
    ),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "are for training"),
}

# Schemas of which onnxruntime runs none of the cases; what it comes to run fails here, so that the
# list only shrinks.
LACKS = {("Scatter", 11), ("Upsample", 10)}

TOLERANCE = {"float16": 4e-3, "float32": 2e-6, "float64": 1e-12}


def changed() -> dict[str, list[int]]:
    """The versions of each operator's schema that are in effect from the oldest opset to ours,
    where there are two."""
    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= OPSET:
            versions.setdefault(schema.name, set()).add(schema.since_version)
    found = {}
    for name, known in versions.items():
        first = max((v for v in known if v <= OLDEST), default=OLDEST)
        in_effect = sorted(v for v in known if v >= first)
        if len(in_effect) > 1:
            found[name] = in_effect
    return found


CHANGED = changed()


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    feeds: dict[str, Array],
    weights: dict[str, Array],
    opset: int,
    results: int,
) -> Path:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=f"y{k}") for k in range(results)]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def written(kind: str, found: Case, opset: int, path: Path) -> dict[str, Array]:
    """Write a model of one node; returns inputs for it."""
    rng = np.random.default_rng(1)
    feeds, weights, names = {}, {}, []
    for index, entry in enumerate(found.inputs):
        names.append("" if entry is None else f"x{index}")
        if isinstance(entry, tuple):
            array = rng.standard_normal(entry).astype(found.dtype)
            feeds[names[-1]] = (
                np.abs(array) + np.asarray(1.1, found.dtype) if found.positive else array
            )
        elif entry is not None:
            weights[names[-1]] = entry
    if not feeds:  # a model without inputs would be a constant
        feeds[names[0]] = np.asarray(weights.pop(names[0]))
    node = helper.make_node(
        kind, names if kind != "Constant" else [], [f"y{k}" for k in range(found.outputs)]
    )
    for name, value in found.attributes.items():
        kind_of = onnx.AttributeProto.INTS if value == [] else None
        node.attribute.append(helper.make_attribute(name, value, attr_type=kind_of))
    save(path, [node], feeds, weights, opset, found.outputs)
    return feeds


def untouched(path: Path, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def compare(path: Path, feeds: dict[str, Array], wanted: list[Array], tolerance: float) -> None:
    model = importer.load(path)
    kinds = {node.op_type for node in model.graph}
    assert model.graph.opset_imports[""] == (RAISED if kinds & ENDING else OPSET)
    with Reference(model) as reference:
        found = list(reference.run(feeds).values())
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(
                got, want, atol=tolerance * np.nanmax(np.abs(want), initial=1), rtol=0
            )
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", sorted(CHANGED))
def test_old_meaning(kind: str, tmp_path: Path) -> None:
    for version in CHANGED[kind]:
        if version > 22 or (version == 22 and kind in ENDING):
            continue  # needs no raising, or cannot be run
        ran = 0
        for found in CASES.get(kind, []):
            if not found.first <= version <= found.last:
                continue
            opset = max(version, OLDEST)
            path = tmp_path / "m.onnx"
            feeds = written(kind, found, opset, path)
            try:
                wanted = untouched(path, feeds)
            except Exception:  # not every form on every type
                continue
            try:
                compare(path, feeds, wanted, TOLERANCE[found.dtype])
            except Exception as error:
                error.add_note(f"{kind} of opset {opset}: {found}")
                raise
            ran += 1
        assert ran or kind in LEFT or (kind, version) in LACKS, f"no case of {kind} {version}"
        assert not ran or (kind, version) not in LACKS, (
            "onnxruntime runs it now: take it off the list"
        )


def test_every_changed_attribute_has_an_adapter() -> None:
    """What an attribute that went, or whose default changed, said is said otherwise."""
    silent = {
        "Constant": "its tensor became one of several forms",
        "GridSample": "the old default, bilinear, is the new one, linear",
    }
    for kind, versions in CHANGED.items():
        for old, new in itertools.pairwise(versions):
            before, after = (onnx.defs.get_schema(kind, v) for v in (old, new))
            if after.deprecated:
                continue
            gone = {
                n
                for n, a in before.attributes.items()
                if n not in after.attributes or _default(after, n) != _default(before, n)
            }
            if gone:
                assert kind in silent or (kind in ADAPTERS and ADAPTERS[kind].opset >= new), (
                    kind,
                    new,
                    gone,
                )


def _default(schema: onnx.defs.OpSchema, name: str) -> bytes:
    return schema.attributes[name].default_value.SerializeToString()


def test_operators_whose_kernels_end() -> None:
    """The list is onnxruntime's own."""
    kernels = collections.defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        if kernel.domain == "" and kernel.provider == "CPUExecutionProvider":
            kernels[kernel.op_name].append(kernel.version_range)

    def runs(kind: str, opset: int) -> bool:
        schema = onnx.defs.get_schema(kind, opset)
        since, open_end = schema.since_version, 2**31 - 1
        found = any(
            first == since or first <= since <= last < open_end for first, last in kernels[kind]
        )
        return found or schema.has_function or schema.has_context_dependent_function

    ending = {
        kind for kind in CHANGED if kind not in ("Scatter", "Upsample") and runs(kind, RAISED)
    }
    assert {kind for kind in ending if not runs(kind, OPSET)} == ENDING


@pytest.mark.parametrize("opset", [7, 10, 12])
def test_in_subgraphs(opset: int, tmp_path: Path) -> None:
    """Branches, and a loop in a branch, read x of the graph around them."""
    tensor = helper.make_tensor_value_info

    def branch(node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            [node], node.op_type, [], [tensor(node.output[0], onnx.TensorProto.FLOAT, None)]
        )

    squeezed = helper.make_node("Squeeze", ["x"], ["squeezed"], axes=[0])
    rows = helper.make_node("Softmax", ["squeezed"], ["rows"], axis=0)
    back = helper.make_node("Unsqueeze", ["rows"], ["back"], axes=[0])
    then = helper.make_graph(
        [squeezed, rows, back], "then", [], [tensor("back", onnx.TensorProto.FLOAT, None)]
    )
    inner = [
        helper.make_node("ReduceSum", ["v"], ["total"], axes=[1]),
        helper.make_node("Add", ["v", "total"], ["w"]),
    ]
    numbers = [tensor("k", onnx.TensorProto.INT64, ()), tensor("c", onnx.TensorProto.BOOL, ())]
    v, w = (tensor(name, onnx.TensorProto.FLOAT, (1, 3, 4)) for name in "vw")
    loop = helper.make_graph(
        [*inner, helper.make_node("Identity", ["c"], ["on"])],
        "loop",
        [*numbers, v],
        [tensor("on", onnx.TensorProto.BOOL, ()), w],
    )
    looped = helper.make_node("Loop", ["three", "", "x"], ["looped"], body=loop)
    nodes = [
        helper.make_node(
            "If",
            ["yes"],
            ["y0"],
            then_branch=then,
            else_branch=branch(helper.make_node("Abs", ["x"], ["abs"])),
        ),
        helper.make_node(
            "If",
            ["no"],
            ["y1"],
            then_branch=branch(helper.make_node("Neg", ["x"], ["neg"])),
            else_branch=branch(looped),
        ),
    ]
    feeds = {
        "x": RNG.standard_normal((1, 3, 4)).astype(np.float32),
        "yes": np.array(True),
        "no": np.array(False),
    }
    path = save(tmp_path / "m.onnx", nodes, feeds, {"three": np.array(3, np.int64)}, opset, 2)
    compare(path, feeds, untouched(path, feeds), 1e-6)


def built(path: Path, feeds: dict[str, Array]) -> tuple[Pipeline, list[Array]]:
    building.build(path, path.with_suffix(".bundle"), BuildOptions())
    pipeline = Pipeline(Bundle.open(path.with_suffix(".bundle")))
    return pipeline, list(pipeline.run(feeds).values())


def test_a_model_that_ends_with_opset_21_reaches_the_tpu(tmp_path: Path) -> None:
    """RoiAlign has no kernel beyond; the convolution in front of it runs in int8 all the same."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Clip", ["c"], ["r"], min=0.0, max=6.0),
        helper.make_node("RoiAlign", ["r", "boxes", "of"], ["y0"], output_height=3, output_width=3),
    ]
    feeds = {"x": RNG.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    path = save(
        tmp_path / "m.onnx", nodes, feeds, {"w": KERNEL - 1, "boxes": BOXES, "of": i(0, 0)}, 10, 1
    )
    pipeline, (got,) = built(path, feeds)
    assert "tpu" in [s["device"] for s in pipeline.bundle.manifest["segments"]]
    (want,) = untouched(path, feeds)
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


def test_a_model_that_cannot_be_raised_keeps_old_meanings(tmp_path: Path) -> None:
    """The mask of Dropout leaves the graph, so Softmax beside it stays one over rows of a matrix."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["y0"]),
        helper.make_node("Dropout", ["x"], ["y1", "y2"]),
        helper.make_node("Clip", ["x"], ["y3"], min=-0.5),
    ]
    feeds = {"x": RNG.standard_normal(X).astype(np.float32)}
    path = save(tmp_path / "m.onnx", nodes, feeds, {}, 10, 4)
    pipeline, found = built(path, feeds)
    assert [s["device"] for s in pipeline.bundle.manifest["segments"]] == ["host"]
    for got, want in zip(found, untouched(path, feeds), strict=True):
        np.testing.assert_array_equal(got, want)
