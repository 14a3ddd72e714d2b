"""Does the Edge TPU take this? Asked of nodes of the lowered IR, and of operators in a TFLite file.

A node is judged by the TFLite operators that would be written for it: it is written to a `Draft`,
which keeps shapes and options but no weights, and each operator is held against the rules of its
family (compiler/ops/rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from compiler.errors import ModelError, first_line
from compiler.graph import (
    HOST_REASON,
    LOWERING_REASON,
    activations_of,
    is_constant,
    is_static,
    operator_name,
    shape_of,
)
from compiler.ops import BUILTINS, lookup
from compiler.ops.rules import OpInfo, TensorInfo, judge
from compiler.ops.writer import Writer
from compiler.quant import Quant
from compiler.targets import Layer, Target

LARGEST = 2 << 30  # bytes of a TFLite file, whose offsets have 32 bits with a sign


def refusal(node: ir.Node, target: Target) -> str | None:
    """Why the Edge TPU does not run this node as it stands; None where it does."""
    if HOST_REASON in node.metadata_props:
        return node.metadata_props[HOST_REASON]
    operator = lookup(node)
    if operator is None or operator.emit is None:
        return node.metadata_props.get(
            LOWERING_REASON, f"the Edge TPU has no {operator_name(node)}"
        )
    if not activations_of(node):
        return "it reads constants only"
    for value in [*activations_of(node), *node.outputs]:
        if not is_static(value):
            return f"the shape of '{value.name}' depends on data; the Edge TPU needs static shapes"
        if 0 in shape_of(value):
            return f"tensor '{value.name}' has no elements"
        if value.dtype != ir.DataType.FLOAT:
            name = value.dtype.name.lower() if value.dtype else "unknown"
            return f"tensor '{value.name}' is {name}; the Edge TPU computes on int8 made from float"
    reason = operator.refuse(node, target) if operator.refuse is not None else None
    if reason is not None:
        return reason
    return next((r for op in drafted(node) if (r := judge(op, BUILTINS, target)) is not None), None)


def drafted(node: ir.Node) -> list[OpInfo]:
    """The TFLite operators that would be written for a node; none for one that stays in ONNX."""
    operator = lookup(node)
    if (
        operator is None
        or operator.emit is None
        or HOST_REASON in node.metadata_props
        or not activations_of(node)
    ):
        return []
    if not all(is_static(v) for v in [*activations_of(node), *node.outputs]):
        return []
    draft = Draft()
    operator.emit(node, draft)
    return draft.ops


def layers_of(node: ir.Node) -> list[Layer]:
    """The parameters that a node stores on the Edge TPU."""
    found = [BUILTINS[op.builtin].layer(op) for op in drafted(node) if op.builtin in BUILTINS]
    return [layer for layer in found if layer is not None]


class Draft(Writer):
    """Writes operators as `OpInfo`s."""

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
        shape = tuple(shape_of(weight)[i] for i in order)
        parameters = [(weight, shape, "int8"), (bias, shape_of(bias), "int32")]
        outputs = shape_of(weight)[0]
        first, second = (
            TensorInfo(str(v.name), s, d, is_constant(v), False, outputs) for v, s, d in parameters
        )
        return self._keep(first), self._keep(second)

    def quantized_constant(self, name: str, array: np.ndarray, quant: Quant | None = None) -> int:
        return self._info(name, array.shape, "int8", True, not np.any(array))

    def add(
        self,
        name: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, object] | None = None,
    ) -> None:
        ins, outs = (tuple(self._infos[i] for i in indices) for indices in (inputs, outputs))
        self.ops.append(OpInfo(name, version, ins, outs, options or {}))

    def _add(
        self,
        name: str,
        shape: Sequence[int],
        data: np.ndarray | None,
        quant: Quant | None,
        channels: tuple[np.ndarray, int] | None = None,
    ) -> int:
        if data is None:
            return self._info(name, shape, "int8")
        return self._info(name, shape, str(data.dtype), True)

    def _info(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        constant: bool = False,
        zeros: bool = False,
    ) -> int:
        return self._keep(TensorInfo(name, tuple(shape), dtype, constant, zeros))

    def _keep(self, info: TensorInfo) -> int:
        self._infos.append(info)
        return len(self._infos) - 1


def check(path: Path, target: Target) -> list[dict[str, str | None]]:
    """Each operator of a TFLite file, in order, with the `reason` why it would stay on the CPU, or
    None.

    The compiler delegates one part only: what follows an operator that it does not take stays on
    the CPU too, unless nothing before was delegated. Raises ModelError for what is not a TFLite
    model.
    """
    ops = read(path)
    after: dict[str, bool] = {}
    rows: list[dict[str, str | None]] = []
    for op in ops:
        reason = judge(op, BUILTINS, target)
        names = [t.name for t in op.inputs if t is not None and not t.constant]
        behind = any(after.get(name) is False for name in names)
        if reason is None and behind:
            reason = "it follows an operator that is not mapped; only the first part is"
        delegated = any(after.get(name) for name in names)
        state = True if reason is None else False if delegated or behind else None
        after.update({t.name: state for t in op.outputs})  # type: ignore[misc]
        rows.append(
            {
                "operator": op.builtin,
                "output": op.outputs[0].name if op.outputs else "",
                "reason": reason,
            }
        )
    return rows


def read(path: Path) -> list[OpInfo]:
    """The operators of the main subgraph of a TFLite file."""
    with tflite_file(path, "a TFLite model"):
        data = file_bytes(path)
        if data[4:8] != b"TFL3":
            raise ValueError("it has no TFL3 mark")
        model = unpacked(data)
        graph = model.subgraphs[0]
        infos = [_tensor(t, index, model.buffers) for index, t in enumerate(graph.tensors)]
        return [_op(o, model.operatorCodes, infos) for o in graph.operators]


def file_bytes(path: Path) -> bytes:
    """The content of a TFLite file. Raises ModelError for what is no regular file, or larger than
    the format allows."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path}: larger than {LARGEST >> 30} GiB, which no TFLite file is")
    return path.read_bytes()


