"""Says how the stored bytes of a layer differ from those that its plain file gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.vendor.constants import Layer
from compiler.vendor.parameters import Part, Pool

_BYTES: dict[Part, int] = {"weights": 1, "biases": 4, "scales": 4, "zero points": 4, "padding": 1}
_TYPES: dict[Part, str] = {"biases": "<i4", "scales": "<f4", "zero points": "<u4"}


@dataclass(frozen=True)
class Comparison:
    """A layer of a plain file beside `content`, bytes of a compiled file, taken to be stored by
    `layout`, positions in `pool`."""

    layer: Layer
    pool: Pool
    layout: np.ndarray
    content: np.ndarray

    @property
    def distance(self) -> tuple[float, int]:
        """Share of the weights that differ, or of the factors or summands of a layer without
        weights; how many bytes differ at all."""
        is_off = self._is_off
        off = int(np.count_nonzero(is_off))
        parts = self.pool.parts
        if len(parts["weights"]):
            is_weight = self.layout < len(parts["weights"])
            return float(np.mean(is_off[is_weight])), off
        main: Part = "biases" if len(parts["biases"]) else "scales"
        count = len(parts[main]) // _BYTES[main]
        return len(self._differing(main)) / count, off

    def describe(self) -> str:
        """What differs, part by part, with the first number of each."""
        needed = self._needed()
        texts = []
        for part, own in self.pool.parts.items():
            elements = self._differing(part)
            count = len(own) // _BYTES[part]
            if part == "padding" and len(elements):
                texts.append("what fills it up differs")
            elif len(elements):
                first = self._first(part, int(elements[0]))
                texts.append(f"{len(elements)} of {count} {part} differ, first {first}")
            elif part in needed and not np.any(self._is_of(part)):
                texts.append(f"it has no {part}")
        return "; ".join(texts)

    @property
    def _is_off(self) -> np.ndarray:
        is_off: np.ndarray = self.pool.bytes[self.layout] != self.content
        return is_off

    def _is_of(self, part: Part) -> np.ndarray:
        start = self.pool.starts[part]
        return (self.layout >= start) & (self.layout < start + len(self.pool.parts[part]))

    def _differing(self, part: Part) -> np.ndarray:
        """Elements of a part that differ, in their order."""
        positions = self.layout[self._is_of(part) & self._is_off]
        return np.unique((positions - self.pool.starts[part]) // _BYTES[part])

    def _needed(self) -> set[Part]:
        """The vectors that say something of the layer, and so are not left out."""
        parameters = self.pool.parameters
        needed: set[Part] = set()
        if np.any(parameters.biases):
            needed.add("biases")
        if parameters.per_channel and np.any(parameters.scales != parameters.scales[0]):
            needed.add("scales")
        return needed

    def _first(self, part: Part, element: int) -> str:
        """Where an element stands, and what it is in both files."""
        size = _BYTES[part]
        start = self.pool.starts[part] + size * element
        own = self.pool.bytes[start : start + size]
        order = [int(np.flatnonzero(self.layout == start + byte)[0]) for byte in range(size)]
        there = self.content[order]
        if part == "weights":
            zero = self.layer.zero
            place = _where(self.layer, element)
            return f"of {place}: {int(there[0]) - zero}, not {int(own[0]) - zero}"
        is_real = part == "scales"
        numbers = [np.frombuffer(raw.tobytes(), _TYPES[part])[0] for raw in (there, own)]
        values = [f"{number:.9g}" if is_real else str(number) for number in numbers]
        return f"of output {element}: {values[0]}, not {values[1]}"


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
