"""Says how the stored bytes of a layer differ from those of its plain file."""

from __future__ import annotations

import numpy as np

from compiler.vendor.constants import Layer
from compiler.vendor.parameters import Part, Pool

_BYTES: dict[Part, int] = {"weights": 1, "biases": 4, "scales": 4, "zero points": 4, "padding": 1}
_TYPES: dict[Part, str] = {"biases": "<i4", "scales": "<f4", "zero points": "<u4"}


def distance(pool: Pool, layout: np.ndarray, content: np.ndarray) -> float:
    """Share of weights that differ between a layer and the bytes `content`; of one without weights,
    share of bytes."""
    is_off = pool.bytes[layout] != content
    is_weight = layout < len(pool.parts["weights"])
    return float(np.mean(is_off[is_weight] if is_weight.any() else is_off))


def describe(layer: Layer, pool: Pool, layout: np.ndarray, content: np.ndarray) -> str:
    """What differs between a layer and the bytes `content`, part by part, with the first number."""
    texts = []
    for part, own in pool.parts.items():
        elements = _differing(pool, part, layout, content)
        count = len(own) // _BYTES[part]
        if len(elements):
            first = _first(layer, pool, part, int(elements[0]), layout, content)
            texts.append(f"{len(elements)} of {count} {part} differ{first}")
        elif _is_left_out(pool, part, layout):
            texts.append(f"it has no {part}")
    return "; ".join(texts)


def _differing(pool: Pool, part: Part, layout: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Elements of a part that differ, in their order."""
    start = pool.starts[part]
    is_own = (layout >= start) & (layout < start + len(pool.parts[part]))
    positions = layout[is_own & (pool.bytes[layout] != content)] - start
    return np.unique(positions // _BYTES[part])


def _is_left_out(pool: Pool, part: Part, layout: np.ndarray) -> bool:
    """Whether a layout leaves out a vector that is not zero."""
    if part not in ("biases", "scales") or not np.any(pool.parts[part]):
        return False
    start = pool.starts[part]
    return not np.any((layout >= start) & (layout < start + len(pool.parts[part])))


def _first(
    layer: Layer,
    pool: Pool,
    part: Part,
    element: int,
    layout: np.ndarray,
    content: np.ndarray,
) -> str:
    """Where the first element that differs stands, and what it is in both files."""
    if part == "padding":
        return ""
    size = _BYTES[part]
    start = pool.starts[part] + size * element
    own = pool.bytes[start : start + size]
    order = [int(np.flatnonzero(layout == start + byte)[0]) for byte in range(size)]
    there = content[order]
    if part == "weights":
        values = [str(int(value) - layer.zero) for value in (there[0], own[0])]
        return f", first at {_where(layer, element)}: {values[0]}, not {values[1]}"
    numbers = [np.frombuffer(raw.tobytes(), _TYPES[part])[0] for raw in (there, own)]
    values = [f"{number:.7g}" if part == "scales" else str(number) for number in numbers]
    return f", first of output {element}: {values[0]}, not {values[1]}"


def _where(layer: Layer, element: int) -> str:
    """The place of a weight."""
    assert layer.parameters is not None
    shape = layer.parameters.weights.shape
    if len(shape) == 1:
        return f"element {element}"
    output, tap, *inputs = np.unravel_index(element, shape)
    if layer.operator == "FULLY_CONNECTED":
        return f"output {output}, input {tap * shape[2] + inputs[0]}"
    y, x = divmod(int(tap), layer.kernel[1])
    place = f"output {output}, y {y}, x {x}"
    return f"{place}, input {inputs[0]}" if inputs else place
