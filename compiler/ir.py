"""Small vocabulary over onnx_ir: what every pass and operator file reads and writes with.

The IR is an `onnx_ir.Model` that onnxruntime can run at any time. Operators that ONNX lacks live in the domain
`edgetpu`; each is a model-local function whose body says in plain ONNX what it computes (see compiler/ops/dialect.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

DIALECT = "edgetpu"
OPSET = 23
RAISED = 21  # from here on, operators have the form that they have in OPSET
IR_VERSION = 11
ORIGIN = "edgetpu.origin"
REASON = "edgetpu.reason"  # why a lowering left a node in ONNX
HOST = "edgetpu.host"  # why a pass keeps a node on the host although the TPU has it
WIDENED = "edgetpu.widened"  # of a model: the file computes in float16
BALANCED = "edgetpu.balanced"  # on the Mul that undoes what the weights of a normalised product are divided by
ROWS = "edgetpu.rows"  # how to read some rows of a lazy constant
COLUMNS = "edgetpu.columns"  # how to read some columns of one, as rows
GRID = "edgetpu.grid"
COLUMN_GRID = "edgetpu.column_grid"
MOST_ROUNDS = 1000  # of rewriting a graph; the deepest network in the tests takes a few

Shape = tuple[int, ...]


def is_current(model: ir.Model) -> bool:
    """Whether a model has all operators that passes write; the importer cannot raise every opset."""
    return model.graph.opset_imports.get("", OPSET) >= OPSET


def is_raised(model: ir.Model) -> bool:
    """Whether the operators of a model have the form and the meaning that passes and rules know."""
    return model.graph.opset_imports.get("", OPSET) >= RAISED


def key(node: ir.Node) -> tuple[str, str]:
    """(domain, operator type) of a node, '' for ONNX's own domain."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def kind(node: ir.Node) -> str:
    """Operator name as people write it: 'Conv', 'edgetpu.Conv2D'."""
    domain, op_type = key(node)
    return f"{domain}.{op_type}" if domain else op_type


def shape(value: ir.Value | None) -> Shape:
    """Static shape of a value. Raises ValueError where it is not known; the importer makes sure that it is."""
    if value is not None and value.const_value is not None:
        return tuple(int(d) for d in value.const_value.shape)  # type: ignore[arg-type]
    if value is None or value.shape is None or not value.shape.is_static():
        raise ValueError(f"tensor '{value.name if value is not None else None}' has no static shape")
    return tuple(d for d in value.shape if isinstance(d, int))


def is_static(value: ir.Value | None) -> bool:
    return is_const(value) or (value is not None and value.shape is not None and value.shape.is_static())


def size(value: ir.Value) -> int:
    """Number of elements."""
    return math.prod(shape(value))


