"""Reads shapes, constants and attributes of values and nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph.keys import Shape


def shape_of(value: ir.Value | None) -> Shape:
    """Static shape of a value. Raises ValueError where it is not known; the importer makes sure
    that it is."""
    if value is not None and value.const_value is not None:
        return tuple(int(d) for d in value.const_value.shape)  # type: ignore[arg-type]
    if value is None or value.shape is None or not value.shape.is_static():
        raise ValueError(
            f"tensor '{value.name if value is not None else None}' has no static shape"
        )
    return tuple(d for d in value.shape if isinstance(d, int))


def is_static(value: ir.Value | None) -> bool:
    return is_constant(value) or (
        value is not None and value.shape is not None and value.shape.is_static()
    )


def element_count(value: ir.Value) -> int:
    """Number of elements."""
    return math.prod(shape_of(value))


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, None for an activation or an absent input."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def array_of(value: ir.Value) -> np.ndarray:
    """The array of a value that is known to be constant."""
    assert value.const_value is not None
    return value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def ints_of(value: ir.Value | None) -> list[int] | None:
    """The integers in a small constant (axes, shapes, pads), else None."""
    array = constant_of(value)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def attribute_of(node: ir.Node, name: str, default: Any = None) -> Any:
    """Attribute value as a plain Python object (int, float, str, tuple, tensor), `default` where it
    is absent."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    value = attribute.value
    return tuple(value) if attribute.type.name.endswith("S") else value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input number `index`, None where it is absent or left empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return axis + rank if axis < 0 else axis
