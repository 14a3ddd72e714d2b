"""Reads the constants of a plain TFLite file that edgetpu_compiler stores as parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.device.tflite_file import op_name
from compiler.vendor.parameters import Kind, Parameters

_BYTES = (schema.TensorType.INT8, schema.TensorType.UINT8)
_RAISED = 128  # what makes a uint8 of an int8

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_UNKNOWN = "how {} is stored in compiled files is not known"
_IN_INSTRUCTIONS = "a single factor stands in the instructions, which are not read"


@dataclass(frozen=True)
class Graph:
    """The main subgraph of a TFLite file.

    operators: [(name, operator)] as in the file
    tensors, buffers: as in the file
    """

    operators: Sequence[tuple[str, Any]]
    tensors: Sequence[Any]
    buffers: Sequence[Any]

    @classmethod
    def of(cls, model: Any) -> Graph:
        graph = model.subgraphs[0]
        operators = [(op_name(model.operatorCodes[o.opcodeIndex]), o) for o in graph.operators]
        return cls(operators, graph.tensors, model.buffers)

    def inputs(self, operator: Any) -> list[Any]:
        """The tensors that an operator reads; None for an optional one that is absent."""
        return [self.tensors[index] if index >= 0 else None for index in operator.inputs]

    def outputs(self, operator: Any) -> list[Any]:
        return [self.tensors[index] for index in operator.outputs]

    def constant(self, tensor: Any) -> np.ndarray | None:
        """The bytes of a constant tensor, None for another."""
        data = None if tensor is None else self.buffers[tensor.buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)

    def before(self) -> list[int]:
        """For each operator, those that it depends on: bit i stands for operator i."""
        makers: dict[int, int] = {}
        found = []
        for index, (_, operator) in enumerate(self.operators):
            behind = 0
            for tensor in operator.inputs:
                behind |= makers.get(int(tensor), 0)
            found.append(behind)
            for tensor in operator.outputs:
                makers[int(tensor)] = behind | 1 << index
        return found

    def quantized_constants(self, operator: Any) -> list[Any]:
        """The tensors of int8 or uint8 that an operator reads as constants."""
        found = []
        for tensor in self.inputs(operator):
            if self.constant(tensor) is not None and tensor.type in _BYTES:
                found.append(tensor)
        return found


@dataclass(frozen=True)
class Layer:
    """An operator with quantized constants.

    index:      its place in the file
    name:       of its first output
    parameters: what the device stores of it; None where that is not known, for `reason`
    behind:     what it would store if the layer gave what a QUANTIZE makes of its output; None
                where no such operator is its only reader
    kernel:     height and width of its filters
    zero:       what the bytes of its weights are raised by
    """

    index: int
    operator: str
    name: str
    parameters: Parameters | None
    reason: str = ""
    behind: Parameters | None = None
    kernel: tuple[int, int] = (1, 1)
    zero: int = 0


def layers(graph: Graph) -> Iterator[Layer]:
    """The operators with quantized constants, in their order.

    Raises ValueError for one whose tensors do not fit each other.
    """
    for index, (name, operator) in enumerate(graph.operators):
        constants = graph.quantized_constants(operator)
        if not constants:
            continue
        output = text(graph.outputs(operator)[0].name)
        zero = _RAISED if constants[0].type == schema.TensorType.INT8 else 0
        parameters, reason, kernel = None, _UNKNOWN.format(name), (1, 1)
        x, *others = graph.inputs(operator)
        is_quantized = all(t.type in _BYTES for t in (x, *graph.outputs(operator)))
        behind = None
        if name in _LAYERS and is_quantized and graph.constant(others[0]) is not None:
            if not _is_grouped(name, x, others[0]):
                parameters = _layer(graph, name, operator)
                behind = _behind(graph, parameters, operator)
            if name != "FULLY_CONNECTED":
                kernel = int(others[0].shape[1]), int(others[0].shape[2])
        elif name in ("ADD", "SUB", "MUL") and is_quantized:
            parameters, reason = _elementwise(graph, name, operator)
        yield Layer(index, name, output, parameters, reason, behind, kernel, zero)


def text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _is_grouped(name: str, x: Any, filters: Any) -> bool:
    """Whether each output of a convolution reads some of the channels only, otherwise than one by
    one. No compiled file at hand has such layers, nor depthwise ones of a single channel and
    output."""
    channels = int(x.shape[-1])
    if name == "DEPTHWISE_CONV_2D":
        outputs = int(filters.shape[-1])
        return outputs == 1 or channels not in (1, outputs)
    return name == "CONV_2D" and channels != int(filters.shape[-1])


def _behind(graph: Graph, parameters: Parameters, operator: Any) -> Parameters | None:
    """The parameters of a layer that gives its output at the scale of a QUANTIZE behind it."""
    own = int(operator.outputs[0])
    readers = [(name, reader) for name, reader in graph.operators if own in reader.inputs]
    if len(readers) != 1 or readers[0][0] != "QUANTIZE":
        return None
    y = graph.outputs(readers[0][1])[0]
    if y.type not in _BYTES:
        return None
    x, filters, *_ = graph.inputs(operator)
    return replace(parameters, scales=_effective(x, filters, y, parameters.outputs))


def _effective(x: Any, filters: Any, y: Any, outputs: int) -> np.ndarray:
    """The scales [outputs] from products of input and weights to the output, rounded to float32 at
    each step as the compiler does."""
    scales = np.asarray(filters.quantization.scale, np.float32)
    return np.broadcast_to((_scale(x) * scales) * (np.float32(1) / _scale(y)), (outputs,))


def _layer(graph: Graph, name: str, operator: Any) -> Parameters:
    x, filters, *rest = graph.inputs(operator)
    y = graph.outputs(operator)[0]
    shape = tuple(int(size) for size in filters.shape)
    values = _raised(graph, filters).reshape(shape)
    is_depthwise = name == "DEPTHWISE_CONV_2D"
    outputs = shape[-1] if is_depthwise else shape[0]
    biases = np.zeros(outputs, np.int32)
    if rest and (data := graph.constant(rest[0])) is not None:
        biases = data.view("<i4")
    if len(biases) != outputs:
        raise ValueError(f"{name} {text(y.name)} has {len(biases)} biases of {outputs} outputs")
    zero_points = np.broadcast_to(_zero_points(filters), (outputs,))
    kind: Kind = "dense"
    weights: np.ndarray
    if not is_depthwise:
        weights = values.reshape(outputs, _taps(shape, x), -1)
    elif int(x.shape[-1]) == 1 and outputs > 1:
        # Several outputs of one channel are stored like those of a convolution.
        weights = np.moveaxis(values, -1, 0).reshape(outputs, -1, 1)
    else:
        kind = "depthwise"
        weights = np.moveaxis(values, -1, 0).reshape(outputs, -1)
    return Parameters(
        kind,
        weights,
        biases,
        _effective(x, filters, y, outputs),
        zero_points,
        len(filters.quantization.scale) > 1,
        4 if name == "CONV_2D" and outputs == 1 else 16,
    )


def _taps(shape: Sequence[int], x: Any) -> int:
    """Positions of the input that have weights of their own.

    A dense layer that reads an image [height, width, channels] has one tap for each pixel, unless
    its channels are a multiple of four, where that makes no difference.
    """
    if len(shape) == 4:
        return shape[1] * shape[2]
    if len(x.shape) != 4 or int(x.shape[-1]) % 4 == 0:
        return 1
    pixels = int(x.shape[1] * x.shape[2])
    return pixels if shape[1] == pixels * int(x.shape[-1]) else 1


def _elementwise(graph: Graph, name: str, operator: Any) -> tuple[Parameters | None, str]:
    """Constants of each channel or of each element; why they are not known."""
    x, constant = graph.inputs(operator)
    y = graph.outputs(operator)[0]
    if graph.constant(constant) is None:
        if name == "SUB":
            return None, _UNKNOWN.format("what SUB subtracts from")
        x, constant = constant, x
    if graph.constant(x) is not None or len(constant.quantization.scale) != 1:
        return None, _UNKNOWN.format(name)
    raised = _raised(graph, constant)
    channels = int(y.shape[-1])
    if len(raised) == 1 and name == "MUL":
        return None, _IN_INSTRUCTIONS
    if len(raised) > 1 and (len(raised) != channels or constant.shape[-1] != channels):
        if len(raised) == int(np.prod(y.shape)):
            return _of_elements(raised), ""
        return None, _UNKNOWN.format(f"{name} by a constant of some axes")
    values = raised.astype(np.float32) - _zero_points(constant)[0].astype(np.float32)
    real = _scale(constant) * values
    if name == "MUL":
        return _of_channels(scales=(_scale(x) * real) * (np.float32(1) / _scale(y))), ""
    steps = values * (_scale(constant) / _scale(x))
    summands = np.rint(-steps if name == "SUB" else steps).astype(np.int32)
    return _of_channels(biases=np.broadcast_to(summands, (channels,))), ""


def _of_channels(biases: np.ndarray | None = None, scales: np.ndarray | None = None) -> Parameters:
    none = np.empty(0)
    weights = np.empty(0, np.uint8)
    biases = none if biases is None else biases
    scales = none if scales is None else scales
    return Parameters("channels", weights, biases, scales, weights)


def _of_elements(values: np.ndarray) -> Parameters:
    none = np.empty(0)
    return Parameters("elements", values, none, none, np.empty(0, np.uint8))


def _raised(graph: Graph, tensor: Any) -> np.ndarray:
    """The values of a constant as uint8."""
    data = graph.constant(tensor)
    assert data is not None
    return data ^ np.uint8(_RAISED) if tensor.type == schema.TensorType.INT8 else data


def _scale(tensor: Any) -> np.float32:
    return np.float32(tensor.quantization.scale[0])


def _zero_points(tensor: Any) -> np.ndarray:
    raised = _RAISED if tensor.type == schema.TensorType.INT8 else 0
    return (np.asarray(tensor.quantization.zeroPoint, np.int64) + raised).astype(np.uint8)
