"""The TFLite operators that would be written for a node, without its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import HOST_REASON, activations_of, is_constant, is_static, shape_of
from compiler.ops import BUILTINS, lookup
from compiler.ops.rules import OpInfo, TensorInfo
from compiler.ops.writer import Writer
from compiler.quant import Quant
from compiler.targets import Layer


def drafted(node: ir.Node) -> list[OpInfo]:
    """The TFLite operators that would be written for a node; none for one that stays in ONNX."""
    operator = lookup(node)
    if operator is None or operator.emit is None or HOST_REASON in node.metadata_props:
        return []
    activations = activations_of(node)
    if not activations or not all(map(is_static, [*activations, *node.outputs])):
        return []
    draft = Draft()
    operator.emit(node, draft)
    return draft.ops


def layers_of(node: ir.Node) -> list[Layer]:
    """The parameters that a node stores on the Edge TPU."""
    found = []
    for op in drafted(node):
        builtin = BUILTINS.get(op.builtin)
        layer = builtin.layer(op) if builtin is not None else None
        if layer is not None:
            found.append(layer)
    return found


class Draft(Writer):
    """Writes operators as `OpInfo`s, which keep shapes and options."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[OpInfo] = []
        self._infos: list[TensorInfo] = []

    def quant(self, value: ir.Value | None) -> Quant:
        return Quant(1.0, 0)

    def clamps(self, x: ir.Value, y: ir.Value, limits: tuple[float, float]) -> bool:
        return False

    def filters(self, node: ir.Node, order: Sequence[int]) -> tuple[int, int]:
        _, weight, bias = node.inputs
        assert weight is not None and bias is not None
        weight_shape = shape_of(weight)
        written = tuple(weight_shape[axis] for axis in order)
        # Each output channel has its own scale.
        scales = weight_shape[0]
        filters = TensorInfo(
            str(weight.name), written, "int8", is_constant(weight), zeros=False, scales=scales
        )
        biases = TensorInfo(
            str(bias.name), shape_of(bias), "int32", is_constant(bias), zeros=False, scales=scales
        )
        return self._keep(filters), self._keep(biases)

    def quantized_constant(self, name: str, array: np.ndarray, quant: Quant | None = None) -> int:
        zeros = not np.any(array)
        return self._keep(TensorInfo(name, array.shape, "int8", constant=True, zeros=zeros))

    def add(
        self,
        name: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, object] | None = None,
    ) -> None:
        read = tuple(self._infos[index] for index in inputs)
        made = tuple(self._infos[index] for index in outputs)
        self.ops.append(OpInfo(name, version, read, made, options or {}))

    def _add(
        self,
        name: str,
        shape: Sequence[int],
        data: np.ndarray | None,
        quant: Quant | None,
        channels: tuple[np.ndarray, int] | None = None,
    ) -> int:
        if data is None:
            return self._keep(TensorInfo(name, tuple(shape), "int8"))
        values = tuple(int(value) for value in data.reshape(-1))
        info = TensorInfo(name, tuple(shape), str(data.dtype), constant=True, values=values)
        return self._keep(info)

    def _add_uint8(self, name: str, shape: Sequence[int], quant: Quant) -> int:
        return self._keep(TensorInfo(name, tuple(shape), "uint8"))

    def _keep(self, info: TensorInfo) -> int:
        self._infos.append(info)
        return len(self._infos) - 1
