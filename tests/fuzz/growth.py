"""Random valid models, grown node by node: each node runs on onnxruntime by itself as soon as it is
drawn.

What onnxruntime refuses is thrown away, so that recipes (tests/fuzz/recipes.py) may draw attributes
and operands freely and need not know shapes of results. Every tensor is computed twice, the second
time from values that are nudged by about a float's rounding: where that changes an integer, a
shape, or much of a float, the node is thrown away as well. Two correct implementations therefore
agree on every model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

SAMPLES = 3
# Elements of a tensor, and nodes in a row that may be refused before a model is taken as it stands.
LARGEST = 4096
PATIENCE = 40
# Larger values would overflow in float16, sooner or later.
BOUND = 500.0
# A nudge moves each float by this share of the tensor's largest; afterwards they may differ by
# `STABLE` of it.
NUDGE = {"e": 2e-3, "f": 1e-6, "d": 1e-9}
STABLE = {"e": 8e-3, "f": 2e-5, "d": 1e-7}
# Operators whose results jump where their float operands move a little.
JUMPS = {
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Floor",
    "Round",
    "Sign",
    "TopK",
    "Hardmax",
    "NonZero",
    "Unique",
    "Mod",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "IsInf",
    "Shrink",
    "ThresholdedRelu",
    "MaxPool",
    "Cast",
    "CastLike",
    "Compress",
    "OneHot",
    "IsNaN",
}

# numpy's; a list of them where the tensor is a sequence; None where an optional holds nothing.
Array = Any


@dataclass
class Tensor:
    """A value of a graph: what it is in each sample, the same when nudged, and whether something
    jumped in front."""

    type: onnx.TypeProto
    arrays: list[Array]
    nudged: list[Array]
    jumps: bool = False
    constant: bool = False

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.arrays[0], np.ndarray)

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays[0].shape


class RefusedError(Exception):
    """A node that onnxruntime does not take, or whose results do not serve."""


@dataclass
class Graph:
    """A graph that grows. `open` are the tensors that later nodes may read; those of an outer graph
    are in it too."""

    random: random.Random
    rng: np.random.Generator
    opset: int
    open: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    prefix: str = ""
    depth: int = 0

    def fresh(self, hint: str) -> str:
        return f"{self.prefix}{hint}{len(self.open)}"

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, wanted: Callable[[Tensor], bool] = lambda tensor: True) -> str:
        """The name of a tensor, rather one of the last. Raises RefusedError where none is as
        wanted."""
        names = [name for name, tensor in self.open.items() if tensor.is_tensor and wanted(tensor)]
        if not names:
            raise RefusedError("no operand")
        return self.random.choice(names[-4:] if self.chance(0.6) else names)

    def of_kind(self, kinds: str, rank: int | None = None, least: int = 0) -> str:
        """A tensor of one of numpy's kinds, e.g. "fiu", of a rank or of at least one."""

        def wanted(tensor: Tensor) -> bool:
            fits = tensor.arrays[0].ndim >= least if rank is None else tensor.arrays[0].ndim == rank
            return fits and tensor.dtype.kind in kinds

        return self.pick(wanted)

    def constant(self, array: Any, dtype: Any = None) -> str:
        """A constant as initializer or, at times, as node."""
        array = np.asarray(array, dtype)
        name = self.fresh("c")
        proto = numpy_helper.from_array(array, name)
        if self.chance(0.2) and (self.opset >= 9 or array.dtype.kind == "f"):
            self.nodes.append(helper.make_node("Constant", [], [name], value=proto))
        else:
            self.initializers.append(proto)
        kind = helper.make_tensor_type_proto(proto.data_type, array.shape)
        self.open[name] = Tensor(kind, [array] * SAMPLES, [array] * SAMPLES, constant=True)
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def weight(self, shape: Sequence[int], dtype: Any = np.float32) -> str:
        """Random numbers that keep sums over all axes but the first small."""
        fan = max(1, int(np.prod(shape[1:])))
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(fan), dtype)

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """A node, if onnxruntime takes it. Raises RefusedError."""
        names = [f"{self.prefix}t{len(self.open)}_{i}" for i in range(outputs)]
        name = f"{op_type}_{names[0]}" if self.chance(0.9) else ""
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(op_type, inputs, names, name, domain=domain, **attributes)
        operands = {n: self.open[n] for n in free_names(node)}
        results = self._run(node, operands, names)
        self.nodes.append(node)
        self.open |= results
        return names

    def _run(
        self, node: onnx.NodeProto, operands: dict[str, Tensor], names: list[str]
    ) -> dict[str, Tensor]:
        model = onnx.ModelProto(ir_version=10, functions=self.functions)
        model.opset_import.extend(
            [helper.make_opsetid("", self.opset), helper.make_opsetid("local", 1)]
        )
        graph = model.graph
        graph.name = "one"
        graph.node.append(node)
        held = {name for name, tensor in operands.items() if tensor.constant}
        for name, tensor in operands.items():
            if name in held:
                graph.initializer.append(numpy_helper.from_array(tensor.arrays[0], name))
            else:
                graph.input.append(helper.make_value_info(name, tensor.type))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            session = open_session(model.SerializeToString())
            found = dict(zip(names, session.get_outputs(), strict=True))
            rows = [_feed(session, operands, held, i, False, names) for i in range(SAMPLES)]
            nudged = [_feed(session, operands, held, i, True, names) for i in range(SAMPLES)]
        except Exception as error:
            raise RefusedError(str(error)) from error
        jumps = any(tensor.jumps for tensor in operands.values()) or any(
            inner.op_type in JUMPS for inner in all_nodes(node, self.functions)
        )
        results = {}
        for index, name in enumerate(names):
            arrays, moved = [r[index] for r in rows], [r[index] for r in nudged]
            _check(arrays, moved)
            moved = [self._nudge(a) for a in moved]
            results[name] = Tensor(_type(found[name], arrays), arrays, moved, jumps)
        return results

    def _nudge(self, array: Array) -> Array:
        if isinstance(array, list):
            return [self._nudge(a) for a in array]
        if array is None or array.dtype.kind != "f" or not array.size:
            return array
        step = NUDGE[array.dtype.char] * np.abs(array).max()
        return (array + step * self.rng.uniform(-1, 1, array.shape)).astype(array.dtype)

    def inner(self, prefix: str) -> Graph:
        """A graph for a body, which sees all that this one has."""
        return Graph(
            self.random,
            self.rng,
            self.opset,
            dict(self.open),
            [],
            [],
            self.functions,
            prefix,
            self.depth + 1,
        )

    def open_input(self, name: str, arrays: Sequence[np.ndarray], jumps: bool = False) -> None:
        kind = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(arrays[0].dtype), arrays[0].shape
        )
        self.open[name] = Tensor(kind, list(arrays), [self._nudge(a) for a in arrays], jumps)


