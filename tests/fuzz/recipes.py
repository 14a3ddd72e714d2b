"""What random models (tests/fuzz/growth.py) are made of.

A recipe adds a node, with the operands and attributes that its operator has in the model's opset,
or raises RefusedError.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.growth import SAMPLES, Graph, RefusedError, Tensor, free_names

Recipe = Callable[[Graph], object]

# Operators by the opset that brought them.
UNARY = {
    7: "Abs Neg Exp Sqrt Log Reciprocal Floor Ceil Sigmoid Tanh Relu Elu Selu Softplus Softsign "
    "HardSigmoid LeakyRelu Sin Cos Tan Atan Asin Identity",
    9: "Sinh Cosh Asinh Atanh Sign Erf Shrink IsNaN",
    10: "ThresholdedRelu IsInf",
    11: "Round",
    12: "Celu",
    14: "HardSwish",
    18: "Mish",
    20: "Gelu",
    24: "Swish",
}
BINARY = {7: "Add Sub Mul Div Pow PRelu Max Min Mean Sum", 10: "Mod"}
COMPARE = {
    7: "Equal Greater Less And Or Xor",
    12: "GreaterOrEqual LessOrEqual",
    18: "BitwiseAnd BitwiseOr BitwiseXor",
}
REDUCE = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare"
)
DTYPES = [
    "float32",
    "float32",
    "float32",
    "float16",
    "float64",
    "int32",
    "int64",
    "uint8",
    "int8",
    "bool",
    "int16",
    "uint16",
]


def _known(table: dict[int, str], g: Graph) -> str:
    return g.random.choice(
        [name for opset, names in table.items() if opset <= g.opset for name in names.split()]
    )


def _any_axis(g: Graph, rank: int) -> int:
    return g.random.randrange(-rank, rank) if rank else 0


def _some_axes(g: Graph, rank: int) -> list[int]:
    axes = g.random.sample(range(rank), g.random.randint(1, rank)) if rank else []
    negative = g.opset >= 11 and g.chance(0.3)
    return [a - rank if negative else a for a in axes]


def _partner(g: Graph, x: str) -> str:
    """An operand that goes with `x`: itself, one of its type, or a constant that broadcasts."""
    tensor = g.open[x]
    if g.chance(0.5):
        return g.pick(lambda other: other.dtype == tensor.dtype)
    shape = [d if g.chance(0.6) else 1 for d in tensor.shape]
    shape = shape[g.random.randint(0, len(shape)) :] if g.chance(0.4) else shape
    if tensor.dtype.kind == "f":
        return g.constant(g.rng.standard_normal(shape), tensor.dtype)
    return g.constant(g.rng.integers(1 if tensor.dtype.kind != "b" else 0, 3, shape), tensor.dtype)


def unary(g: Graph) -> None:
    kind = _known(UNARY, g)
    x = g.of_kind("f" if g.chance(0.85) else "iuf")
    attributes: dict[str, Any] = {}
    if kind in ("Elu", "LeakyRelu", "Celu", "ThresholdedRelu", "Swish") and g.chance(0.5):
        attributes["alpha"] = g.random.choice([0.1, 0.5, 1.5])
    if kind == "HardSigmoid" and g.chance(0.5):
        attributes |= {"alpha": 0.3, "beta": 0.4}
    if kind == "Shrink":
        attributes |= {"lambd": 0.4, "bias": g.random.choice([0.0, 0.4])}
    if kind == "Gelu" and g.chance(0.5):
        attributes["approximate"] = "tanh"
    if kind == "IsInf":
        attributes["detect_negative"] = g.random.choice([None, 0, 1])
    g.add(kind, [x], **attributes)


def binary(g: Graph) -> None:
    kind = _known(BINARY, g)
    x = g.of_kind("f" if g.chance(0.7) else "iuf")
    y = _partner(g, x)
    operands = [x, y]
    if kind in ("Max", "Min", "Mean", "Sum"):
        operands = [x, y, x][: g.random.choice([1, 2, 2, 3])]
    elif g.chance(0.2) and kind != "PRelu":
        operands = [y, x]
    fmod = 1 if kind == "Mod" and g.open[x].dtype.kind == "f" else None
    g.add(kind, operands, fmod=fmod)


def compare(g: Graph) -> None:
    kind = _known(COMPARE, g)
    kinds = {"And": "b", "Or": "b", "Xor": "b", "Equal": "iufb"}.get(
        kind, "iu" if "Bitwise" in kind else "iuf"
    )
    x = g.of_kind(kinds)
    g.add(kind, [x, _partner(g, x)])


def negate(g: Graph) -> None:
    g.add("Not", [g.of_kind("b")])


def where(g: Graph) -> None:
    x = g.pick()
    shape = g.open[x].shape
    condition = g.constant(g.rng.integers(0, 2, shape), bool) if g.chance(0.5) else g.of_kind("b")
    g.add("Where", [condition, x, _partner(g, x)])


def clip(g: Graph) -> None:
    x = g.of_kind("f" if g.opset < 12 else "fiu")
    low, high = g.random.choice(
        [(0.0, 6.0), (-1.0, 1.0), (None, 1.0), (0.0, None), (None, None), (2.0, 3.0)]
    )
    if g.opset < 11:
        g.add("Clip", [x], min=low, max=high)
        return
    dtype = g.open[x].dtype
    if dtype.kind == "u" and low is not None:
        low = 0.0
    operands = [x, *("" if v is None else g.constant(v, dtype) for v in (low, high))]
    while not operands[-1]:
        operands.pop()
    g.add("Clip", operands)


def cast(g: Graph) -> None:
    to = helper.np_dtype_to_tensor_dtype(np.dtype(g.random.choice(DTYPES)))
    if g.opset >= 15 and g.chance(0.2):
        g.add("CastLike", [g.pick(), g.pick()])
        return
    g.add("Cast", [g.pick()], to=to)


def reduce(g: Graph) -> None:
    kind = g.random.choice(REDUCE.split())
    x = g.of_kind("f" if g.chance(0.8) else "fi")
    axes = _some_axes(g, g.open[x].arrays[0].ndim)
    keepdims = g.random.choice([None, 0, 1])
    as_input = g.opset >= (13 if kind == "ReduceSum" else 18)
    if not axes or g.chance(0.2):
        empty = g.random.choice([None, 0, 1]) if as_input else None
        g.add(kind, [x], keepdims=keepdims, noop_with_empty_axes=empty)
    elif as_input:
        g.add(kind, [x, g.ints(*axes)], keepdims=keepdims)
    else:
        g.add(kind, [x], axes=axes, keepdims=keepdims)


def arg(g: Graph) -> None:
    x = g.of_kind("fi", least=1)
    last = g.random.choice([None, 1]) if g.opset >= 12 else None
    axis = g.random.choice([None, g.random.randrange(len(g.open[x].shape))])
    kind = g.random.choice(["ArgMax", "ArgMin"])
    g.add(kind, [x], axis=axis, keepdims=g.random.choice([None, 0]), select_last_index=last)


def cumulate(g: Graph) -> None:
    x = g.of_kind("fi", least=1)
    axis = g.constant(_any_axis(g, len(g.open[x].shape)), g.random.choice([np.int32, np.int64]))
    g.add(
        "CumSum",
        [x, axis],
        exclusive=g.random.choice([None, 1]),
        reverse=g.random.choice([None, 1]),
    )


def top_k(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    shape = g.open[x].shape
    axis = g.random.randrange(len(shape))
    count = g.random.randint(1, max(1, shape[axis]))
    if g.opset < 10:
        g.add("TopK", [x], 2, k=count, axis=axis)
    else:
        g.add(
            "TopK",
            [x, g.ints(count)],
            2,
            axis=axis,
            largest=0 if g.opset >= 11 and g.chance(0.3) else None,
        )


def softmax(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    rank = len(g.open[x].shape)
    axis = g.random.choice(
        [
            None,
            g.random.randrange(rank),
            g.random.randrange(rank) if g.opset < 11 else _any_axis(g, rank),
        ]
    )
    g.add(g.random.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), [x], axis=axis)


def reshape(g: Graph) -> None:
    x = g.pick()
    shape = list(g.open[x].shape)
    style = g.random.choice(["merge", "split", "flat", "zero", "ones", "shuffle"])
    new = list(shape)
    if style == "merge" and len(shape) > 1:
        at = g.random.randrange(len(shape) - 1)
        new[at : at + 2] = [shape[at] * shape[at + 1]]
    elif style == "split" and shape:
        at = g.random.randrange(len(shape))
        new[at : at + 1] = [shape[at] // 2, 2]
    elif style == "flat":
        new = [-1]
    elif style == "ones":
        new.insert(g.random.randint(0, len(shape)), 1)
    elif style == "shuffle":
        g.random.shuffle(new)
    if style == "zero" and shape:
        new[g.random.randrange(len(shape))] = 0
    elif new and 0 not in new and g.chance(0.4):
        new[g.random.randrange(len(new))] = -1
    g.add(
        "Reshape",
        [x, g.ints(*new)],
        allowzero=1 if g.opset >= 14 and g.chance(0.1) and -1 not in new else None,
    )


def computed_reshape(g: Graph) -> None:
    """A shape that is computed from a shape, as exporters write it."""
    x = g.of_kind("fiub", least=2)
    (shape,) = g.add("Shape", [x])
    (first,) = g.add("Gather", [shape, g.ints(0)], axis=0)
    (new,) = g.add("Concat", [first, g.ints(-1)], axis=0)
    g.add("Reshape", [x, new])


def transpose(g: Graph) -> None:
    x = g.pick()
    perm = list(range(len(g.open[x].shape)))
    g.random.shuffle(perm)
    g.add("Transpose", [x], perm=perm if perm and g.chance(0.8) else None)


def squeeze(g: Graph) -> None:
    x = g.pick()
    shape = g.open[x].shape
    if g.chance(0.5) and 1 in shape:
        axes = [i for i, d in enumerate(shape) if d == 1][: g.random.randint(1, 3)]
        kind, optional = "Squeeze", g.chance(0.3)
    else:
        axes, kind, optional = sorted({g.random.randint(0, len(shape)), 0}), "Unsqueeze", False
    if optional:
        g.add(kind, [x])
    elif g.opset < 13:
        g.add(kind, [x], axes=axes)
    else:
        g.add(kind, [x, g.ints(*axes)])


def flatten(g: Graph) -> None:
    x = g.pick()
    rank = len(g.open[x].shape)
    g.add("Flatten", [x], axis=g.random.choice([None, g.random.randint(0, rank)]))


def concat(g: Graph) -> None:
    x = g.pick(lambda tensor: tensor.arrays[0].ndim > 0)
    tensor = g.open[x]
    axis = g.random.randrange(len(tensor.shape))

    def joins(other: Tensor) -> bool:
        rest = [d for i, d in enumerate(other.shape) if i != axis]
        return (
            other.dtype == tensor.dtype
            and len(other.shape) == len(tensor.shape)
            and rest == [d for i, d in enumerate(tensor.shape) if i != axis]
        )

    others = [g.pick(joins) for _ in range(g.random.randint(0, 2))]
    if g.opset >= 11 and g.chance(0.3):
        axis -= len(tensor.shape)
    g.add("Concat", [x, *others], axis=axis)


def split(g: Graph) -> None:
    x = g.of_kind("fi", least=1)
    shape = g.open[x].shape
    axis = g.random.randrange(len(shape))
    size = shape[axis]
    if size < 2:
        raise RefusedError("small")
    first = g.random.randint(0 if g.chance(0.1) else 1, size - 1)
    uneven = [first, size - first]
    if g.chance(0.5) and (size % 2 == 0 or g.opset >= 18):
        g.add("Split", [x], 2, axis=axis, num_outputs=2 if g.opset >= 18 else None)
    elif g.opset < 13:
        g.add("Split", [x], 2, axis=axis, split=uneven)
    else:
        g.add("Split", [x, g.ints(*uneven)], 2, axis=axis)


def slice_(g: Graph) -> None:
    x = g.pick(lambda tensor: tensor.arrays[0].ndim > 0)
    shape = g.open[x].shape
    axes = g.random.sample(range(len(shape)), g.random.randint(1, min(2, len(shape))))
    begins = [g.random.randint(-shape[a], max(0, shape[a] - 1)) for a in axes]
    ends = [g.random.choice([shape[a], -1, 2**31 - 1, 2**63 - 1, shape[a] // 2 + 1]) for a in axes]
    steps = [g.random.choice([1, 1, 2, 3]) for _ in axes]
    if g.opset < 10:
        g.add("Slice", [x], starts=begins, ends=ends, axes=axes if g.chance(0.8) else None)
        return
    if g.chance(0.2):
        begins, ends, steps = (
            [2**31 - 1 for _ in axes],
            [-(2**31) for _ in axes],
            [-1 for _ in axes],
        )
    operands = [x, g.ints(*begins), g.ints(*ends), g.ints(*axes), g.ints(*steps)]
    g.add("Slice", operands if g.chance(0.7) else operands[: g.random.choice([3, 4])])


def gather(g: Graph) -> None:
    x = g.pick(lambda tensor: tensor.arrays[0].ndim > 0)
    shape = g.open[x].shape
    axis = _any_axis(g, len(shape)) if g.opset >= 11 else g.random.randrange(len(shape))
    low = -shape[axis] if g.opset >= 11 else 0
    many = g.random.choice([(), (2,), (2, 2), (1, 3)])
    kind = g.random.choice([np.int32, np.int64])
    indices = g.constant(g.rng.integers(low, max(1, shape[axis]), many), kind)
    if g.chance(0.3):
        indices = g.of_kind("i")
    g.add("Gather", [x, indices], axis=axis if g.chance(0.8) else None)


def gather_elements(g: Graph) -> None:
    x = g.of_kind("fi", least=1)
    shape = g.open[x].shape
    axis = g.random.randrange(len(shape))
    indices = g.constant(g.rng.integers(0, max(1, shape[axis]), shape), np.int64)
    g.add("GatherElements", [x, indices], axis=axis)


def gather_nd(g: Graph) -> None:
    x = g.of_kind("fi", least=2)
    shape = g.open[x].shape
    rows = np.stack([g.rng.integers(0, max(1, d), 3) for d in shape[:2]], axis=-1)
    g.add("GatherND", [x, g.constant(rows, np.int64)])


def scatter(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    tensor = g.open[x]
    axis = g.random.randrange(len(tensor.shape))
    rows = g.rng.permutation(max(1, tensor.shape[axis]))[:1]
    shape = [1 if i == axis else d for i, d in enumerate(tensor.shape)]
    indices = g.constant(np.broadcast_to(rows.reshape([1] * len(shape)), shape), np.int64)
    updates = g.constant(g.rng.standard_normal(shape), tensor.dtype)
    reduction = g.random.choice(["add", "mul"]) if g.opset >= 16 and g.chance(0.4) else None
    kind = "ScatterElements" if g.opset >= 11 else "Scatter"
    g.add(kind, [x, indices, updates], axis=axis, reduction=reduction)


def scatter_nd(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    tensor = g.open[x]
    updates = g.constant(g.rng.standard_normal((1, *tensor.shape[1:])), tensor.dtype)
    g.add(
        "ScatterND",
        [x, g.ints(0) if len(tensor.shape) == 0 else g.constant([[0]], np.int64), updates],
    )


def tile(g: Graph) -> None:
    x = g.pick()
    g.add("Tile", [x, g.ints(*(g.random.choice([1, 1, 2]) for _ in g.open[x].shape))])


def expand(g: Graph) -> None:
    x = g.pick()
    shape = [d if d > 1 else g.random.choice([1, 2, 3]) for d in g.open[x].shape]
    g.add("Expand", [x, g.ints(*([2, *shape] if g.chance(0.3) else shape))])


def pad(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    tensor = g.open[x]
    modes = ["constant", "constant", "reflect", "edge"] + (["wrap"] if g.opset >= 19 else [])
    mode = g.random.choice(modes)
    low = -1 if mode == "constant" and g.chance(0.2) else 0
    pads = [g.random.choice([0, 0, 1, low]) for _ in range(2 * len(tensor.shape))]
    if g.opset < 11:
        g.add("Pad", [x], pads=pads, mode=mode, value=g.random.choice([None, 0.5]))
        return
    operands = [x, g.ints(*pads)]
    if mode == "constant" and g.chance(0.5):
        operands.append(g.constant(0.5, tensor.dtype))
    if g.opset >= 18 and g.chance(0.3):
        axis = _any_axis(g, len(tensor.shape))
        operands = [
            x,
            g.ints(1, max(low, 0)),
            operands[2] if len(operands) > 2 else "",
            g.ints(axis),
        ]
    g.add("Pad", operands, mode=mode)


def space(g: Graph) -> None:
    x = g.of_kind("f", 4)
    if g.chance(0.5):
        g.add("SpaceToDepth", [x], blocksize=2)
    else:
        g.add(
            "DepthToSpace",
            [x],
            blocksize=2,
            mode=g.random.choice([None, "CRD"]) if g.opset >= 11 else None,
        )


def shape_of(g: Graph) -> None:
    x = g.pick()
    if g.chance(0.3):
        g.add("Size", [x])
        return
    begin, end = (
        (g.random.choice([None, 1, -1]), g.random.choice([None, -1, 2]))
        if g.opset >= 15
        else (None, None)
    )
    g.add("Shape", [x], start=begin, end=end)


def filled(g: Graph) -> None:
    """ConstantOfShape, EyeLike, Range, OneHot, NonZero, Compress: shapes that depend on values."""
    kind = g.random.choice(
        ["ConstantOfShape", "EyeLike", "Range", "OneHot", "NonZero", "Compress", "Unique"]
    )
    if kind == "ConstantOfShape":
        value = helper.make_tensor("v", g.random.choice([1, 7, 11]), [1], [1])
        g.add(kind, [g.of_kind("i", 1)], value=g.random.choice([None, value]))
    elif kind == "EyeLike":
        g.add(kind, [g.of_kind("fi", 2)], k=g.random.choice([None, 1, -1]))
    elif kind == "Range":
        end = g.of_kind("i", 0) if g.chance(0.5) else g.constant(5, np.int64)
        dtype = g.open[end].dtype
        g.add(kind, [g.constant(0, dtype), end, g.constant(g.random.choice([1, 2]), dtype)])
    elif kind == "OneHot":
        values = g.constant([0, 1], g.random.choice([np.float32, np.int64]))
        g.add(
            kind, [g.of_kind("i"), g.constant(4, np.int64), values], axis=g.random.choice([None, 0])
        )
    elif kind == "NonZero":
        g.add(kind, [g.of_kind("bi")])
    elif kind == "Compress":
        g.add(kind, [g.of_kind("fi"), g.of_kind("b", 1)], axis=g.random.choice([None, 0]))
    else:
        g.add(kind, [g.of_kind("i")], g.random.choice([1, 3]), sorted=g.random.choice([None, 0]))


def triangle(g: Graph) -> None:
    g.add("Trilu", [g.of_kind("fi", least=2)], upper=g.random.choice([None, 0, 1]))


def reverse(g: Graph) -> None:
    x = g.of_kind("f", least=2)
    shape = g.open[x].shape
    lengths = g.constant([g.random.randint(1, max(1, shape[0])) for _ in range(shape[1])], np.int64)
    g.add("ReverseSequence", [x, lengths])


def resize(g: Graph) -> None:
    x = g.of_kind("f", g.random.choice([3, 4, 4]))
    shape = g.open[x].shape
    factors = [1.0, 1.0, *(g.random.choice([1.0, 2.0, 1.5, 0.5, 0.7, 3.0]) for _ in shape[2:])]
    if g.opset < 10:
        mode = g.random.choice([None, "nearest", "linear"])
        whole = [max(1.0, f) for f in factors]
        if g.opset < 9:
            g.add("Upsample", [x], scales=whole, mode=mode)
        else:
            g.add("Upsample", [x, g.constant(whole, np.float32)], mode=mode)
        return
    if g.opset == 10:
        g.add(
            "Resize",
            [x, g.constant(factors, np.float32)],
            mode=g.random.choice([None, "nearest", "linear"]),
        )
        return
    mode = g.random.choice(["nearest", "linear", "linear", "cubic"])
    where_ = g.random.choice(
        [None, "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel"]
    )
    rounding = (
        g.random.choice([None, "floor", "ceil", "round_prefer_ceil"]) if mode == "nearest" else None
    )
    attributes = {"mode": mode, "coordinate_transformation_mode": where_, "nearest_mode": rounding}
    if g.opset >= 18 and mode != "nearest" and g.chance(0.3):
        attributes["antialias"] = 1
    empty = "" if g.opset >= 13 or g.chance(0.5) else g.constant([], np.float32)
    if g.chance(0.5):
        sizes = g.ints(*(max(1, int(d * f)) for d, f in zip(shape, factors, strict=True)))
        empty_scales = "" if g.opset >= 13 else g.constant([], np.float32)
        g.add("Resize", [x, empty, empty_scales, sizes], **attributes)
    else:
        g.add("Resize", [x, empty, g.constant(factors, np.float32)], **attributes)


def grid_sample(g: Graph) -> None:
    x = g.of_kind("f", 4)
    grid = g.constant(g.rng.uniform(-1, 1, (g.open[x].shape[0], 3, 4, 2)), g.open[x].dtype)
    g.add("GridSample", [x, grid], padding_mode=g.random.choice([None, "border", "reflection"]))


def einsum(g: Graph) -> None:
    x = g.of_kind("f", 3)
    tensor = g.open[x]
    equation, shape = g.random.choice(
        [
            ("abc,cd->abd", (tensor.shape[2], 4)),
            ("abc,abd->acd", (*tensor.shape[:2], 3)),
            ("abc->acb", None),
            ("abc,c", tensor.shape[2:]),
        ]
    )
    operands = [x] if shape is None else [x, g.weight(shape, tensor.dtype)]
    g.add("Einsum", operands, equation=equation)


def matmul(g: Graph) -> None:
    x = g.of_kind("f", least=1)
    tensor = g.open[x]
    width = tensor.shape[-1]
    shape = g.random.choice([(width, 5), (width,), (1, width, 4), (width, width)])
    other = (
        g.weight(shape, tensor.dtype)
        if g.chance(0.7)
        else g.pick(lambda t: t.dtype == tensor.dtype)
    )
    g.add("MatMul", [x, other] if g.chance(0.85) else [other, x])


def gemm(g: Graph) -> None:
    x = g.of_kind("f", 2)
    tensor = g.open[x]
    a, b = g.random.choice([None, 1]), g.random.choice([None, 1])
    width = tensor.shape[0] if a else tensor.shape[1]
    rows = tensor.shape[1] if a else tensor.shape[0]
    out = g.random.choice([1, 4, 6])
    operands = [x, g.weight((out, width) if b else (width, out), tensor.dtype)]
    if g.opset < 11 or g.chance(0.7):
        shape = g.random.choice([(out,), (1, out), (rows, 1), (), (rows, out), (1,)])
        operands.append(g.constant(g.rng.standard_normal(shape), tensor.dtype))
    scale = g.random.choice([None, None, 0.5])
    g.add(
        "Gemm", operands, transA=a, transB=b, alpha=scale, beta=g.random.choice([None, None, 2.0])
    )


def conv(g: Graph) -> None:
    rank = g.random.choice([1, 2, 2, 2, 3])
    x = g.of_kind("f", rank + 2)
    tensor = g.open[x]
    channels = tensor.shape[1]
    if not channels:
        raise RefusedError("a convolution of no channels")
    kernel = [g.random.choice([1, 2, 3]) for _ in range(rank)]
    groups = g.random.choice([1, 1, channels])
    out = groups * g.random.choice([1, 2, 4])
    attributes: dict[str, Any] = {"group": groups if groups > 1 or g.chance(0.5) else None}
    if g.chance(0.3):
        attributes["auto_pad"] = g.random.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif g.chance(0.7):
        attributes["pads"] = [g.random.choice([0, 1]) for _ in range(2 * rank)]
    attributes["strides"] = g.random.choice([None, [2] * rank, [1] * rank])
    if g.chance(0.2):
        attributes["dilations"] = [2] * rank
    attributes["kernel_shape"] = g.random.choice([None, kernel])
    transposed = g.chance(0.25)
    if transposed:
        weight = g.weight((channels, out // groups, *kernel), tensor.dtype)
    else:
        weight = g.weight((out, channels // groups, *kernel), tensor.dtype)
    if transposed and attributes["strides"] and g.chance(0.3):
        attributes["output_padding"] = [g.random.choice([0, 1]) for _ in range(rank)]
    operands = [x, weight]
    if g.chance(0.6):
        operands.append(g.constant(g.rng.standard_normal(out), tensor.dtype))
    g.add("ConvTranspose" if transposed else "Conv", operands, **attributes)


def pool(g: Graph) -> None:
    rank = g.random.choice([1, 2, 2, 2, 3])
    x = g.of_kind("f", rank + 2)
    if g.chance(0.2):
        g.add(g.random.choice(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]), [x])
        return
    kind = g.random.choice(["MaxPool", "AveragePool", "LpPool"])
    attributes: dict[str, Any] = {"kernel_shape": [g.random.choice([1, 2, 3]) for _ in range(rank)]}
    attributes["strides"] = g.random.choice([None, [2] * rank, [1] * rank])
    if g.chance(0.3):
        attributes["auto_pad"] = g.random.choice(["SAME_UPPER", "SAME_LOWER"])
    elif g.chance(0.5):
        attributes["pads"] = [g.random.choice([0, 1]) for _ in range(2 * rank)]
    ceil = g.opset >= (18 if kind == "LpPool" else 10)
    attributes["ceil_mode"] = 1 if ceil and g.chance(0.3) else None
    if kind == "AveragePool":
        attributes["count_include_pad"] = g.random.choice([None, 1])
    dilates = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[kind] <= g.opset
    attributes["dilations"] = [2] * rank if dilates and g.chance(0.1) else None
    g.add(kind, [x], 2 if kind == "MaxPool" and g.chance(0.2) else 1, **attributes)


def norm(g: Graph) -> None:
    kinds = {
        7: "BatchNormalization BatchNormalization InstanceNormalization LRN LpNormalization",
        9: "MeanVarianceNormalization",
    }
    kinds |= {17: "LayerNormalization", 18: "GroupNormalization", 23: "RMSNormalization"}
    kind = _known(kinds, g)
    least = {
        "LRN": 3,
        "LpNormalization": 1,
        "LayerNormalization": 1,
        "RMSNormalization": 1,
        "InstanceNormalization": 3,
    }
    x = (
        g.of_kind("f", 4)
        if kind == "MeanVarianceNormalization"
        else g.of_kind("f", least=least.get(kind, 2))
    )
    tensor = g.open[x]
    shape, dtype = tensor.shape, tensor.dtype
    if kind == "LRN":
        g.add(kind, [x], size=3)
    elif kind == "LpNormalization":
        g.add(kind, [x], axis=g.random.choice([None, -1, 0]), p=g.random.choice([None, 1]))
    elif kind == "MeanVarianceNormalization":
        g.add(kind, [x], axes=g.random.choice([None, [2, 3]]))
    elif kind in ("LayerNormalization", "RMSNormalization"):
        axis = g.random.randrange(len(shape))
        weights = [_gain(g, shape[axis:], dtype)]
        if kind == "LayerNormalization" and g.chance(0.6):
            weights.append(g.weight(shape[axis:], dtype))
        g.add(kind, [x, *weights], axis=axis, epsilon=g.random.choice([None, 1e-3]))
    elif kind == "GroupNormalization":
        many = 2 if g.opset < 21 else shape[1]
        g.add(kind, [x, _gain(g, (many,), dtype), g.weight((many,), dtype)], num_groups=2)
    elif kind == "InstanceNormalization":
        g.add(kind, [x, _gain(g, shape[1:2], dtype), g.weight(shape[1:2], dtype)])
    else:
        mean, spread = g.weight(shape[1:2], dtype), _gain(g, shape[1:2], dtype)
        g.add(kind, [x, _gain(g, shape[1:2], dtype), g.weight(shape[1:2], dtype), mean, spread])


def _gain(g: Graph, shape: Sequence[int], dtype: Any) -> str:
    return g.constant(g.rng.uniform(0.5, 1.5, shape), dtype)


def dropout(g: Graph) -> None:
    x = g.of_kind("f")
    if g.opset < 12:
        g.add(
            "Dropout",
            [x],
            g.random.choice([1, 2]) if g.opset >= 10 else 1,
            ratio=g.random.choice([None, 0.3]),
        )
    else:
        ratio = [g.constant(0.3, np.float32)] if g.chance(0.5) else []
        g.add("Dropout", [x, *ratio], g.random.choice([1, 2]))


def recurrent(g: Graph) -> None:
    x = g.of_kind("f", 3)
    steps, batch, width = g.open[x].shape
    dtype = g.open[x].dtype
    kind, gates = g.random.choice([("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    hidden, both = 3, g.chance(0.3)
    directions = 1 + both
    operands = [
        x,
        g.weight((directions, gates * hidden, width), dtype),
        g.weight((directions, gates * hidden, hidden), dtype),
    ]
    operands.append(g.weight((directions, 2 * gates * hidden), dtype) if g.chance(0.5) else "")
    operands.append(
        g.constant([g.random.randint(1, steps) for _ in range(batch)], np.int32)
        if g.chance(0.3)
        else ""
    )
    operands.append(g.weight((directions, batch, hidden), dtype) if g.chance(0.5) else "")
    while not operands[-1]:
        operands.pop()
    direction = "bidirectional" if both else g.random.choice([None, "reverse"])
    before = g.random.choice([None, 1]) if kind == "GRU" else None
    outputs = g.random.randint(1, 3 if kind == "LSTM" else 2)
    g.add(
        kind, operands, outputs, hidden_size=hidden, direction=direction, linear_before_reset=before
    )


def quantized(g: Graph) -> None:
    x = g.of_kind("f")
    if g.chance(0.3) and g.opset >= 11:
        g.add("DynamicQuantizeLinear", [x], 3)
        return
    scale = g.constant(0.05, g.open[x].dtype)
    zero = g.constant(g.random.choice([0, 3]), g.random.choice([np.uint8, np.int8]))
    (small,) = g.add("QuantizeLinear", [x, scale, zero])
    g.add("DequantizeLinear", [small, scale, zero])


def integer_product(g: Graph) -> None:
    x = g.pick(lambda t: t.dtype == np.uint8 and t.arrays[0].ndim >= 2)
    other = g.constant(g.rng.integers(-3, 4, (g.open[x].shape[-1], 4)), np.int8)
    g.add("MatMulInteger", [x, other])


# Sequences and optionals


def sequence(g: Graph) -> None:
    x = g.pick()
    like = [x, *([g.pick(lambda t: t.dtype == g.open[x].dtype)] if g.chance(0.6) else [])]
    if g.chance(0.3) and g.open[x].arrays[0].ndim:
        split_ = [g.constant(1, np.int64)] if g.chance(0.5) else []
        g.add("SplitToSequence", [x, *split_], axis=0, keepdims=g.random.choice([None, 0]))
    elif g.chance(0.2):
        element = g.open[x].type.tensor_type.elem_type
        (empty,) = g.add("SequenceEmpty", [], dtype=element)
        g.add("SequenceInsert", [empty, x])
    else:
        g.add("SequenceConstruct", like)


def from_sequence(g: Graph) -> None:
    names = [n for n, t in g.open.items() if isinstance(t.arrays[0], list) and t.arrays[0]]
    if not names:
        raise RefusedError("no sequence")
    name = g.random.choice(names)
    kind = g.random.choice(["At", "At", "Length", "Insert", "Erase", "Concat", "Map"])
    at = g.constant(g.random.choice([0, -1]), np.int64)
    if kind == "At":
        g.add("SequenceAt", [name, at])
    elif kind == "Length":
        g.add("SequenceLength", [name])
    elif kind == "Insert":
        dtype = g.open[name].arrays[0][0].dtype
        g.add(
            "SequenceInsert",
            [name, g.pick(lambda t: t.dtype == dtype), *([at] if g.chance(0.5) else [])],
        )
    elif kind == "Erase":
        g.add("SequenceErase", [name, *([at] if g.chance(0.5) else [])])
    elif kind == "Concat":
        g.add("ConcatFromSequence", [name], axis=0, new_axis=g.random.choice([None, 1]))
    elif g.opset >= 17:
        _sequence_map(g, name)


def _sequence_map(g: Graph, name: str) -> None:
    element = g.open[name].arrays[0][0].dtype
    kind = helper.np_dtype_to_tensor_dtype(element)
    inside, result = f"{name}_in", f"{name}_out"
    body = helper.make_graph(
        [helper.make_node("Neg", [inside], [result])],
        "body",
        [helper.make_tensor_value_info(inside, kind, None)],
        [helper.make_tensor_value_info(result, kind, None)],
    )
    g.add("SequenceMap", [name], body=body)


def optional(g: Graph) -> None:
    x = g.pick()
    (held,) = g.add("Optional", [x])
    g.add(g.random.choice(["OptionalHasElement", "OptionalGetElement"]), [held])


# Control flow


def _grow(g: Graph, steps: int) -> None:
    for _ in range(steps):
        for _ in range(10):
            try:
                draw(g)(g)
                break
            except RefusedError:
                continue


def _result(body: Graph, name: str, out: str) -> onnx.ValueInfoProto:
    """A tensor as an output of a body, under a name of its own."""
    body.nodes.append(helper.make_node("Identity", [name], [out]))
    value = onnx.ValueInfoProto(name=out)
    tensor = body.open[name]
    element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    value.type.CopyFrom(helper.make_tensor_type_proto(element, [None] * len(tensor.shape)))
    return value


def _body(
    body: Graph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.GraphProto:
    return helper.make_graph(body.nodes, f"{body.prefix}body", inputs, outputs, body.initializers)


def if_(g: Graph) -> None:
    style = g.random.choice(["constant", "bool", "bool"])
    if style == "constant":
        condition = g.constant(g.random.choice([True, False]), bool)
    else:
        condition = g.pick(lambda t: t.dtype == bool and t.arrays[0].size == 1)
    x = g.of_kind("f")
    branches = []
    for name in ("then", "else"):
        body = g.inner(f"{g.prefix}{name}{len(g.open)}_")
        body.add(g.random.choice(["Neg", "Abs", "Tanh"]), [x])
        _grow(body, g.random.randint(0, 2))
        made = [
            n
            for n, t in body.open.items()
            if n.startswith(body.prefix) and t.is_tensor and t.dtype == g.open[x].dtype
        ]
        branches.append(
            _body(body, [], [_result(body, g.random.choice(made), f"{body.prefix}out")])
        )
    g.add("If", [condition], then_branch=branches[0], else_branch=branches[1])


def loop(g: Graph) -> None:
    """A value is carried round, at times another scanned out; the condition is constant or
    computed."""
    x = g.of_kind("f")
    tensor = g.open[x]
    body = g.inner(f"{g.prefix}loop{len(g.open)}_")
    turn, go, state = (f"{body.prefix}{n}" for n in ("i", "go", "state"))
    body.open_input(turn, [np.array(0, np.int64)] * SAMPLES)
    body.open_input(go, [np.array(True)] * SAMPLES)
    body.open_input(state, tensor.arrays, tensor.jumps)
    (half,) = body.add("Mul", [state, body.constant(0.5, tensor.dtype)])
    body.add(g.random.choice(["Tanh", "Abs", "Neg"]), [half])
    _grow(body, g.random.randint(0, 3))
    made = [n for n, t in body.open.items() if n.startswith(body.prefix) and t.is_tensor]
    states = [n for n in made if body.open[n].dtype == tensor.dtype and n != state]
    if g.chance(0.8):
        states = [n for n in states if body.open[n].shape == tensor.shape]
    style = g.random.choice(["count", "count", "computed", "input"])
    if style == "computed":
        kind = "Less" if g.opset >= 9 else "Equal"
        (on,) = body.add(kind, [turn, body.constant(2, np.int64)])
    else:
        on = go
    outputs = [
        _result(body, on, f"{body.prefix}on"),
        _result(body, g.random.choice(states), f"{body.prefix}next"),
    ]
    if g.chance(0.5):
        outputs.append(
            _result(
                body,
                g.random.choice([n for n in made if n not in (turn, go)]),
                f"{body.prefix}scanned",
            )
        )
    inputs = []
    for name in (turn, go, state):
        shape: list[int | None] = list(body.open[name].shape)
        if name == state and g.chance(0.5):
            shape = [None] * len(shape)
        inputs.append(
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(body.open[name].dtype), shape
            )
        )
    count = g.constant(g.random.choice([0, 1, 3]), np.int64)
    if style == "input":
        count = g.pick(lambda t: t.dtype == np.int64 and t.arrays[0].ndim == 0 and t.arrays[0] < 6)
    condition = "" if g.chance(0.6) else g.constant(True, bool)
    g.add(
        "Loop",
        ["" if style == "computed" and g.chance(0.5) else count, condition, x],
        len(outputs) - 1,
        body=_body(body, inputs, outputs),
    )


def scan(g: Graph) -> None:
    x = g.of_kind("f", least=2)
    tensor = g.open[x]
    if not tensor.shape[0] or g.opset < 9:
        raise RefusedError("nothing to scan")
    body = g.inner(f"{g.prefix}scan{len(g.open)}_")
    state, row = f"{body.prefix}state", f"{body.prefix}row"
    start = g.constant(g.rng.standard_normal(tensor.shape[1:]), tensor.dtype)
    body.open_input(state, g.open[start].arrays)
    body.open_input(row, [a[0] for a in tensor.arrays], tensor.jumps)
    (joined,) = body.add("Add", [state, row])
    (after,) = body.add("Tanh", [joined])
    _grow(body, g.random.randint(0, 2))
    made = [n for n, t in body.open.items() if n.startswith(body.prefix) and t.is_tensor]
    element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    inputs = [helper.make_tensor_value_info(n, element, tensor.shape[1:]) for n in (state, row)]
    outputs = [
        _result(body, after, f"{body.prefix}next"),
        _result(body, g.random.choice(made), f"{body.prefix}out"),
    ]
    directions = g.random.choice([None, [1]])
    g.add(
        "Scan",
        [start, x],
        2,
        num_scan_inputs=1,
        scan_input_directions=directions,
        body=_body(body, inputs, outputs),
    )


def function(g: Graph) -> None:
    """A function of the model around a few nodes; what they read becomes its inputs."""
    if g.depth or g.opset < 8:
        raise RefusedError("functions stand in models")
    body = g.inner(f"f{len(g.functions)}_{len(g.open)}_")
    x = g.of_kind("f")
    body.add(g.random.choice(["Tanh", "Neg"]), [x])
    _grow(body, g.random.randint(1, 2))
    made = [
        n
        for n, t in body.open.items()
        if n.startswith(body.prefix) and t.is_tensor and not t.constant
    ]
    out = g.random.choice(made)
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in body.initializers
    ]
    nodes = [*constants, *body.nodes]
    known = {name for node in nodes for name in node.output}
    reads = list(dict.fromkeys(n for node in nodes for n in free_names(node) if n not in known))
    name = f"F{len(g.functions)}"
    imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("local", 1)]
    g.functions.append(helper.make_function("local", name, reads, [out], nodes, imports))
    try:
        g.add(name, reads, domain="local")
    except RefusedError:
        g.functions.pop()
        raise


# (recipe, opset that it needs, weight)
RECIPES: tuple[tuple[Recipe, int, int], ...] = (
    (unary, 7, 8),
    (binary, 7, 8),
    (compare, 7, 2),
    (negate, 7, 1),
    (where, 9, 2),
    (clip, 7, 2),
    (cast, 7, 3),
    (reduce, 7, 4),
    (arg, 7, 1),
    (cumulate, 11, 1),
    (top_k, 7, 1),
    (softmax, 7, 3),
    (reshape, 7, 4),
    (computed_reshape, 7, 1),
    (transpose, 7, 3),
    (squeeze, 7, 2),
    (flatten, 7, 1),
    (concat, 7, 3),
    (split, 7, 2),
    (slice_, 7, 3),
    (gather, 7, 2),
    (gather_elements, 11, 1),
    (gather_nd, 11, 1),
    (scatter, 9, 1),
    (scatter_nd, 11, 1),
    (tile, 7, 1),
    (expand, 8, 2),
    (pad, 7, 3),
    (space, 7, 1),
    (shape_of, 7, 2),
    (filled, 11, 2),
    (triangle, 14, 1),
    (reverse, 10, 1),
    (resize, 7, 3),
    (grid_sample, 16, 1),
    (einsum, 12, 1),
    (matmul, 7, 4),
    (gemm, 7, 3),
    (conv, 7, 6),
    (pool, 7, 3),
    (norm, 7, 4),
    (dropout, 7, 1),
    (recurrent, 7, 1),
    (quantized, 10, 1),
    (integer_product, 10, 1),
    (sequence, 11, 2),
    (from_sequence, 11, 3),
    (optional, 15, 1),
    (if_, 7, 2),
    (loop, 8, 2),
    (scan, 9, 1),
    (function, 8, 1),
)


def draw(g: Graph) -> Recipe:
    nested = (if_, loop, scan, function)
    fitting = [
        (r, w) for r, opset, w in RECIPES if opset <= g.opset and not (g.depth > 1 and r in nested)
    ]
    return g.random.choices([r for r, _ in fitting], [w for _, w in fitting])[0]


SHAPES = [
    (1, 3, 8, 8),
    (1, 4, 6, 5),
    (1, 8, 10),
    (2, 3, 4),
    (1, 12),
    (4, 6),
    (5,),
    (),
    (1, 2, 3, 4, 4),
    (1, 5, 16),
    (1, 1, 7, 7),
]


def random_model(seed: int) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A model of opset 7 to 25 and samples for its inputs."""
    draws = random.Random(seed)
    g = Graph(draws, np.random.default_rng(seed), draws.randint(7, 25))
    kinds = ["float32"] + [draws.choice(DTYPES) for _ in range(draws.randint(0, 3))]
    if g.chance(0.15):
        kinds[0] = draws.choice(["float16", "float64"])
    for index, kind in enumerate(kinds):
        shape = draws.choice(SHAPES)
        g.open_input(f"x{index}", [_input(g, np.dtype(kind), shape) for _ in range(SAMPLES)])
    _grow(g, draws.randint(2, 14))
    if not any(g.nodes):
        g.add("Identity", ["x0"])
    return finished(g, [f"x{i}" for i in range(len(kinds))])


