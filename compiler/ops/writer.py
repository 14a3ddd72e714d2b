"""The pen that operators are given to write themselves as TFLite.

compiler/emit/tflite.py writes a file with it, compiler/device/draft.py a draft without weights that
is held against the device's rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from compiler.graph import constant_of, is_constant, shape_of
from compiler.quant import Quant, from_range


class Writer(ABC):
    """Collects the tensors and operators of one TFLite subgraph; a tensor is known by its index."""

    def __init__(self) -> None:
        self._indices: dict[ir.Value, int] = {}

    @abstractmethod
    def quant(self, value: ir.Value | None) -> Quant:
        """Scale and zero point of an activation."""

    @abstractmethod
    def clamps(self, x: ir.Value, y: ir.Value, limits: tuple[float, float]) -> bool:
        """Whether x and y share a scale whose int8 range lies within `limits`, so that int8 clamps
        by itself."""

    @abstractmethod
    def filters(self, node: ir.Node, order: Sequence[int]) -> tuple[int, int]:
        """(weights, bias) of a node of x, weights and bias. `order` puts ONNX's axes into TFLite's
        order."""

    @abstractmethod
    def quantized_constant(self, name: str, array: np.ndarray, quant: Quant | None = None) -> int:
        """A float array as int8, by the scale of its own range unless `quant` is given."""

    @abstractmethod
    def add(
        self,
        name: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, object] | None = None,
    ) -> None:
        """One operator. `options` are the fields of its options table, None where it has none."""

    @abstractmethod
    def _add(
        self,
        name: str,
        shape: Sequence[int],
        data: np.ndarray | None,
        quant: Quant | None,
        channels: tuple[np.ndarray, int] | None = None,
    ) -> int:
        """A tensor: an activation where `data` is None. `channels` are scales per channel and their
        axis."""

    @abstractmethod
    def _add_uint8(self, name: str, shape: Sequence[int], quant: Quant) -> int:
        """An activation of uint8, as pixels come in."""

    def tensor(self, value: ir.Value | None) -> int:
        """Index of an activation, which is added where it is not there yet."""
        assert value is not None and not is_constant(value), value
        index = self._indices.get(value)
        if index is None:
            index = self._add(str(value.name), shape_of(value), None, self.quant(value))
            self._indices[value] = index
        return index

    def alias(self, value: ir.Value, same: ir.Value | None) -> None:
        """`value` is the very tensor that `same` is."""
        self._indices[value] = self.tensor(same)

    def pixels(self, x: ir.Value, y: ir.Value) -> None:
        """`x`, an input of 8 bits, as the activation `y`: int8 is that very tensor, uint8 is
        shifted by 128."""
        quant = self.quant(y)
        if x.dtype == ir.DataType.INT8:
            self._indices[x] = self._add(str(x.name), shape_of(x), None, quant)
            self._indices[y] = self._indices[x]
            return
        shifted = Quant(quant.scale, quant.zero_point + 128)
        index = self._add_uint8(str(x.name), shape_of(x), shifted)
        self._indices[x] = index
        self.add("QUANTIZE", 1, [index], [self.tensor(y)], {})

    def scratch(self, like: ir.Value) -> int:
        """A tensor between two operators that write one node."""
        return self._add(f"{like.name}/scratch", shape_of(like), None, self.quant(like))

    def between(self, like: ir.Value, low: float, high: float) -> int:
        """As `scratch`, with the range [low, high], which holds zero."""
        quant = from_range(low, high)
        return self._add(f"{like.name}/between", shape_of(like), None, quant)

    def operand(self, value: ir.Value, like: ir.Value | None = None) -> int:
        """An activation, or a constant operand as int8: of its own scale, or that of `like`."""
        array = constant_of(value)
        if array is None:
            return self.tensor(value)
        quant = self.quant(like) if like is not None else None
        return self.quantized_constant(str(value.name), array, quant)

    def number(self, number: float, like: ir.Value) -> int:
        """A scalar of the scale of `like`."""
        return self.quantized_constant("number", np.asarray(number, np.float32), self.quant(like))

    def ints(self, values: Sequence[int]) -> int:
        """A constant row of int32, such as a shape or axes."""
        return self.int_table(np.asarray(values, np.int32))

    def scalar_int(self, value: int) -> int:
        """A constant int32 without dimensions."""
        return self.int_table(np.asarray(value, np.int32))

    def int_table(self, array: np.ndarray) -> int:
        """A constant of int32."""
        return self._add("const", array.shape, array, None)

    def padding(self, pads: Sequence[int]) -> int:
        """TFLite's padding: the passes leave zero pads or SAME ones only."""
        return int(schema.Padding.SAME if any(pads) else schema.Padding.VALID)
