"""Adds nodes and constants to an ONNX graph whose shapes are all known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.frontends.architecture import Weight
from compiler.graph import COLUMNS, OPSET, ORIGIN, Shape, shape_of

# onnxruntime's own operators.
CONTRIB = "com.microsoft"
# Constants of more elements are computed when they are read.
_MOST_EAGER = 1 << 16


class GraphWriter:
    """Appends to `graph`. A node, its origin and its only output have one name."""

    def __init__(self, name: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, CONTRIB: 1}, name=name)

    def input(self, name: str, shape: Shape, dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Shape,
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
    ) -> ir.Value:
        """The output of a new node."""
        node = ir.node(
            op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=1, name=name
        )
        node.metadata_props[ORIGIN] = name
        (value,) = node.outputs
        declare(value, name, shape, dtype)
        self.graph.append(node)
        return value

    def add(self, name: str, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op(name, "Add", [x, y], shape_of(x))

    def reshape(self, name: str, x: ir.Value, shape: Shape) -> ir.Value:
        shape_constant = self.array(f"{name}/shape", np.array(shape, np.int64))
        return self.op(name, "Reshape", [x, shape_constant], shape)

    def split(self, name: str, x: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
        """Parts of so many places each along an axis."""
        counts = self.array(f"{name}/sizes", np.array(sizes, np.int64))
        node = ir.node("Split", [x, counts], {"axis": axis}, num_outputs=len(sizes), name=name)
        node.metadata_props[ORIGIN] = name
        for number, (value, size) in enumerate(zip(node.outputs, sizes, strict=True)):
            shape = list(shape_of(x))
            shape[axis] = size
            declare(value, f"{name}/{number}", tuple(shape), ir.DataType.FLOAT)
        self.graph.append(node)
        return list(node.outputs)

    def array(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """A constant that is at hand."""
        array = np.asarray(array)
        return self._constant(name, lambda: array, array.shape, ir.DataType.from_numpy(array.dtype))

    def weight(self, name: str, weight: Weight, dtype: type[np.floating[Any]]) -> ir.Value:
        """A weight as a constant of this type."""

        def converted() -> np.ndarray:
            return weight.array().astype(dtype)

        onnx_type = ir.DataType.from_numpy(np.dtype(dtype))
        return self._constant(name, converted, weight.shape, onnx_type)

    def transposed(self, name: str, weight: Weight) -> ir.Value:
        """W^T [K, N] of a weight W [N, K], whose columns can be read as the rows of W."""

        def turned() -> np.ndarray:
            return weight.array().T

        value = self._constant(name, turned, weight.shape[::-1], ir.DataType.FLOAT)
        value.meta[COLUMNS] = weight.rows
        return value

    def computed(
        self, name: str, compute: Callable[[], np.ndarray], shape: Shape, dtype: type[np.generic]
    ) -> ir.Value:
        """A constant that is computed whenever it is read, of any size."""
        known = self.graph.initializers.get(name)
        if known is not None:
            return known
        onnx_type = ir.DataType.from_numpy(np.dtype(dtype))
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(onnx_type))
        value.const_value = _lazy(name, compute, shape, onnx_type)
        self.graph.register_initializer(value)
        return value

    def _constant(
        self, name: str, compute: Callable[[], np.ndarray], shape: Shape, dtype: ir.DataType
    ) -> ir.Value:
        """The constant of a name; of several calls with one name, the first makes it."""
        known = self.graph.initializers.get(name)
        if known is not None:
            return known
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        if math.prod(shape) <= _MOST_EAGER:
            value.const_value = ir.tensor(compute(), name=name)
        else:
            value.const_value = _lazy(name, compute, shape, dtype)
        self.graph.register_initializer(value)
        return value


def _lazy(
    name: str, compute: Callable[[], np.ndarray], shape: Shape, dtype: ir.DataType
) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(compute())),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
    )


def declare(value: ir.Value, name: str, shape: Shape, dtype: ir.DataType) -> None:
    """Say what a value is."""
    value.name = name
    value.shape = ir.Shape(shape)
    value.type = ir.TensorType(dtype)
