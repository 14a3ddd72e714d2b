"""Reads TFLite files: their operators with shapes, types and options, but no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.errors import ModelError, first_line, no_file
from compiler.ops.rules import OpInfo, TensorInfo

MOST_INTEGERS = 16  # of a constant whose values are read: larger ones are biases
LARGEST = 2 << 30  # bytes of a TFLite file, whose offsets have 32 bits with a sign

_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
_DTYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if not k.startswith("_")}


def read_operators(path: Path) -> list[OpInfo]:
    """The operators of the main subgraph of a TFLite file. Raises ModelError for other files."""
    with tflite_file(path, "a TFLite model"):
        if path.suffix == ".onnx":
            raise ModelError(
                f"{path}: an ONNX file: `inspect` says which of its operators an Edge TPU takes"
            )
        model = unpacked(file_bytes(path))
        graph = model.subgraphs[0]
        infos = [_tensor(t, index, model.buffers) for index, t in enumerate(graph.tensors)]
        return [_operator(o, model.operatorCodes, infos) for o in graph.operators]


def file_bytes(path: Path) -> bytes:
    """The content of a TFLite file. Raises ModelError for what is no regular file, or larger than
    the format allows."""
    if not path.is_file():
        raise ModelError(f"{path}: {no_file(path)}")
    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path}: larger than {LARGEST >> 30} GiB, which no TFLite file is")
    return path.read_bytes()


def unpacked(data: bytes) -> Any:
    """The model of a TFLite file as the schema's objects. Raises ValueError for other files."""
    if data[4:8] != b"TFL3":
        raise ValueError("it has no TFL3 mark")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


@contextmanager
def tflite_file(path: Path, kind: str) -> Iterator[None]:
    """Whatever fails while the file is read means that it cannot be, or is not of that kind. Raises
    ModelError."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        raise ModelError(f"{path}: not {kind}: {first_line(error)}") from error


def op_name(code: Any) -> str:
    """TFLite's name of an operator code, CUSTOM:NAME for a custom one."""
    # Files from before the 127th operator have the code in the older field only.
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = str(_NAMES.get(builtin, builtin))
    if name == "CUSTOM" and code.customCode is not None:
        return f"CUSTOM:{code.customCode.decode('utf-8', 'replace')}"
    return name


def _tensor(tensor: Any, index: int, buffers: Sequence[Any]) -> TensorInfo:
    data = buffers[tensor.buffer].data if tensor.buffer < len(buffers) else None
    is_held = data is not None and len(data) > 0
    # A batch that the signature leaves open compiles as the 1 that the shape says (LibrEdgeTPU
    # dense_256).
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    zero_point = 0
    scales = 1
    is_equal = False
    if tensor.quantization is not None:
        if tensor.quantization.zeroPoint is not None and len(tensor.quantization.zeroPoint):
            zero_point = int(tensor.quantization.zeroPoint[0])
        if tensor.quantization.scale is not None:
            scales = len(tensor.quantization.scale)
            is_equal = len(set(tensor.quantization.scale)) == 1
    zeros = is_held and bool(np.all(np.asarray(data, np.uint8) == zero_point % 256))
    # Names need not be unique in a file, here they are.
    name = f"{_text(tensor.name)}#{index}"
    dtype = _DTYPES[tensor.type]
    values = _integers(data) if is_held and dtype == "int32" else None
    is_variable = bool(tensor.isVariable)
    return TensorInfo(
        name, shape, dtype, is_held, zeros, scales, values, is_variable, equal_scales=is_equal
    )


def _integers(data: Any) -> tuple[int, ...] | None:
    """The values of a small int32 constant, such as axes or a permutation; None of a larger one."""
    raw = np.asarray(data, np.uint8)
    if len(raw) > MOST_INTEGERS * 4 or len(raw) % 4:
        return None
    return tuple(int(value) for value in raw.view("<i4"))


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _operator(operator: Any, codes: Sequence[Any], infos: Sequence[TensorInfo]) -> OpInfo:
    code = codes[operator.opcodeIndex]
    # An index of -1 is an optional input that is absent.
    inputs = tuple(infos[index] if index >= 0 else None for index in operator.inputs)
    outputs = tuple(infos[index] for index in operator.outputs)
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    return OpInfo(op_name(code), code.version, inputs, outputs, options)
