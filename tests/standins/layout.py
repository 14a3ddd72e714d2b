"""The parameters of a compiled file, laid out from the description of public pairs.

It is written apart from compiler/vendor/parameters.py, which it is to test: block by block, as
bytes, for layers of int8 weights only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_BUILTINS = schema.BuiltinOperator
_RUNTIME = 14


def blob(model: Any, operators: list[Any], once: bool = False) -> bytes:
    """The parameters of operators of the main graph, each layer from a multiple of 64 bytes on,
    those of equal ones `once`."""
    found = bytearray()
    known = set()
    for operator in operators:
        code = model.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        layer = stored(model, operator, builtin)
        if once and layer in known:
            continue
        known.add(layer)
        found += layer
        found += bytes(-len(found) % 64)
    return bytes(found)


def stored(model: Any, operator: Any, builtin: int) -> bytes:
    """The parameters of one operator; nothing of those that are not known to have any."""
    graph = model.subgraphs[0]
    if builtin in (_BUILTINS.MUL, _BUILTINS.ADD):
        return _channels(model, operator, builtin)
    if builtin not in (_BUILTINS.CONV_2D, _BUILTINS.DEPTHWISE_CONV_2D, _BUILTINS.FULLY_CONNECTED):
        return b""
    x, w, *rest = operator.inputs
    x, w = graph.tensors[x], graph.tensors[w]
    y = graph.tensors[operator.outputs[0]]
    raw = model.buffers[w.buffer].data
    if raw is None or len(raw) == 0:
        return b""
    weights = (np.asarray(raw, np.uint8).view(np.int8).astype(int) + 128).reshape(w.shape)
    is_depthwise = builtin == _BUILTINS.DEPTHWISE_CONV_2D
    biases = np.zeros(weights.shape[-1 if is_depthwise else 0], "<i4")
    if rest and rest[0] >= 0:
        raw = model.buffers[graph.tensors[rest[0]].buffer].data
        biases = np.asarray(raw, np.uint8).view("<i4")
    scales = np.asarray(w.quantization.scale, np.float32)
    factor = np.float32(1) / np.float32(y.quantization.scale[0])
    factors = (np.float32(x.quantization.scale[0]) * scales) * factor
    vectors = _vectors(factors, biases)
    if is_depthwise and x.shape[-1] > 1:
        return _depthwise(weights[0], vectors)
    if is_depthwise:
        weights = np.moveaxis(weights, -1, 0).transpose(0, 2, 3, 1)
    if builtin == _BUILTINS.FULLY_CONNECTED:
        weights = weights[:, None, None, :]
    narrowest = 4 if builtin == _BUILTINS.CONV_2D and len(weights) == 1 else 16
    return _dense(weights, vectors, narrowest)


def _channels(model: Any, operator: Any, builtin: int) -> bytes:
    """Factors or summands of each channel: four numbers in each 64 bytes."""
    tensors = [model.subgraphs[0].tensors[index] for index in operator.inputs]
    tensors.sort(key=lambda tensor: model.buffers[tensor.buffer].data is not None)
    x, constant = tensors
    y = model.subgraphs[0].tensors[operator.outputs[0]]
    raw = model.buffers[constant.buffer].data
    if raw is None or len(raw) != y.shape[-1]:
        return b""
    steps = np.asarray(raw, np.uint8).view(np.int8) - constant.quantization.zeroPoint[0]
    values = steps.astype(np.float32) * np.float32(constant.quantization.scale[0])
    if builtin == _BUILTINS.ADD:
        values = np.rint(values / np.float32(x.quantization.scale[0])).astype("<i4")
    else:
        factor = np.float32(1) / np.float32(y.quantization.scale[0])
        values = (values * np.float32(x.quantization.scale[0])) * factor
    found = b""
    for first in range(0, len(values), 4):
        found += values[first : first + 4].tobytes().ljust(64, b"\0")
    return found


def _vectors(factors: np.ndarray, biases: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """What stands in front of the weights, with its form."""
    found = []
    if len(factors) > 1 and len(set(factors.tolist())) > 1:
        found.append((factors, "<f4"))
    if biases.any() or _RUNTIME < 12:
        found.append((biases, "<i4"))
    if len(factors) > 1:
        found.append((np.full(len(biases), 128), "<u4"))
    return found


def _front(vectors: list[tuple[np.ndarray, str]], first: int, width: int) -> bytes:
    """The vectors of the outputs from `first` on."""
    found = b""
    for values, form in vectors:
        outputs = len(values)
        filled = -(-outputs // 4) * 4
        for output in range(first, first + width):
            if output < outputs:
                value = values[output]
            elif form == "<i4":
                value = 0
            elif output < filled:
                value = values[0] if form == "<f4" else values[-1]
            else:
                value = 1 if form == "<f4" and outputs > 64 else 0
            found += np.asarray(value, form).tobytes()
    return found


def _dense(weights: np.ndarray, vectors: list[tuple[np.ndarray, str]], narrowest: int) -> bytes:
    """Blocks of 64 outputs; in each tap after tap, and groups of four inputs in each."""
    outputs, height, width, inputs = weights.shape
    block = 64 if outputs > 64 else -(-outputs // narrowest) * narrowest
    found = b""
    for first in range(0, outputs, block):
        found += _front(vectors, first, block)
        for y in range(height):
            for x in range(width):
                for group in range(0, inputs, 4):
                    found += _group(weights[:, y, x, group : group + 4], first, block)
    return found


def _group(weights: np.ndarray, first: int, block: int) -> bytes:
    """Four inputs of the outputs of a block."""
    filled = -(-len(weights) // 4) * 4
    found = bytearray()
    for output in range(first, first + block):
        row = [128] * 4 if output < filled else [0] * 4
        if output < len(weights):
            row[: weights.shape[1]] = weights[output].tolist()
        found += bytes(row)
    return bytes(found)


def _depthwise(weights: np.ndarray, vectors: list[tuple[np.ndarray, str]]) -> bytes:
    """Four channels after four: a 4x4 matrix for each tap, with the weights on its diagonal."""
    height, width, channels = weights.shape
    found = b""
    for first in range(0, channels, 4):
        found += _front(vectors, first, 4)
        for y in range(height):
            for x in range(width):
                matrix = np.full((4, 4), 128)
                for lane in range(min(4, channels - first)):
                    matrix[lane, lane] = weights[y, x, first + lane]
                found += matrix.astype(np.uint8).tobytes()
    return found
