"""Compares tensors of a compiled file, and what its executables take and give, with those of a
plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from compiler.vendor.constants import Graph, text
from compiler.vendor.darwinn import StoredPackage

_TOLD = 3  # complaints of one kind that are spelled out


def tensors(source: Graph, made: Graph) -> list[str]:
    """Tensors of the compiled file that the plain one does not have, or has otherwise."""
    known: dict[str, list[Any]] = {}
    for tensor in source.tensors:
        known.setdefault(text(tensor.name), []).append(_kind(tensor))
    unknown = []
    complaints = []
    for tensor in made.tensors:
        name = text(tensor.name)
        if name not in known:
            unknown.append(f"it has a tensor {name!r}, which the plain file has not")
        elif _kind(tensor) not in known[name]:
            was = known[name][0]
            complaints.append(f"tensor {name!r} is {_spell(_kind(tensor))}, not {_spell(was)}")
    return _first(unknown, "such tensors") + _first(complaints, "tensors")


def _kind(tensor: Any) -> tuple[Any, ...]:
    """Type, shape, scales and zero points of a tensor."""
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return tensor.type, shape, (), ()
    scales = tuple(float(scale) for scale in quantization.scale)
    return tensor.type, shape, scales, tuple(int(zero) for zero in quantization.zeroPoint)


def _spell(kind: tuple[Any, ...]) -> str:
    dtype, shape, scales, zero_points = kind
    names = {value: name.lower() for name, value in vars(schema.TensorType).items()}
    sizes = "x".join(map(str, shape))
    words = f"{names[dtype]} {sizes}"
    if len(scales) == 1:
        words += f" of scale {scales[0]:.6g} and zero point {zero_points[0]}"
    return words


def numerics(source: Graph, packages: Sequence[StoredPackage]) -> list[str]:
    """Scales and zero points that the executables give to tensors otherwise than the plain file."""
    quantized = {}
    for tensor in source.tensors:
        raised = {schema.TensorType.INT8: 128, schema.TensorType.UINT8: 0}.get(tensor.type)
        _, _, scales, zero_points = _kind(tensor)
        if raised is not None and len(scales) == 1:
            quantized[text(tensor.name)] = scales[0], zero_points[0] + raised
    complaints = []
    for package in packages:
        for name, numbers in package.numerics.items():
            if name in quantized and numbers != quantized[name]:
                scale, zero_point = numbers
                own_scale, own_zero_point = quantized[name]
                complaints.append(
                    f"the executable has {name!r} at scale {scale:.6g} and zero point {zero_point} "
                    f"of uint8, the plain file at {own_scale:.6g} and {own_zero_point}"
                )
    return _first(complaints, "tensors of executables")


def _first(complaints: Sequence[str], what: str) -> list[str]:
    more = len(complaints) - _TOLD
    return [*complaints[:_TOLD], *([f"and so {more} more {what}"] if more > 0 else [])]