def is_const(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def const(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, None for an activation or an absent input."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def array_of(value: ir.Value) -> np.ndarray:
    """The array of a value that is known to be constant."""
    assert value.const_value is not None
    return value.const_value.numpy()


def rows_of(value: ir.Value, rows: slice) -> np.ndarray:
    """Some rows of a constant, without computing the others where it can be helped."""
    read = value.meta.get(ROWS)
    return array_of(value)[rows] if read is None else read(rows)


def joined_rows(values: Sequence[ir.Value], rows: slice) -> np.ndarray:
    """Some rows of constants that are thought of as one behind the other."""
    found, start = [], 0
    for value in values:
        count = shape(value)[0]
        low, high = max(rows.start, start), min(rows.stop, start + count)
        if low < high:
            found.append(rows_of(value, slice(low - start, high - start)))
        start += count
    return found[0] if len(found) == 1 else np.concatenate(found)


def grid(value: ir.Value) -> np.ndarray | None:
    """Scales of the int8 grid that a weight was given on, one for each row; None where it was given as float."""
    return value.meta.get(GRID)


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What is multiplied by, or divided by, numbers, and their product."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    x, by = node.inputs
    if node.op_type == "Mul" and is_const(x):
        x, by = by, x
    number = scalar(by)
    if x is None or not number or is_const(x) or not is_static(x) or len(shape(by)) > len(shape(x)):
        return value, 1.0
    rest, factor = unscaled(x)
    return rest, factor * (number if node.op_type == "Mul" else 1 / number)


def near(found: float, number: float) -> bool:
    """Whether a constant of an exporter is meant to be `number`."""
    return math.isclose(found, number, rel_tol=1e-3)


def product_of(made: ir.Value, x: ir.Value | None, number: float) -> ir.Node | None:
    """The last node of made * x * number, or of made * number without x, whatever the order of the factors."""
    factor, missing = 1.0, x is not None
    while (last := only_consumer(made)) is not None and key(last) in (("", "Mul"), ("", "Div")):
        other = next((v for v in last.inputs if v is not made), None)
        if last.op_type == "Div" and (last.inputs[0] is not made or scalar(other) in (None, 0)):
            return None
        by = scalar(other)
        if other is not None and by is None:
            rest, by = unscaled(other)
            if rest is not x or not missing:
                return None
            missing = False
        if by is None:
            return None
        factor = factor / by if last.op_type == "Div" else factor * by
        if not missing and near(factor, number):
            return last
        made = last.outputs[0]
    return None


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers in a small constant (axes, shapes, pads), else None."""
    array = const(value)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """Attribute value as a plain Python object (int, float, str, tuple, tensor), `default` where it is absent."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    value = attribute.value
    return tuple(value) if attribute.type.name.endswith("S") else value


def arg(node: ir.Node, index: int) -> ir.Value | None:
    """Input number `index`, None where it is absent or left empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return axis + rank if axis < 0 else axis


def activations(node: ir.Node) -> list[ir.Value]:
    """Inputs that are computed at run time."""
    return [v for v in node.inputs if v is not None and not is_const(v)]


def around(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """All activations that nodes read or make, each once."""
    return list(dict.fromkeys(v for node in nodes for v in [*activations(node), *node.outputs]))


def consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once, in the order of first use."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, None where there are several or the value leaves the graph."""
    users = consumers(value)
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that made `value` if it is an operator of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and key(node) == (domain, op_type) else None


def origin(node: ir.Node) -> str:
    """Name of the node of the source model that a node comes from."""
    return node.metadata_props.get(ORIGIN) or node.name or (node.outputs[0].name or "")


def tensor_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every activation of a graph: its inputs, then node outputs in order."""
    yield from graph.inputs
    for node in graph:
        yield from (v for v in node.outputs if v.name)


def float32_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of a graph without those that compute on other kinds of float: passes write constants in float32."""
    return [n for n in graph if not any(_is_other_float(v) for v in [*n.inputs, *n.outputs] if v is not None)]


def _is_other_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and value.dtype != ir.DataType.FLOAT


class Names:
    """Hands out names that no value and no node of the graph uses yet."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {v.name for v in tensor_values(graph)} | set(graph.initializers) | {n.name for n in graph}

    def fresh(self, hint: str) -> str:
        name, number = hint, 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name


class Builder:
    """Adds nodes in front of `anchor`: shapes are inferred, names are free, the origin is the anchor's."""

    def __init__(self, model: ir.Model, names: Names, anchor: ir.Node) -> None:
        self.model, self.graph, self.names, self.anchor = model, model.graph, names, anchor
        self.made: set[ir.Value] = set()

    def replace(self, *values: ir.Value) -> None:
        """Put `values` in the place of the anchor's outputs and remove the anchor."""
        bypass(self.anchor, values, self.made)

    def const(self, array: np.ndarray | np.generic | ir.TensorProtocol, hint: str) -> ir.Value:
        """A new initializer. A lazy tensor stays unread until it is written."""
        tensor = ir.tensor(np.asarray(array, order="C")) if isinstance(array, np.ndarray | np.generic) else array
        value = ir.Value(
            name=self.names.fresh(hint),
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def lazy(self, source: ir.Value, change: Callable[[np.ndarray], np.ndarray], new: Shape, hint: str) -> ir.Value:
        """A constant computed from another when it is read, so that weights are not held in memory twice."""
        return self._made(lambda: change(array_of(source)), source, new, hint)

    def lazy_rows(
        self, source: ir.Value, change: Callable[[np.ndarray], np.ndarray], new: Shape, hint: str
    ) -> ir.Value:
        """As `lazy`, for a change that treats each row (first axis) by itself, so that tiles read only their rows."""
        value = self.lazy(source, change, new, hint)
        value.meta[ROWS] = lambda rows: change(rows_of(source, rows))
        value.meta[GRID] = grid(source)
        return value

    def by_rows(self, read: Callable[[slice], np.ndarray], new: Shape, hint: str) -> ir.Value:
        """A float constant of shape `new` of which `read` computes some rows (first axis) when they are needed."""
        whole = slice(0, new[0])
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read(whole), np.float32)),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(new),
            name=hint,
        )
        value = self.const(tensor, hint)
        value.meta[ROWS] = read
        return value

    def rows(self, source: ir.Value, rows: slice) -> ir.Value:
        """Some rows of a constant."""
        new = (rows.stop - rows.start, *shape(source)[1:])
        value = self._made(lambda: rows_of(source, rows), source, new, f"{source.name}/{rows.start}")
        scales = grid(source)
        value.meta[GRID] = scales if scales is None else scales[rows]
        return value

    def transposed(self, source: ir.Value) -> ir.Value:
        """A matrix with its axes exchanged."""
        value = self.lazy(source, np.transpose, shape(source)[::-1], f"{source.name}/T")
        value.meta[ROWS] = source.meta.get(COLUMNS, lambda rows: array_of(source)[:, rows].T)
        value.meta[GRID] = source.meta.get(COLUMN_GRID)
        return value

    def _made(self, make: Callable[[], np.ndarray], source: ir.Value, new: Shape, hint: str) -> ir.Value:
        assert source.const_value is not None
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(make())),
            dtype=source.const_value.dtype,
            shape=ir.Shape(new),
            name=hint,
        )
        return self.const(tensor, hint)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """One node with one output."""
        return self.ops(op_type, inputs, attributes, domain, 1)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        """One node with several outputs."""
        node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=outputs)
        node.metadata_props[ORIGIN] = origin(self.anchor)
        for value in node.outputs:
            value.name = self.names.fresh(f"{origin(self.anchor)}/{op_type}")
        node.name = node.outputs[0].name
        self.made.update(node.outputs)
        self.graph.insert_before(self.anchor, node)
        infer_node(self.model, node)
        return list(node.outputs)

    def reshape(self, value: ir.Value, new: Sequence[int]) -> ir.Value:
        """Reshape to a static shape; the value itself where nothing changes."""
        if shape(value) == tuple(new):
            return value
        target = self.const(np.asarray(new, np.int64), f"{value.name}/shape")
        empty = {"allowzero": 1} if 0 in new else {}
        return self.op("Reshape", [value, target], empty)

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        if list(perm) == sorted(perm):
            return value
        return self.op("Transpose", [value], {"perm": tuple(perm)})

    def scalar(self, number: float, hint: str) -> ir.Value:
        return self.const(np.asarray(number, np.float32), hint)


NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)


def to_nhwc(b: Builder, value: ir.Value) -> ir.Value:
    return b.transpose(value, NHWC)


def to_nchw(b: Builder, value: ir.Value) -> ir.Value:
    return b.transpose(value, NCHW)


def infer_node(model: ir.Model, node: ir.Node) -> None:
    """Type and shape of a node's outputs from ONNX's own inference; function bodies serve the dialect."""
    graph = onnx.GraphProto(name="one")
    graph.node.append(ir.serde.serialize_node(node))
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = value.const_value
        if tensor is not None and tensor.size <= 64:
            graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), value.name))
        else:
            graph.input.append(ir.serde.serialize_value(value))
    graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in node.outputs if v.name)
    proto = onnx.ModelProto(ir_version=IR_VERSION, graph=graph)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    if node.domain == DIALECT:
        function = model.functions[node.op_identifier()]
        proto.functions.append(ir.serde.serialize_function(function))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    found = {info.name: info for info in inferred.graph.output}
    for value in node.outputs:
        info = found.get(str(value.name))
        if info is None or info.type.WhichOneof("value") is None:
            continue
        value.type = ir.serde.deserialize_type_proto_for_type(info.type)
        value.shape = ir.serde.deserialize_type_proto_for_shape(info.type)


def until_stable(model: ir.Model, rewrite: Callable[[ir.Node, Builder], bool]) -> None:
    """Offer every node of static shapes to `rewrite`, which says whether it changed anything, until none does.

    Raises RuntimeError where that does not come to an end.
    """
    names = Names(model.graph)
    for _ in range(MOST_ROUNDS):
        changed = False
        for node in list(model.graph):
            if node.graph is not None and all(is_static(v) for v in [*node.inputs, *node.outputs] if v is not None):
                changed |= rewrite(node, Builder(model, names, node))
        common.RemoveUnusedNodesPass()(model)
        if not changed:
            return
    raise RuntimeError("rewriting does not come to an end")


def bypass(node: ir.Node, values: Sequence[ir.Value], made: frozenset[ir.Value] | set[ir.Value] = frozenset()) -> None:
    """Put other values in the place of a node's outputs and remove the node.

    Values in `made` are new and take the names of those they replace, so that names stay those of the source model.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for old, new in zip(list(node.outputs), values, strict=True):
        rename = new in made
        if old.is_graph_output() and (not rename or new.is_graph_output()):
            new, rename = _identity(graph, node, old, new), True  # noqa: PLW2901
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if rename:
            old.name, new.name = f"{name}/replaced", name
    graph.remove(node, safe=True)


def _identity(graph: ir.Graph, node: ir.Node, old: ir.Value, value: ir.Value) -> ir.Value:
    """A copy of `value` in front of the node whose output `old` it replaces."""
    made = ir.node("Identity", [value], num_outputs=1)
    made.metadata_props[ORIGIN] = origin(node)
    out = made.outputs[0]
    out.name, out.shape, out.type = f"{old.name}/copy", value.shape, value.type
    made.name = out.name
    graph.insert_before(node, made)
    return out


def reads(node: ir.Node) -> list[ir.Value]:
    """Every value of the graph that a node needs, those that its subgraphs capture included; each once."""
    found = dict.fromkeys(v for v in node.inputs if v is not None)
    for graph in bodies(node):
        local = set(graph.inputs) | set(graph.initializers.values())
        for inner in graph:
            found.update(dict.fromkeys(v for v in reads(inner) if v not in local))
            local.update(inner.outputs)
        found.update(dict.fromkeys(v for v in graph.outputs if v not in local))
    return list(found)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds: branches, the body of a loop."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        found += {"GRAPH": [attribute.value], "GRAPHS": attribute.value}.get(attribute.type.name, [])
    return found
