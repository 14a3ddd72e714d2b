"""Checks what a stranger's file could harm the machine with: paths of external data, and functions
that call functions.

Both are checked on the protobuf message, before anything is opened or expanded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.errors import ModelError

# Nodes, and bytes that they take in the file, of a model whose functions are all inlined.
MOST_NODES = 200_000
MOST_NODE_BYTES = 1 << 30
# Functions that call functions, and subgraphs in subgraphs.
MOST_DEPTH = 100
# Characters of a path on Linux, and of a path in a message.
_LONGEST_PATH = 4096
_LONGEST_SHOWN = 100

# The nodes of a graph or a function, and its initializers.
_Body = tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]


def check(model: onnx.ModelProto, path: Path) -> None:
    """Check the external data and the functions of a model that was read from `path`.

    External data have to lie, whole, in regular files below the model's folder. Their location is
    then written down without detours and links. Raises ModelError.
    """
    _check_functions(model, path)
    folder = path.resolve().parent
    files: dict[str, tuple[str, int]] = {}
    for tensor in _all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        try:
            _settle(tensor, folder, files)
        except ModelError as error:
            raise ModelError(f"{path}: weights of '{tensor.name}' {error}") from error


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for nodes, initializers in _bodies(model):
        yield from initializers
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _bodies(model: onnx.ModelProto) -> Iterator[_Body]:
    waiting: list[_Body] = [(model.graph.node, model.graph.initializer)]
    waiting += [(function.node, ()) for function in model.functions]
    while waiting:
        body = waiting.pop()
        yield body
        nodes, _ = body
        for node in nodes:
            waiting += [(graph.node, graph.initializer) for graph in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _settle(tensor: onnx.TensorProto, folder: Path, files: dict[str, tuple[str, int]]) -> None:
    """Check and write down where the data of a tensor lie.

    `files` keeps (path, size) of the locations looked at so far. Raises ModelError.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in files:
        files[location] = _find(location, folder)
    name, file_size = files[location]
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or 0)
        bits = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise ModelError(
            "have a type, an offset or a length that cannot be read: export again"
        ) from error
    if min([offset, length, *tensor.dims]) < 0:
        raise ModelError(
            f"have negative sizes {list(tensor.dims)}, offset {offset} or length {length}: "
            "export again"
        )
    size = length or (bits + 7) // 8
    if file_size < offset + size:
        raise ModelError(
            f"end behind the end of '{location}', which is shorter than the model says: "
            "copy it again"
        )
    settled = {"location": name, "offset": str(offset)}
    if "length" in entries:
        settled["length"] = str(length)
    del tensor.external_data[:]
    for key, value in settled.items():
        tensor.external_data.add(key=key, value=value)


def _find(location: str, folder: Path) -> tuple[str, int]:
    """(the path of a file below the model's folder, its size in bytes). Raises ModelError."""
    shown = location
    if len(location) >= _LONGEST_SHOWN:
        shown = location[: _LONGEST_SHOWN - 3] + "..."
    if "\0" in location or not 0 < len(location) < _LONGEST_PATH:
        raise ModelError(f"are in {shown!r}, which is no name of a file: export again")
    try:
        # Resolved first: neither `..` nor a link may lead out of the folder.
        place = (folder / location).resolve()
        is_below = place.is_relative_to(folder)
        is_file = place.is_file()
        size = place.stat().st_size if is_file and is_below else 0
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"are in {shown!r}, which cannot be read: put it beside the model"
        ) from error
    if not is_below:
        raise ModelError(f"lie outside the model's folder ({shown!r}): move them beside it")
    if not is_file:
        raise ModelError(f"are in {shown!r}, which does not exist: put it beside the model")
    return place.relative_to(folder).as_posix(), size


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Count the nodes that functions would make, before anybody makes them. Raises ModelError."""
    if not model.functions:
        return
    try:
        count, size = _Expansion(model).of_nodes(model.graph.node, 0)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if count > MOST_NODES or size > MOST_NODE_BYTES:
        raise ModelError(
            f"{path}: its functions written out are {count} nodes of {size >> 20} MiB; "
            f"{MOST_NODES} of {MOST_NODE_BYTES >> 20} MiB are the most"
        )


_FunctionKey = tuple[str, str, str]  # domain, name, overload


class _Expansion:
    """Counts (nodes, bytes) of a model whose functions are all inlined.

    Each function is counted once, however often it is called, so that counting is quick even where
    inlining would never end.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self._counted: dict[_FunctionKey, tuple[int, int]] = {}
        self._being_counted: set[_FunctionKey] = set()

    def of_nodes(self, nodes: Sequence[onnx.NodeProto], depth: int) -> tuple[int, int]:
        """Raises ModelError for functions that call themselves or lie too deep."""
        if depth > MOST_DEPTH:
            raise ModelError(f"functions and subgraphs are more than {MOST_DEPTH} deep")
        count = size = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in self._functions:
                node_count, node_size = self._of_function(key, depth)
            else:
                node_count, node_size = 1, node.ByteSize()
            count += node_count
            # The bytes of a node are those of its subgraphs too.
            size += node_size
            for graph in _subgraphs(node):
                count += self.of_nodes(graph.node, depth + 1)[0]
        return count, size

    def _of_function(self, key: _FunctionKey, depth: int) -> tuple[int, int]:
        if key in self._being_counted:
            raise ModelError(
                f"function '{key[1]}' calls itself: export the model without functions"
            )
        if key not in self._counted:
            self._being_counted.add(key)
            self._counted[key] = self.of_nodes(self._functions[key].node, depth + 1)
            self._being_counted.remove(key)
        return self._counted[key]
