"""Gives every input of a model a static shape and checks that arrays can be fed to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from compiler.errors import ModelError, OptionError
from compiler.graph import Shape, all_activations, shape_of

# Limits of numpy (dimensions) and of what onnxruntime allocates for an input (elements).
MOST_DIMENSIONS = 64
MOST_ELEMENTS = 1 << 31

_INTEGERS = {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
# By input, sizes of its axes as something beside the options tells them; None for what is not told.
Hints = Mapping[str, Sequence[int | None]]

# Types that numpy has itself.
_INPUT_TYPES = {"FLOAT", "FLOAT16", "DOUBLE", "BOOL"} | _INTEGERS


def fix_inputs(
    model: ir.Model, dims: Mapping[str, int], shapes: Mapping[str, Shape], hints: Hints
) -> None:
    """Make all inputs static: `shapes` replaces whole shapes, `dims` symbolic dimensions by name,
    and `hints` fills in what is open then.

    Shapes of all other tensors are forgotten, as they may contradict the fixed ones; shape
    inference finds them anew. Raises OptionError for names that the model does not have,
    ModelError for inputs that stay dynamic or that no array can fill.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    _set_shapes(inputs, shapes)
    # With `shapes`, a named dimension may just have been replaced.
    if not shapes:
        _check_dims_exist(inputs.values(), dims)
    missing: list[str] = []
    for value in inputs.values():
        missing += _fix_dims(value, dims, hints.get(str(value.name), ()))
    if missing:
        wanted = " ".join(dict.fromkeys(missing))
        raise ModelError(
            f"some dimensions are not fixed; the Edge TPU needs static shapes: add {wanted}"
        )
    for value in inputs.values():
        _check_input(value)
    for value in model.graph.outputs:
        if isinstance(value.type, ir.OptionalType):
            raise ModelError(
                f"output '{value.name}' is optional; bundles give tensors and sequences"
            )
    input_shapes = {value: value.shape for value in inputs.values()}
    for value in all_activations(model.graph):
        value.shape = input_shapes.get(value)


def joined(first: Hints, second: Hints) -> Hints:
    """The sizes that one of two tells, the first where both do."""
    found = dict(second)
    for name, sizes in first.items():
        others = second.get(name, ())
        if len(others) != len(sizes):
            others = [None] * len(sizes)
        pairs = zip(sizes, others, strict=True)
        found[name] = [other if size is None else size for size, other in pairs]
    return found


def _set_shapes(inputs: Mapping[str, ir.Value], shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        if name not in inputs:
            raise OptionError(
                f"{name}: the model has no such input; it has {_quoted(inputs)}", "shapes"
            )
        declared = inputs[name].shape
        if declared is not None and len(declared) != len(shape):
            raise OptionError(
                f"{name}: the input has {len(declared)} dimensions, not {len(shape)}", "shapes"
            )
        inputs[name].shape = ir.Shape(shape)


def _check_dims_exist(inputs: Iterable[ir.Value], dims: Mapping[str, int]) -> None:
    symbols = set()
    for value in inputs:
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim):
                symbols.add(dim.value)
    for name in dims:
        if name not in symbols:
            has = _quoted(symbol for symbol in symbols if symbol is not None) or "none"
            raise OptionError(f"{name}: the model has no such dimension; it has {has}", "dims")


def _fix_dims(value: ir.Value, dims: Mapping[str, int], hint: Sequence[int | None]) -> list[str]:
    """Fix the dimensions of an input; returns the options that would fix what is still open."""
    whole_shape = f"--shape {value.name}=..."
    if value.shape is None:
        if not hint or None in hint:
            return [whole_shape]
        value.shape = ir.Shape(list(hint))
    fixed = [_fixed(dim, dims) for dim in value.shape]
    if len(hint) == len(fixed):
        pairs = zip(fixed, hint, strict=True)
        fixed = [dim if isinstance(dim, int) or size is None else size for dim, size in pairs]
    value.shape = ir.Shape(fixed)
    missing = []
    for axis, dim in enumerate(fixed):
        if isinstance(dim, int):
            continue
        if not dim:
            missing.append(whole_shape)
            continue
        # The first axis is the batch nearly always, and bundles are mostly built for one.
        guess = "..." if axis else "1"
        missing.append(f"--dim {dim}={guess}")
    return missing


def _fixed(dim: int | ir.SymbolicDim, dims: Mapping[str, int]) -> int | str | None:
    """The size of a dimension, else its name, else None."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None  # some exporters write -1 for what is dynamic
    if dim.value is None:
        return None
    return dims.get(str(dim.value), dim.value)


def _check_input(value: ir.Value) -> None:
    """Raises ModelError for an input that no array can be."""
    type_name = "not a tensor"
    if isinstance(value.type, ir.TensorType) and value.dtype is not None:
        type_name = value.dtype.name
    if type_name not in _INPUT_TYPES:
        raise ModelError(
            f"input '{value.name}' is {type_name.lower()}; "
            "bundles take tensors of numpy's own types"
        )
    shape = shape_of(value)
    if len(shape) > MOST_DIMENSIONS:
        raise ModelError(
            f"input '{value.name}' has {len(shape)} dimensions; {MOST_DIMENSIONS} are supported"
        )
    if math.prod(shape) > MOST_ELEMENTS:
        raise ModelError(
            f"input '{value.name}' {list(shape)} has more than 2^31 elements: "
            "give it a smaller shape"
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