def unpacked(data: bytes) -> Any:
    """The model of a TFLite file as the schema's objects."""
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


_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
_DTYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if not k.startswith("_")}


def _tensor(tensor: Any, index: int, buffers: Sequence[Any]) -> TensorInfo:
    data = buffers[tensor.buffer].data if tensor.buffer < len(buffers) else None
    held = data is not None and len(data) > 0
    # A batch that the signature leaves open compiles as the 1 that the shape says (LibrEdgeTPU
    # dense_256).
    dims = tuple(int(d) for d in tensor.shape) if tensor.shape is not None else ()
    zero_point = tensor.quantization.zeroPoint if tensor.quantization is not None else None
    zero = int(zero_point[0]) if zero_point is not None and len(zero_point) else 0
    zeros = held and bool(np.all(np.asarray(data, np.uint8) == zero % 256))
    name = (
        tensor.name.decode("utf-8", "replace")
        if isinstance(tensor.name, bytes)
        else str(tensor.name)
    )
    scales = tensor.quantization.scale if tensor.quantization is not None else None
    count = len(scales) if scales is not None else 1
    return TensorInfo(f"{name}#{index}", dims, _DTYPES[tensor.type], held, zeros, count)


def op_name(code: Any) -> str:
    """TFLite's name of an operator code, CUSTOM:NAME for a custom one."""
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _NAMES.get(builtin, str(builtin))
    custom = name == "CUSTOM" and code.customCode is not None
    return f"CUSTOM:{code.customCode.decode('utf-8', 'replace')}" if custom else name


def _op(operator: Any, codes: Sequence[Any], infos: Sequence[TensorInfo]) -> OpInfo:
    code = codes[operator.opcodeIndex]
    inputs = tuple(infos[i] if i >= 0 else None for i in operator.inputs)
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    return OpInfo(
        op_name(code), code.version, inputs, tuple(infos[i] for i in operator.outputs), options
    )
