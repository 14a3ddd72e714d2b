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

_NAME = "edgetpu-custom-op"
CUSTOM = f"CUSTOM:{_NAME}"  # what the operators of compiled files are called
_KINDS = ("stand-alone", "caching", "execution")
_DESCRIPTOR = 1  # of the union AnyHint
_OUTFEED = 1  # of the enum Direction
_OFFSET_BYTES = 4


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
        """Bytes of parameters that are sent once and stay in the SRAM."""
        return sum(part.parameters for part in self.executables if part.kind == "caching")

    @property
    def streamed(self) -> int:
        """Bytes of parameters that are sent at each invocation."""
        return sum(part.parameters for part in self.executables if part.kind != "caching")


@dataclass(frozen=True)
class StoredPackage:
    """What a package holds for the device.

    min_runtime: the oldest runtime that takes it
    parameters:  of each executable that has any
    numerics:    (scale, zero point of uint8) by name of what the executables take and give
    """

    min_runtime: int
    parameters: tuple[bytes, ...]
    numerics: dict[str, tuple[float, int]]


def read(path: Path) -> tuple[list[Package], Counter[str]]:
    """(packages, operators left on the CPU) of a compiled file. Raises ModelError for any other."""
    packages: list[Package] = []
    on_cpu: Counter[str] = Counter()
    with tflite_file(path, "a compiled TFLite model"):
        model = unpacked(file_bytes(path))
        for subgraph in model.subgraphs:
            for operator in subgraph.operators:
                name = op_name(model.operatorCodes[operator.opcodeIndex])
                if name == CUSTOM:
                    packages.append(package(bytes(operator.customOptions)))
                else:
                    on_cpu[name] += 1
    if not packages:
        raise not_compiled(path)
    return packages, on_cpu


def not_compiled(path: Path) -> ModelError:
    """What to say of a plain file where a compiled one is needed."""
    return ModelError(
        f"{path}: not compiled for the Edge TPU: it has no {_NAME}; `check` takes plain files"
    )


def package(options: bytes) -> Package:
    """The package in the options of a custom operator, found by its file identifier."""
    root = _package(options)
    return Package(
        compiler=_text(root, 4),
        min_runtime=_number(root, 0, types.Int32Flags),
        executables=tuple(_executable(table) for table in _executables(root)),
    )


def stored(options: bytes) -> StoredPackage:
    """What the package of a custom operator holds for the device."""
    root = _package(options)
    parameters = []
    numerics = {}
    for table in _executables(root):
        if _length(table, 6):
            parameters.append(_bytes(table, 6))
        for layer in (*_tables(table, 8), *_tables(table, 9)):
            constants = _table(layer, 5)
            if constants is not None:
                zero_point = _number(constants, 0, types.Int32Flags)
                numerics[_text(layer, 0)] = _real(constants, 1), zero_point
    return StoredPackage(_number(root, 0, types.Int32Flags), tuple(parameters), numerics)


def _package(options: bytes) -> Table:
    # A flatbuffer's identifier follows the 4 bytes of its root's offset.
    mark = options.index(b"DWN1")
    return _root(options[mark - 4 :])


def _executables(root: Table) -> list[Table]:
    return [_root(data) for data in _byte_strings(_root(_bytes(root, 1)), 0)]


def _executable(table: Table) -> Executable:
    hints = _table(table, 7)
    transfers = [] if hints is None else [_transfer(hint) for hint in _tables(hints, 0)]
    return Executable(
        kind=_KINDS[_number(table, 13, types.Int16Flags)],
        parameters=_length(table, 6),
        instructions=sum(_length(stream, 0) for stream in _tables(table, 5)),
        dma_in=sum(size for is_outfeed, size in transfers if not is_outfeed),
        dma_out=sum(size for is_outfeed, size in transfers if is_outfeed),
        scratch=_number(table, 4, types.Int32Flags),
        narrow_memory_per_tile=_number(table, 12, types.Int32Flags),
        token=_number(table, 14, types.Uint64Flags),
        inputs=tuple(_layer(layer) for layer in _tables(table, 8)),
        outputs=tuple(_layer(layer) for layer in _tables(table, 9)),
    )


def _transfer(hint: Table) -> tuple[bool, int]:
    """(whether towards the host, bytes) of a DMA hint; instructions and fences have none."""
    is_outfeed = _number(hint, 2, types.Int16Flags) == _OUTFEED
    if _number(hint, 0, types.Uint8Flags) != _DESCRIPTOR:
        return is_outfeed, 0
    descriptor = _table(hint, 1)
    size = 0 if descriptor is None else _number(descriptor, 2, types.Int32Flags)
    return is_outfeed, size


def _layer(table: Table) -> tuple[str, int]:
    """(name, bytes) of an input or output."""
    return _text(table, 0), _number(table, 1, types.Int32Flags)


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


def _real(table: Table, field: int) -> float:
    place = _at(table, field)
    return float(table.Get(types.Float32Flags, place)) if place else 0.0


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


def _text(table: Table, field: int) -> str:
    return _bytes(table, field).decode("utf-8", "replace")


def _tables(table: Table, field: int) -> list[Table]:
    return [Table(table.Bytes, position) for position in _positions(table, field)]


def _byte_strings(table: Table, field: int) -> list[bytes]:
    found = []
    for position in _positions(table, field):
        # A string begins with its length.
        size = table.Get(types.UOffsetTFlags, position)
        start = position + _OFFSET_BYTES
        found.append(bytes(table.Bytes[start : start + size]))
    return found


def _positions(table: Table, field: int) -> list[int]:
    """Where the tables or strings of a vector lie, which itself holds offsets."""
    start, length = _span(table, field)
    return [table.Indirect(start + _OFFSET_BYTES * index) for index in range(length)]
