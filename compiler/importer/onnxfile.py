"""Reads an ONNX file without its weights, which stay where they are until somebody looks at them.

Weights inside a protobuf message are bytes at some place in the file, as those in external files
are. Messages are taken apart by protobuf's wire format (protobuf.dev/programming-guides/encoding)
no further than to find these places; the rest is left to protobuf itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from compiler.errors import ModelError

# Numbers of fields in onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
# Its types of fields.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

ByteRange = tuple[int, int]


def load(path: Path, smallest: int) -> onnx.ModelProto:
    """The model in a file; of the main graph's weights those of `smallest` bytes and more are
    external data, be it of the file itself. Raises DecodeError for what is no protobuf message."""
    model, own = onnx.ModelProto(), path.resolve().name
    with path.open("rb") as file:
        empty = not path.stat().st_size  # which cannot be mapped
        data = memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for graph in _apart(data, (0, len(data)), _GRAPH, model):
        for tensor in _apart(data, graph, _INITIALIZER, model.graph):
            _add_tensor(data, tensor, model.graph.initializer.add(), own, smallest)
    return model


def read_lazily(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    """A tensor whose file is mapped while somebody holds its array, and no longer. Reading it
    raises ModelError where the file has changed since."""
    shape, path = ir.Shape(list(tensor.shape)), Path(tensor.path)
    before = _state(path)

    def read() -> ir.ExternalTensor:
        if _state(path) != before:
            raise ModelError(f"{path}: changed while it was being read: start again")
        place = (tensor.path, tensor.offset, tensor.length)
        return ir.ExternalTensor(*place, tensor.dtype, shape=shape, name=str(tensor.name))

    return ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _add_tensor(
    data: memoryview, place: ByteRange, tensor: onnx.TensorProto, file: str, smallest: int
) -> None:
    for start, end in _apart(data, place, _RAW_DATA, tensor):
        if end - start < smallest:
            tensor.raw_data = bytes(data[start:end])
        else:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", file), ("offset", start), ("length", end - start)):
                tensor.external_data.add(key=key, value=str(value))


def _apart(
    data: memoryview, place: ByteRange, number: int, rest: onnx.ModelProto
) -> list[ByteRange]:
    """Where the fields of a number are in a message; the others are merged into `rest`."""
    found, others, last = [], [], place[0]
    for field, before, start, end in _fields(data, place):
        if field == number:
            found.append((start, end))
            others.append(data[last:before])
            last = end
    rest.MergeFromString(b"".join([*others, data[last : place[1]]]))
    return found


def _fields(data: memoryview, place: ByteRange) -> Iterator[tuple[int, int, int, int]]:
    """(number, where it begins, where its content begins, where it ends) of each field of a
    message."""
    at, stop = place
    while at < stop:
        begin = at
        tag, at = _varint(data, at, stop)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at, stop)
        elif kind == _VARINT:
            size = _varint(data, at, stop)[1] - at
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"a field of type {kind} at byte {begin}")
        if at + size > stop:
            raise DecodeError(f"byte {begin} begins a field that ends behind the end")
        yield (tag >> 3 if kind == _BYTES else 0), begin, at, at + size
        at += size


def _varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise DecodeError(f"a number at byte {at} has no end")
