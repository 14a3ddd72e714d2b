"""Reads a file into an `onnx_ir.Model` as it stands: weights mapped, nothing else changed."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError

from compiler.errors import ModelError, first_line, no_file
from compiler.graph import shape_of
from compiler.importer import foreign, onnxfile, untrusted
from compiler.importer.checking import check_maps

# The oldest opset that onnxruntime runs. ONNX's converter raises some older models to it.
OLDEST_OPSET = 7
# Weights of fewer bytes are read at once: passes look at them often, as shapes and axes.
SMALL = 4096


def read_file(path: Path) -> ir.Model:
    """The model in a file, its external weights checked and mapped.

    Raises ModelError for a file that is missing, damaged, unsafe, or of an opset that is not
    supported.
    """
    proto = _read_proto(path)
    untrusted.check(proto, path)
    check_maps(proto.graph)
    proto = _supported_opset(proto, path)
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{path}: initializer '{name}' is sparse; store it densely")
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX model: {first_line(error)}") from error
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    _detach_weights(model.graph)
    return model


def _read_proto(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path}: {no_file(path)}; give the path of an .onnx file")
    try:
        proto = onnxfile.load(path, SMALL)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        why = foreign.kind(path)
        if why is not None:
            raise ModelError(f"{path}: {why}") from error
        why = first_line(error)
        raise ModelError(f"{path}: not an ONNX file, or a truncated one ({why})") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    # Protobuf reads many a file of another kind as a message without any of these.
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        why = foreign.kind(path)
        if why is not None:
            raise ModelError(f"{path}: {why}")
        raise ModelError(f"{path}: not an ONNX model: it has no graph with outputs and an opset")
    return proto


def _detach_weights(graph: ir.Graph) -> None:
    """Take weights out of protobuf and external tensors, which copy a tensor at each reading."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            if tensor.length not in (None, tensor.nbytes):
                raise _wrong_size(value)
            if tensor.nbytes >= SMALL:
                value.const_value = onnxfile.read_lazily(tensor)
                continue
        if isinstance(tensor, ir.ExternalTensor | ir.TensorProtoTensor):
            try:
                array = tensor.numpy()
                value.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)
            except ValueError as error:
                raise _wrong_size(value) from error


def _wrong_size(value: ir.Value) -> ModelError:
    return ModelError(
        f"weights '{value.name}' {list(shape_of(value))} hold another number of values: "
        "export again"
    )


def _supported_opset(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model in an opset that onnxruntime takes.

    Raises ModelError for one that is too new, or older than ONNX's converter can raise.
    """
    newest = onnx.defs.onnx_opset_version()
    opset = newest
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":  # the long name of the standard domain
            entry.domain = ""
        if entry.domain == "":
            opset = entry.version
    if OLDEST_OPSET <= opset <= newest:
        return proto
    why = ""
    if opset < OLDEST_OPSET:
        _check_slopes(proto.graph, path, opset)
        try:
            with_weights = onnx.load(path)  # the converter wants them in the message
            return onnx.version_converter.convert_version(with_weights, OLDEST_OPSET)
        except Exception as error:
            why = f" ({first_line(error)})"
    supported = (
        f"opsets {OLDEST_OPSET} to {newest} are supported, and older ones that can be raised"
    )
    raise ModelError(f"{path}: opset {opset}; {supported}{why}: export it again")


def _check_slopes(graph: onnx.GraphProto, path: Path, opset: int) -> None:
    """Raises ModelError for PRelu with one slope per channel.

    Before opset 7 such slopes belonged to the second axis. Since then they broadcast along the
    last one, as in numpy, and ONNX's converter does not reshape them.
    """
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "PRelu" and sizes.get(node.input[1], 0) != 1:
            name = node.name or node.output[0]
            raise ModelError(
                f"{path}: PRelu '{name}' of opset {opset} has slopes per channel: "
                "export in opset 7 or newer"
            )
