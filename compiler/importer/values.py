"""Inputs whose value is fixed for good, `--value NAME=VALUE`: they become constants of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compiler.errors import OptionError

# Where an imported model keeps the arrays {name: array} of its fixed inputs, which the file itself
# still takes.
META = "edgetpu.values"

_WORDS = {"true": 1, "false": 0}


def fix(model: ir.Model, values: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Turn inputs into constants: one number for all elements, or one for each, separated by
    commas.

    Raises OptionError.
    """
    inputs = {str(v.name): v for v in model.graph.inputs}
    arrays = {}
    for name, text in values.items():
        if name not in inputs:
            known = ", ".join(f"'{n}'" for n in inputs)
            raise OptionError(f"--value {name}={text}: the model has no such input; it has {known}")
        arrays[name] = _array(inputs[name], text, shapes.get(name))
        value = inputs[name]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[name])
        value.shape = ir.Shape(arrays[name].shape)
        model.graph.register_initializer(value)
    model.meta[META] = arrays


def of(model: ir.Model) -> dict[str, np.ndarray]:
    """The fixed inputs of an imported model."""
    return dict(model.meta.get(META, {}))


def _number(word: str) -> int | float:
    """Integers stay integers, as large ones are no floats."""
    if word in _WORDS:
        return _WORDS[word]
    return int(word) if word.lstrip("+-").isdecimal() else float(word)


def deciding(model: ir.Model) -> list[str]:
    """Names of the inputs that decide which branch of an If is taken."""
    found: dict[str, None] = {}
    waiting = [node.inputs[0] for node in model.graph if node.op_type == "If"]
    seen: set[ir.Value] = set()
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


def _array(value: ir.Value, text: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """Raises OptionError for a text that does not fit the input."""
    option = f"--value {value.name}={text}"
    dtype = (
        value.dtype.numpy()
        if isinstance(value.type, ir.TensorType) and value.dtype is not None
        else None
    )
    if dtype is None or np.dtype(dtype).kind not in "fiub":
        raise OptionError(f"{option}: input '{value.name}' does not hold numbers")
    try:
        numbers = [_number(word.strip().lower()) for word in text.split(",")]
        array = np.array(numbers, np.float64 if np.dtype(dtype).kind == "f" else None)
        exact = array.astype(dtype)
    except (ValueError, OverflowError) as error:
        raise OptionError(f"{option}: write a number, or numbers separated by commas") from error
    if np.dtype(dtype).kind != "f" and not np.array_equal(exact, array):
        raise OptionError(
            f"{option}: input '{value.name}' is {np.dtype(dtype).name}, which does not hold that"
        )
    shape = _shape(value, len(numbers)) if shape is None else shape
    if len(numbers) == 1:
        return np.full(shape, exact[0], dtype)
    if len(numbers) != int(np.prod(shape)):
        raise OptionError(
            f"{option}: input '{value.name}' {list(shape)} takes 1 number or {int(np.prod(shape))}"
        )
    return exact.reshape(shape)


def _shape(value: ir.Value, count: int) -> tuple[int, ...]:
    """The declared shape; numbers fill a single dynamic dimension, all others are 1."""
    if value.shape is None:
        return () if count == 1 else (count,)
    known = [d if isinstance(d, int) and d >= 0 else None for d in value.shape]
    if known == [None]:
        return (count,)
    return tuple(1 if d is None else d for d in known)
