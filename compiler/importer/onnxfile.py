"""Reads an ONNX file without its weights, which stay where they are until somebody looks at them.

Weights inside a protobuf message are bytes at some place in the file, as those in external files
are. Messages are taken apart by protobuf's wire format (protobuf.dev/programming-guides/encoding)
no further than to find these places; the rest is left to protobuf itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from compiler.errors import ModelError

# Numbers of fields in onnx.proto: of ModelProto, GraphProto and TensorProto.
_GRAPH = 7
_INITIALIZER = 5
_RAW_DATA = 9
# Protobuf's wire types. A field is preceded by its number * 8 + its wire type.
_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5

# Where a message or a field's content lies in the file: (first byte, the one behind the last).
ByteRange = tuple[int, int]


@dataclass(frozen=True)
class _Field:
    """A field of a message: `start` is where its number stands, `content` what follows."""

    number: int
    is_bytes: bool
    start: int
    content: ByteRange


def load(path: Path, smallest: int) -> onnx.ModelProto:
    """The model in a file, without the larger weights of its main graph.

    Weights of `smallest` bytes and more are external data, if need be of the file itself. Raises
    DecodeError for what is no protobuf message.
    """
    model = onnx.ModelProto()
    own_name = path.resolve().name
    data = _mapped(path)
    for graph in _split_off(data, (0, len(data)), _GRAPH, model):
        for tensor in _split_off(data, graph, _INITIALIZER, model.graph):
            _add_tensor(data, tensor, model.graph.initializer.add(), own_name, smallest)
    return model


def read_lazily(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    """A tensor whose file is mapped while somebody holds its array, and no longer.

    Reading it raises ModelError where the file has changed since this call.
    """
    shape = ir.Shape(list(tensor.shape))
    path = Path(tensor.path)
    stamp = _stamp(path)

    def read() -> ir.ExternalTensor:
        if _stamp(path) != stamp:
            raise ModelError(f"{path}: changed while it was being read: start again")
        place = (tensor.path, tensor.offset, tensor.length)
        return ir.ExternalTensor(*place, tensor.dtype, shape=shape, name=str(tensor.name))

    return ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return memoryview(b"")  # an empty file cannot be mapped
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _add_tensor(
    data: memoryview, place: ByteRange, tensor: onnx.TensorProto, file: str, smallest: int
) -> None:
    """Read a tensor; its raw data stay in `file` where they are not small."""
    for start, end in _split_off(data, place, _RAW_DATA, tensor):
        if end - start < smallest:
            tensor.raw_data = bytes(data[start:end])
            continue
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=file)
        tensor.external_data.add(key="offset", value=str(start))
        tensor.external_data.add(key="length", value=str(end - start))


def _split_off(data: memoryview, place: ByteRange, number: int, rest: Message) -> list[ByteRange]:
    """Where the fields of a number have their content; all other fields are merged into `rest`."""
    found = []
    others = []
    begin, end = place
    for field in _fields(data, place):
        if field.number == number and field.is_bytes:
            found.append(field.content)
            others.append(data[begin : field.start])
            begin = field.content[1]
    others.append(data[begin:end])
    rest.MergeFromString(b"".join(others))
    return found


def _fields(data: memoryview, place: ByteRange) -> Iterator[_Field]:
    """The fields of a message. Raises DecodeError for one that is cut off or of no wire type."""
    position, stop = place
    while position < stop:
        start = position
        tag, position = _varint(data, position, stop)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            size, position = _varint(data, position, stop)
        elif wire_type == _VARINT:
            size = _varint(data, position, stop)[1] - position
        elif wire_type == _FIXED64:
            size = 8
        elif wire_type == _FIXED32:
            size = 4
        else:
            raise DecodeError(f"a field of type {wire_type} at byte {start}")
        if position + size > stop:
            raise DecodeError(f"byte {start} begins a field that ends behind the end")
        yield _Field(number, wire_type == _BYTES, start, (position, position + size))
        position += size


def _varint(data: memoryview, position: int, stop: int) -> tuple[int, int]:
    """A number of seven bits per byte, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            break
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise DecodeError(f"a number at byte {position} has no end")
