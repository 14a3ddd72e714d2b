"""Writes one int8 TFLite model. How an operator is written stands with the operator; this file is
the pen.

Operator versions are the lowest legal ones: edgetpu_compiler 16 was built on TensorFlow 2.5 and
refuses newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from compiler.graph import array_of, fresh_name, grid_of
from compiler.ops import BUILTINS, lookup, operator_of
from compiler.ops.writer import Writer
from compiler.quant import Quant, from_range
from compiler.quantize import weights

_TYPES = {np.dtype(np.int8): schema.TensorType.INT8, np.dtype(np.int32): schema.TensorType.INT32}

# Room in a file for everything but constants; the builder grows it where it is too small.
_TABLE_BYTES = 1 << 16


def write(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    quants: Mapping[str, Quant],
    means: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The TFLite file of a segment. Every activation of its nodes has an entry in `quants`.

    Biases are corrected for rounded weights where `means` has the means of a layer's input [C].
    """
    writer = TFLiteWriter(quants, means)
    for value in inputs:
        writer.tensor(value)
    for node in nodes:
        operator = lookup(node)
        assert operator is not None and operator.emit is not None
        operator.emit(node, writer)
    return writer.finish(inputs, outputs)


class TFLiteWriter(Writer):
    """Collects the tensors, buffers and operators of one subgraph of a flatbuffer.

    `quants` has the scale of every activation by name, `means` the mean of each channel of some.
    """

    def __init__(
        self, quants: Mapping[str, Quant], means: Mapping[str, np.ndarray] | None = None
    ) -> None:
        super().__init__()
        self._quants = quants
        self._means = means or {}
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._names: set[str] = set()

    def quant(self, value: ir.Value | None) -> Quant:
        assert value is not None
        return self._quants[str(value.name)]

    def quantized_constant(self, name: str, array: np.ndarray, quant: Quant | None = None) -> int:
        quant = quant or from_range(float(array.min()), float(array.max()))
        return self._add(name, array.shape, quant.quantize(array), quant)

    def filters(self, node: ir.Node, order: Sequence[int]) -> tuple[int, int]:
        """(weights, bias) of a node of x, weights and bias. `order` puts ONNX's axes into TFLite's
        order."""
        x, weight, bias = node.inputs
        assert weight is not None and bias is not None
        input_scale = self.quant(x).scale
        output_scale = self.quant(node.outputs[0]).scale
        means = None
        # The taps of a transposed convolution take turns: their mean result is not that of one
        # position.
        if x is not None and operator_of(node).linear != "transposed":
            means = self._means.get(str(x.name))
        around = weights.Surroundings(
            str(weight.name), input_scale, output_scale, grid_of(weight), means
        )
        quantized, scales, biases = weights.quantize(array_of(weight), array_of(bias), around)
        data = np.ascontiguousarray(quantized.transpose(order))
        axis = list(order).index(0)
        filters = self._add(str(weight.name), data.shape, data, None, (scales, axis))
        bias_scales = (scales.astype(np.float64) * input_scale).astype(np.float32)
        return filters, self._add(str(bias.name), biases.shape, biases, None, (bias_scales, 0))

    def clamps(self, x: ir.Value, y: ir.Value, limits: tuple[float, float]) -> bool:
        """Whether x and y share a scale whose int8 range lies within `limits`, so that int8 clamps
        by itself."""
        quant = self.quant(x)
        if quant != self.quant(y):
            return False
        low = (-128 - quant.zero_point) * quant.scale
        high = (127 - quant.zero_point) * quant.scale
        # Limits that lie between two steps clamp to the same one.
        slack = quant.scale / 2
        return low >= limits[0] - slack and high <= limits[1] + slack

    def add(
        self,
        name: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, object] | None = None,
    ) -> None:
        """One operator. `options` are the fields of its options table, None where it has none."""
        builtin = getattr(schema.BuiltinOperator, name)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault((builtin, version), len(self._codes))
        operator.inputs = np.asarray(inputs, np.int32)
        operator.outputs = np.asarray(outputs, np.int32)
        if options is not None:
            table = BUILTINS[name].options_table
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(schema, f"{table}T")()
            for field, value in options.items():
                if not hasattr(operator.builtinOptions, field):
                    raise AttributeError(f"{table} has no field {field}")
                setattr(operator.builtinOptions, field, value)
        self._operators.append(operator)

    def finish(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> bytes:
        """The file, with the model's inputs and outputs in this order."""
        for value in outputs:
            # An activation that is fused into an operator has the name of that operator's result
            # until here; chains of files find tensors by name.
            self._tensors[self._indices[value]].name = str(value.name)
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors = self._tensors
        graph.operators = self._operators
        graph.inputs = np.asarray([self._indices[value] for value in inputs], np.int32)
        graph.outputs = np.asarray([self._indices[value] for value in outputs], np.int32)
        model = schema.ModelT()
        model.version = 3
        model.description = "int8 segment for the Coral Edge TPU"
        model.operatorCodes = [_code(builtin, version) for builtin, version in self._codes]
        model.subgraphs = [graph]
        model.buffers = self._buffers
        # Room for the constants from the start: the builder would copy all as it grows.
        constants = sum(len(buffer.data) for buffer in self._buffers if buffer.data is not None)
        builder = flatbuffers.Builder(constants + _TABLE_BYTES)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _add(
        self,
        name: str,
        shape: Sequence[int],
        data: np.ndarray | None,
        quant: Quant | None,
        channels: tuple[np.ndarray, int] | None = None,
    ) -> int:
        """A tensor, constant where it has `data`, of one scale or of (scales, axis) of its
        channels; returns its index."""
        tensor = schema.TensorT()
        tensor.name = fresh_name(name, self._names, "#")
        tensor.shape = np.asarray(shape, np.int32)
        if data is None:
            # Buffer 0 is empty, by which TFLite knows activations.
            tensor.type = schema.TensorType.INT8
            tensor.buffer = 0
        else:
            tensor.type = _TYPES[data.dtype]
            tensor.buffer = self._buffer(data)
        if quant is not None:
            scales = np.asarray([quant.scale], np.float32)
            tensor.quantization = _quantization(scales, quant.zero_point, 0)
        elif channels is not None:
            scales, axis = channels
            tensor.quantization = _quantization(scales, 0, axis)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _buffer(self, data: np.ndarray) -> int:
        """The index of a new buffer with the bytes of an array."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1


def _quantization(scales: np.ndarray, zero_point: int, axis: int) -> Any:
    """The scales of a tensor's channels along `axis`, or its only one, and their zero point."""
    found = schema.QuantizationParametersT()
    found.scale = scales
    found.zeroPoint = np.full(len(scales), zero_point, np.int64)
    found.quantizedDimension = axis
    return found


def _code(builtin: int, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    # Of one byte; readers take the larger of the two.
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = version
    return code
