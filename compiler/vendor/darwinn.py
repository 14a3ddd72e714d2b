"""Reads what edgetpu_compiler wrote: the DarwiNN packages inside a compiled TFLite file.

Field numbers follow the public schema, executable/executable.fbs of google-coral/libedgetpu.
Several sizes tell how a model will run: cached parameters are sent once, streamed ones and
instructions at each invocation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
from flatbuffers import number_types as types
from flatbuffers.table import Table

from compiler.device.tflite_file import file_bytes, op_name, tflite_file, unpacked
from compiler.errors import ModelError

_CUSTOM = "edgetpu-custom-op"
_KINDS = ("stand-alone", "caching", "execution")
_DESCRIPTOR = 1  # of the union AnyHint
_OUTFEED = 1  # of the enum Direction


@dataclass(frozen=True)
class Executable:
    """One program for the device; sizes in bytes. `token` is shared by models that may be cached
    together."""

    kind: str
    parameters: int
    instructions: int
    dma_in: int
    dma_out: int
    scratch: int
    narrow_memory_per_tile: int
    token: int
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Package:
    """The executables of one edgetpu-custom-op."""

    compiler: str
    min_runtime: int
    executables: tuple[Executable, ...]

    @property
    def cached(self) -> int:
        return sum(e.parameters for e in self.executables if e.kind == "caching")

    @property
    def streamed(self) -> int:
        return sum(e.parameters for e in self.executables if e.kind != "caching")


def read(path: Path) -> tuple[list[Package], Counter[str]]:
    """(packages, operators left on the CPU) of a compiled file. Raises ModelError for any other."""
    with tflite_file(path, "a compiled TFLite model"):
        model = unpacked(file_bytes(path))
        operators = [o for graph in model.subgraphs for o in graph.operators]
        named = [(op_name(model.operatorCodes[o.opcodeIndex]), o) for o in operators]
        packages = [
            package(bytes(o.customOptions)) for name, o in named if name == f"CUSTOM:{_CUSTOM}"
        ]
    if not packages:
        raise ModelError(
            f"{path}: not compiled for the Edge TPU: it has no {_CUSTOM}; `check` takes plain files"
        )
    return packages, Counter(name for name, _ in named if name != f"CUSTOM:{_CUSTOM}")


def package(options: bytes) -> Package:
    """The package in the options of a custom operator, found by its file identifier."""
    mark = options.index(b"DWN1")
    root = _root(options[mark - 4 :])
    executables = _root(_bytes(root, 1))
    return Package(
        compiler=_bytes(root, 4).decode("utf-8", "replace"),
        min_runtime=_number(root, 0, types.Int32Flags),
        executables=tuple(_executable(_root(data)) for data in _byte_strings(executables, 0)),
    )


def _executable(table: Table) -> Executable:
    hints = _table(table, 7)
    transfers = [_transfer(hint) for hint in _tables(hints, 0)] if hints is not None else []
    return Executable(
        kind=_KINDS[_number(table, 13, types.Int16Flags)],
        parameters=_length(table, 6),
        instructions=sum(_length(stream, 0) for stream in _tables(table, 5)),
        dma_in=sum(size for out, size in transfers if not out),
        dma_out=sum(size for out, size in transfers if out),
        scratch=_number(table, 4, types.Int32Flags),
        narrow_memory_per_tile=_number(table, 12, types.Int32Flags),
        token=_number(table, 14, types.Uint64Flags),
        inputs=tuple(_layer(layer) for layer in _tables(table, 8)),
        outputs=tuple(_layer(layer) for layer in _tables(table, 9)),
    )


def _transfer(hint: Table) -> tuple[bool, int]:
    """(whether towards the host, bytes) of a DMA hint; instructions and fences have none."""
    descriptor = _table(hint, 1) if _number(hint, 0, types.Uint8Flags) == _DESCRIPTOR else None
    size = _number(descriptor, 2, types.Int32Flags) if descriptor is not None else 0
    return _number(hint, 2, types.Int16Flags) == _OUTFEED, size


def _layer(table: Table) -> tuple[str, int]:
    return _bytes(table, 0).decode("utf-8", "replace"), _number(table, 1, types.Int32Flags)


# Access to flatbuffer tables by field number.


def _root(data: bytes) -> Table:
    return Table(data, flatbuffers.encode.Get(types.UOffsetTFlags.packer_type, data, 0))


def _at(table: Table, field: int) -> int:
    """Position of a field, 0 where it is absent."""
    offset = table.Offset(4 + 2 * field)
    return table.Pos + offset if offset else 0


def _number(table: Table, field: int, flags: Any) -> int:
    place = _at(table, field)
    return int(table.Get(flags, place)) if place else 0


def _table(table: Table, field: int) -> Table | None:
    place = _at(table, field)
    return Table(table.Bytes, table.Indirect(place)) if place else None


def _span(table: Table, field: int) -> tuple[int, int]:
    """(first position, number of elements) of a vector or string."""
    offset = table.Offset(4 + 2 * field)
    return (table.Vector(offset), table.VectorLen(offset)) if offset else (0, 0)


def _length(table: Table, field: int) -> int:
    return _span(table, field)[1]


def _bytes(table: Table, field: int) -> bytes:
    start, length = _span(table, field)
    return bytes(table.Bytes[start : start + length])


def _tables(table: Table, field: int) -> list[Table]:
    start, length = _span(table, field)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(length)]


def _byte_strings(table: Table, field: int) -> list[bytes]:
    start, length = _span(table, field)
    found = []
    for i in range(length):
        place = table.Indirect(start + 4 * i)
        size = table.Get(types.UOffsetTFlags, place)
        found.append(bytes(table.Bytes[place + 4 : place + 4 + size]))
    return found
