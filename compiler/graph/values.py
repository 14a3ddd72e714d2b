"""Reads shapes, constants and attributes of values and nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph.keys import Shape


def shape_of(value: ir.Value | None) -> Shape:
    """Static shape of a value; the importer makes sure that there is one.

    Raises ValueError where it is not known.
    """
    if value is not None and value.const_value is not None:
        return tuple(int(d) for d in value.const_value.shape)  # type: ignore[arg-type]
    if value is None or value.shape is None or not value.shape.is_static():
        name = value.name if value is not None else None
        raise ValueError(f"tensor '{name}' has no static shape")
    return tuple(d for d in value.shape if isinstance(d, int))


def is_static(value: ir.Value | None) -> bool:
    """Whether all dimensions of a value are known; not so for an absent one."""
    if value is None:
        return False
    if value.const_value is not None:
        return True
    return value.shape is not None and value.shape.is_static()


def element_count(value: ir.Value) -> int:
    """Number of elements."""
    return math.prod(shape_of(value))


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is known at build time; not so for an absent one."""
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
    if array is None:
        return None
    return [int(number) for number in array.reshape(-1)]


def attribute_of(node: ir.Node, name: str, default: Any = None) -> Any:
    """Attribute value as a plain Python object (int, float, str, tuple, tensor), `default` where it
    is absent."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    # INTS, FLOATS, STRINGS.
    is_list = attribute.type.name.endswith("S")
    return tuple(attribute.value) if is_list else attribute.value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input number `index`, None where it is absent or left empty."""
    if index >= len(node.inputs):
        return None
    return node.inputs[index]


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    return axis + rank if axis < 0 else axis


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds: branches, the body of a loop."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found
