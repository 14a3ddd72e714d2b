"""Adds nodes and constants to a graph, with names that are free and shapes that are inferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph.editing import infer_node, replace_node
from compiler.graph.keys import HOST_REASON, ORIGIN, Shape, origin_of
from compiler.graph.lazy import COLUMN_GRID, COLUMNS, GRID, ROWS, grid_of, rows_of
from compiler.graph.values import array_of, shape_of
from compiler.graph.walk import all_activations


def fresh_name(hint: str, taken: set[str], joint: str = "_") -> str:
    """`hint`, or the first of `hint_1`, `hint_2`, ... that is not in `taken`; adds it there."""
    name = hint
    number = 0
    while name in taken:
        number += 1
        name = f"{hint}{joint}{number}"
    taken.add(name)
    return name


class Names:
    """Hands out names that no value and no node of the graph uses yet."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = set(graph.initializers)
        self._taken.update(str(value.name) for value in all_activations(graph))
        self._taken.update(str(node.name) for node in graph)

    def fresh(self, hint: str) -> str:
        """`hint`, or where that is taken `hint_1`, `hint_2`, ..."""
        return fresh_name(hint, self._taken)


class Builder:
    """Adds nodes in front of `anchor`, which come from the same node of the source model as it.

    Values that it made are in `made`: they take the names of those that they replace.
    """

    def __init__(self, model: ir.Model, names: Names, anchor: ir.Node) -> None:
        self.model = model
        self.graph = model.graph
        self.names = names
        self.anchor = anchor
        self.made: set[ir.Value] = set()

    def replace(self, *values: ir.Value) -> None:
        """Put `values` in the place of the anchor's outputs and remove the anchor."""
        replace_node(self.anchor, values, self.made)

    def const(self, array: np.ndarray | np.generic | ir.TensorProtocol, hint: str) -> ir.Value:
        """A new initializer. A lazy tensor stays unread until it is written."""
        if isinstance(array, np.ndarray | np.generic):
            tensor: ir.TensorProtocol = ir.tensor(np.asarray(array, order="C"))
        else:
            tensor = array
        value = ir.Value(
            name=self.names.fresh(hint),
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def lazy(
        self, source: ir.Value, change: Callable[[np.ndarray], np.ndarray], new: Shape, hint: str
    ) -> ir.Value:
        """A constant of shape `new`, computed from `source` whenever it is read.

        So weights are not held in memory twice.
        """
        return self._lazy(lambda: change(array_of(source)), source, new, hint)

    def lazy_rows(
        self, source: ir.Value, change: Callable[[np.ndarray], np.ndarray], new: Shape, hint: str
    ) -> ir.Value:
        """As `lazy`, for a change that treats each row (first axis) by itself.

        So tiles compute only their own rows.
        """
        value = self.lazy(source, change, new, hint)
        value.meta[ROWS] = lambda rows: change(rows_of(source, rows))
        value.meta[GRID] = grid_of(source)
        return value

    def by_rows(self, read: Callable[[slice], np.ndarray], new: Shape, hint: str) -> ir.Value:
        """A float constant of shape `new`; `read` computes some rows (first axis) as needed."""

        def compute() -> np.ndarray:
            whole = slice(0, new[0])
            return read(whole).astype(np.float32, copy=False)

        value = self.const(_lazy_tensor(compute, ir.DataType.FLOAT, new, hint), hint)
        value.meta[ROWS] = read
        return value

    def rows(self, source: ir.Value, rows: slice) -> ir.Value:
        """Some rows of a constant."""
        new = (rows.stop - rows.start, *shape_of(source)[1:])
        hint = f"{source.name}/{rows.start}"
        value = self._lazy(lambda: rows_of(source, rows), source, new, hint)
        scales = grid_of(source)
        value.meta[GRID] = scales if scales is None else scales[rows]
        return value

    def transposed(self, source: ir.Value) -> ir.Value:
        """A matrix with its axes exchanged."""
        value = self.lazy(source, np.transpose, shape_of(source)[::-1], f"{source.name}/T")
        value.meta[ROWS] = source.meta.get(COLUMNS, lambda rows: array_of(source)[:, rows].T)
        value.meta[GRID] = source.meta.get(COLUMN_GRID)
        return value

    def _lazy(
        self, compute: Callable[[], np.ndarray], source: ir.Value, new: Shape, hint: str
    ) -> ir.Value:
        """A constant of the type of `source`."""
        assert source.const_value is not None
        return self.const(_lazy_tensor(compute, source.const_value.dtype, new, hint), hint)

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
        node.metadata_props[ORIGIN] = origin_of(self.anchor)
        if HOST_REASON in self.anchor.metadata_props:
            # What replaces a node of the host stays there.
            node.metadata_props[HOST_REASON] = self.anchor.metadata_props[HOST_REASON]
        for value in node.outputs:
            value.name = self.names.fresh(f"{origin_of(self.anchor)}/{op_type}")
        node.name = node.outputs[0].name
        self.made.update(node.outputs)
        self.graph.insert_before(self.anchor, node)
        infer_node(self.model, node)
        return list(node.outputs)

    def reshape(self, value: ir.Value, new: Sequence[int]) -> ir.Value:
        """Reshape to a static shape; the value itself where nothing changes."""
        if shape_of(value) == tuple(new):
            return value
        target = self.const(np.asarray(new, np.int64), f"{value.name}/shape")
        # Without it, a zero would stand for the dimension of the input.
        attributes = {"allowzero": 1} if 0 in new else {}
        return self.op("Reshape", [value, target], attributes)

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """A Transpose; the value itself where nothing changes."""
        if list(perm) == sorted(perm):
            return value
        return self.op("Transpose", [value], {"perm": tuple(perm)})

    def scalar(self, number: float, hint: str) -> ir.Value:
        """A float32 constant without dimensions."""
        return self.const(np.asarray(number, np.float32), hint)


def _lazy_tensor(
    compute: Callable[[], np.ndarray], dtype: ir.DataType, shape: Shape, name: str
) -> ir.LazyTensor:
    def tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(compute()))

    return ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)


# Permutations that bring images from NCHW to NHWC, and back.
NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)


def to_nhwc(b: Builder, value: ir.Value) -> ir.Value:
    return b.transpose(value, NHWC)


def to_nchw(b: Builder, value: ir.Value) -> ir.Value:
    return b.transpose(value, NCHW)