def _input(g: Graph, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "f":
        return np.asarray(g.rng.standard_normal(shape)).astype(dtype)
    return np.asarray(g.rng.integers(0, 2 if dtype.kind == "b" else 4, shape)).astype(dtype)


def finished(
    g: Graph, inputs: Sequence[str]
) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """The model of a graph: what no node reads is an output, and some of the rest."""
    read = {name for node in g.nodes for name in free_names(node)}
    made = [name for node in g.nodes for name in node.output if node.op_type != "Constant"]
    outputs = [n for n in made if n not in read or g.chance(0.05)]
    values = []
    for name in outputs:
        value = onnx.ValueInfoProto(name=name)
        value.type.CopyFrom(g.open[name].type)
        if value.type.HasField("tensor_type") and g.chance(0.3):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        values.append(value)
    infos = [onnx.ValueInfoProto(name=name, type=g.open[name].type) for name in inputs]
    graph = helper.make_graph(g.nodes, "random", infos, values, g.initializers)
    if g.chance(0.1):  # as files of IR version 3 are: defaults of inputs
        graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in g.initializers
        )
    imports = [helper.make_opsetid("", g.opset)]
    if g.functions:
        imports.append(helper.make_opsetid("local", 1))
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=g.functions)
    samples = [{name: g.open[name].arrays[i] for name in inputs} for i in range(SAMPLES)]
    for name in made:
        model.metadata_props.add(key=f"jumps/{name}", value=str(int(g.open[name].jumps)))
    return model, samples
