"""Reads an ONNX file without its weights, which stay where they are until somebody looks at them.

Weights inside a protobuf message are bytes at some place in the file, as those in external files
are. Messages are taken apart by protobuf's wire format (protobuf.dev/programming-guides/encoding)
no further than to find these places; the rest is left to protobuf itself.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
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

# Nodes, and bytes that they take in the file, of a model whose functions are all written out.
MOST_NODES, MOST_NODE_BYTES = 200_000, 1 << 30
MOST_DEPTH = 100
_LONGEST_NAME = 4096  # of a file, on Linux


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


def check(model: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError for external data that are not whole in regular files below the model's
    folder, and for functions that make too many nodes. Where data lie is then written down without
    detours and links."""
    _check_functions(model, path)
    folder, sizes = path.resolve().parent, dict[str, tuple[str, int]]()
    for graph_nodes, initializers in _graphs(model):
        for tensor in (*initializers, *_tensors(graph_nodes)):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                try:
                    _settle(tensor, folder, sizes)
                except ModelError as error:
                    raise ModelError(f"{path}: weights of '{tensor.name}' {error}") from error


# The nodes of a graph or a function, and its initializers.
_Body = tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]


def _graphs(model: onnx.ModelProto) -> Iterator[_Body]:
    bodies: list[_Body] = [(model.graph.node, model.graph.initializer)]
    bodies += [(function.node, ()) for function in model.functions]
    while bodies:
        body = bodies.pop()
        yield body
        for node in body[0]:
            bodies += [(graph.node, graph.initializer) for graph in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs


def _tensors(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _settle(tensor: onnx.TensorProto, folder: Path, sizes: dict[str, tuple[str, int]]) -> None:
    """Writes down where external data lie. `sizes` are the files that were looked at. Raises
    ModelError."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in sizes:
        sizes[location] = _find(location, folder)
    name, size = sizes[location]
    try:
        offset, length = (int(entries.get(key) or 0) for key in ("offset", "length"))
        wanted = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise ModelError(
            "have a type, an offset or a length that cannot be read: export again"
        ) from error
    if min([offset, length, *tensor.dims], default=0) < 0:
        raise ModelError(
            f"have negative sizes {list(tensor.dims)}, offset {offset} or length {length}: export again"
        )
    if size < offset + (length or -(-wanted // 8)):
        raise ModelError(
            f"end behind the end of '{location}', which is shorter than the model says: copy it again"
        )
    del tensor.external_data[:]
    for key, value in (
        ("location", name),
        ("offset", offset),
        *((("length", length),) if "length" in entries else ()),
    ):
        tensor.external_data.add(key=key, value=str(value))


def _find(location: str, folder: Path) -> tuple[str, int]:
    """(the path of a file below the model's folder, its size). Raises ModelError."""
    shown = location if len(location) < 100 else location[:97] + "..."
    if "\0" in location or not 0 < len(location) < _LONGEST_NAME:
        raise ModelError(f"are in {shown!r}, which is no name of a file: export again")
    try:
        place = (folder / location).resolve()
        outside, there = not place.is_relative_to(folder), place.is_file()
        size = place.stat().st_size if there and not outside else 0
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"are in {shown!r}, which cannot be read: put it beside the model"
        ) from error
    if outside:
        raise ModelError(f"lie outside the model's folder ({shown!r}): move them beside it")
    if not there:
        raise ModelError(f"are in {shown!r}, which does not exist: put it beside the model")
    return place.relative_to(folder).as_posix(), size


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Counts the nodes that functions make before anybody makes them."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if not functions:
        return
    # Of a function: its nodes and their bytes with all that it calls written out; None while that
    # is counted.
    known: dict[tuple[str, str, str], tuple[int, int] | None] = {}

    def expanded(nodes: Sequence[onnx.NodeProto], depth: int) -> tuple[int, int]:
        if depth > MOST_DEPTH:
            raise ModelError(f"{path}: functions and subgraphs are more than {MOST_DEPTH} deep")
        count = size = 0
        for node in nodes:
            more = called((node.domain, node.op_type, node.overload), depth) or (1, node.ByteSize())
            inner = [expanded(graph.node, depth + 1) for graph in _subgraphs(node)]
            count += more[0] + sum(number for number, _ in inner)
            size += more[1]
        return count, size

    def called(key: tuple[str, str, str], depth: int) -> tuple[int, int] | None:
        if key not in functions:
            return None
        if key in known and known[key] is None:
            raise ModelError(
                f"{path}: function '{key[1]}' calls itself: export the model without functions"
            )
        if key not in known:
            known[key] = None
            known[key] = expanded(functions[key].node, depth + 1)
        return known[key]

    count, size = expanded(model.graph.node, 0)
    if count > MOST_NODES or size > MOST_NODE_BYTES:
        raise ModelError(
            f"{path}: its functions written out are {count} nodes of {size >> 20} MiB; "
            f"{MOST_NODES} of {MOST_NODE_BYTES >> 20} MiB are the most"
        )


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
