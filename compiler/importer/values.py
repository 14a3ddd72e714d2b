"""Inputs that the user fixes to a value for good: they become constants of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compiler.errors import OptionError
from compiler.graph import Shape

# Where an imported model keeps the arrays {name: array} of its fixed inputs, which the file itself
# still takes.
META = "edgetpu.values"

_WORDS = {"true": 1, "false": 0}


def fix(model: ir.Model, values: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
    """Turn inputs into constants.

    `values` holds, by input, one number for all elements or one for each, separated by commas.
    Raises OptionError for an input that does not exist or cannot hold its value.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    arrays = {}
    for name, text in values.items():
        if name not in inputs:
            known = ", ".join(f"'{known_name}'" for known_name in inputs)
            raise OptionError(
                f"{name}={text}: the model has no such input; it has {known}", "values"
            )
        value = inputs[name]
        array = _parsed(value, text, shapes.get(name))
        arrays[name] = array
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array)
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
    model.meta[META] = arrays


def of(model: ir.Model) -> dict[str, np.ndarray]:
    """The fixed inputs of an imported model."""
    return dict(model.meta.get(META, {}))


def texts_of(model: ir.Model) -> dict[str, str]:
    """The fixed inputs of an imported model as `fix` takes them."""
    return {name: ",".join(map(str, array.flat)) for name, array in of(model).items()}


def deciding(model: ir.Model) -> list[str]:
    """Names of the inputs that decide which branch of an If is taken."""
    found: dict[str, None] = {}
    seen: set[ir.Value] = set()
    waiting = [node.inputs[0] for node in model.graph if node.op_type == "If"]
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is not None:
            waiting += producer.inputs
        elif value.is_graph_input():
            found[str(value.name)] = None
    return list(found)


def _parsed(value: ir.Value, text: str, shape: Shape | None) -> np.ndarray:
    """The array that a text means for an input. Raises OptionError for a text that does not fit."""
    given = f"{value.name}={text}"
    dtype = _numpy_type(value)
    if dtype is None:
        raise OptionError(f"{given}: input '{value.name}' does not hold numbers", "values")
    is_float = dtype.kind == "f"
    try:
        numbers = [_number(word.strip().lower()) for word in text.split(",")]
        # Without a type, numpy keeps integers as integers, for the comparison below.
        written = np.array(numbers, np.float64 if is_float else None)
        held = written.astype(dtype)
    except (ValueError, OverflowError) as error:
        raise OptionError(
            f"{given}: write a number, or numbers separated by commas", "values"
        ) from error
    if not is_float and not np.array_equal(held, written):
        raise OptionError(
            f"{given}: input '{value.name}' is {dtype.name}, which does not hold that", "values"
        )
    if shape is None:
        shape = _declared_shape(value, len(numbers))
    if len(numbers) == 1:
        return np.full(shape, held[0], dtype)
    if len(numbers) != math.prod(shape):
        raise OptionError(
            f"{given}: input '{value.name}' {list(shape)} takes 1 number or {math.prod(shape)}",
            "values",
        )
    return held.reshape(shape)


def _numpy_type(value: ir.Value) -> np.dtype | None:
    """The type of an input that holds numbers, else None."""
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return None
    dtype = np.dtype(value.dtype.numpy())
    return dtype if dtype.kind in "fiub" else None


def _number(word: str) -> int | float:
    """Integers stay integers: a float does not hold large ones exactly."""
    if word in _WORDS:
        return _WORDS[word]
    if word.lstrip("+-").isdecimal():
        return int(word)
    return float(word)


def _declared_shape(value: ir.Value, count: int) -> Shape:
    """The declared shape of an input that gets `count` numbers.

    A single dynamic dimension holds all of them; with several dimensions, dynamic ones are 1.
    """
    if value.shape is None:
        return () if count == 1 else (count,)
    known = [dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape]
    if known == [None]:
        return (count,)
    return tuple(1 if dim is None else dim for dim in known)