def open_session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feed(
    session: ort.InferenceSession,
    operands: dict[str, Tensor],
    held: set[str],
    i: int,
    nudged: bool,
    names: list[str],
) -> list[Array]:
    feed = {n: (t.nudged if nudged else t.arrays)[i] for n, t in operands.items() if n not in held}
    return session.run(names, feed)


def _check(arrays: list[Array], nudged: list[Array]) -> None:
    """Raises RefusedError for results that are too large, not finite, or that a nudge changes."""
    for array, moved in zip(arrays, nudged, strict=True):
        if isinstance(array, list):
            if len(array) != len(moved):
                raise RefusedError("jumps")
            _check(array, moved)
        elif array is None or moved is None:
            if array is not moved:
                raise RefusedError("jumps")
        else:
            _check_array(np.asarray(array), np.asarray(moved))


def _check_array(array: np.ndarray, moved: np.ndarray) -> None:
    if array.shape != moved.shape or array.size > LARGEST or array.dtype.kind not in "fiub":
        raise RefusedError("size, or jumps")
    if array.dtype.kind != "f":
        if not np.array_equal(array, moved):
            raise RefusedError("jumps")
        return
    if not array.size:
        return
    if not np.isfinite(array).all() or not np.isfinite(moved).all() or np.abs(array).max() > BOUND:
        raise RefusedError("large")
    if np.abs(array - moved).max() > STABLE[array.dtype.char] * max(np.abs(array).max(), 1e-3):
        raise RefusedError("unstable")


def _type(value: ort.NodeArg, arrays: list[Array]) -> onnx.TypeProto:
    """The type of a result: dimensions that differ between samples stay open."""
    name = value.type
    if name.startswith("tensor("):
        shapes = [a.shape for a in arrays]
        ranks = {len(s) for s in shapes}
        element = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        if len(ranks) > 1:
            return helper.make_tensor_type_proto(element, None)
        dims = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
        return helper.make_tensor_type_proto(element, dims)
    inner = helper.make_tensor_type_proto(_ELEMENTS[name.rsplit("(", 1)[1].rstrip(")")], None)
    if name.startswith("seq("):
        return helper.make_sequence_type_proto(inner)
    if name.startswith("optional(tensor"):
        return helper.make_optional_type_proto(inner)
    raise RefusedError(name)


_ELEMENTS = {
    "float": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "double": onnx.TensorProto.DOUBLE,
    "bool": onnx.TensorProto.BOOL,
    **{
        f"{u}int{n}": getattr(onnx.TensorProto, f"{u}INT{n}".upper())
        for u in ("", "u")
        for n in (8, 16, 32, 64)
    },
}


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(
    node: onnx.NodeProto, functions: Sequence[onnx.FunctionProto]
) -> Iterator[onnx.NodeProto]:
    """A node and those of its bodies and function."""
    yield node
    for body in bodies(node):
        for inner in body.node:
            yield from all_nodes(inner, functions)
    for function in functions:
        if node.domain == function.domain and node.op_type == function.name:
            for inner in function.node:
                yield from all_nodes(inner, functions)


def free_names(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in its bodies too, each once."""
    found = [name for name in node.input if name]
    for body in bodies(node):
        local = {v.name for v in body.input} | {t.name for t in body.initializer}
        for inner in body.node:
            found += [name for name in free_names(inner) if name not in local]
            local.update(inner.output)
        found += [v.name for v in body.output if v.name not in local]
    return list(dict.fromkeys(found))
