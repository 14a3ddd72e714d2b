"""The format of GGUF files: metadata, and weights that stay memory-mapped.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ModelError, first_line
from compiler.frontends.architecture import Weight
from compiler.frontends.blocks import stored_form

# The largest files known have some thousand tensors and 300,000 tokens; a damaged count must not
# fill the memory.
MOST_FIELDS = 1 << 16
MOST_TENSORS = MOST_FIELDS
MOST_STRINGS = 1 << 20
LARGEST_ARRAY = 1 << 24
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

# Types of values in the metadata.
_UINT32 = 4
_STRING = 8
_ARRAY = 9
_UINT64 = 10
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    _UINT32: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    _UINT64: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `dims` has the fastest dimension first, `kind` is its type in GGML,
    `offset` counts bytes of the file."""

    dims: list[int]
    kind: int
    offset: int


class Cursor:
    """Reads values from the front of a file to its back. Raises ValueError where they claim more
    than it has."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes."""
        start = self.position
        if size > len(self._data) - start:
            raise ValueError(f"byte {start} begins {size} bytes, the file ends before")
        self.position += size
        return self._data[start : self.position]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        found: list[Any] = self.take(count * dtype.itemsize).view(dtype).tolist()
        return found

    def u32(self) -> int:
        return int(self.numbers(_UINT32, 1)[0])

    def u64(self) -> int:
        return int(self.numbers(_UINT64, 1)[0])

    def text(self) -> str:
        return bytes(self.take(self.u64())).decode()

    def value(self, kind: int) -> Any:
        """A number, a string or an array of either."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        return self.numbers(kind, 1)[0]

    def _array(self) -> list[Any]:
        kind = self.u32()
        count = self.u64()
        if kind == _STRING:
            if count > MOST_STRINGS:
                raise ValueError(f"an array of {count} strings; at most {MOST_STRINGS} are read")
            return [self.text() for _ in range(count)]
        if count > LARGEST_ARRAY:
            raise ValueError(f"an array of {count} numbers; at most {LARGEST_ARRAY} are read")
        return self.numbers(kind, count)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Weight]]:
    """(fields, weights) of a file. Raises ModelError for what is damaged."""
    if not path.stat().st_size:
        raise ModelError(f"{path}: is empty")
    try:
        data = np.memmap(path, np.uint8, "r")
        fields, tensors = read_metadata(data)
        return fields, {name: read_weight(data, name, entry) for name, entry in tensors.items()}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:
        why = first_line(error)
        raise ModelError(f"{path}: not a GGUF file, or a truncated one ({why})") from error


def read_metadata(data: np.ndarray) -> tuple[dict[str, Any], dict[str, Entry]]:
    """(fields, tensors) of a file [bytes]. Raises ValueError for what is damaged."""
    cursor = Cursor(data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin as one")
    version = cursor.u32()
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; 2 and 3 of little-endian machines are read")
    tensor_count = cursor.u64()
    field_count = cursor.u64()
    if field_count > MOST_FIELDS or tensor_count > MOST_TENSORS:
        raise ValueError(
            f"{field_count} fields and {tensor_count} tensors; at most {MOST_FIELDS} of each "
            "are read"
        )
    fields = _read_fields(cursor, field_count)
    entries = _read_entries(cursor, tensor_count)
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment!r} is no power of two")
    # The data begin at the next multiple behind the metadata; offsets count from there.
    start = (cursor.position + alignment - 1) // alignment * alignment
    tensors = {}
    for name, entry in entries.items():
        tensors[name] = Entry(entry.dims, entry.kind, start + entry.offset)
    return fields, tensors


def _read_fields(cursor: Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in fields:
            raise ValueError(f"field '{name}' is there twice")
        fields[name] = cursor.value(cursor.u32())
    return fields


def _read_entries(cursor: Cursor, count: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for _ in range(count):
        name = cursor.text()
        rank = cursor.u32()
        if name in entries or not 1 <= rank <= _MOST_DIMENSIONS:
            raise ValueError(f"tensor '{name}' is there twice, or has {rank} dimensions")
        dims = cursor.numbers(_UINT64, rank)
        kind = cursor.u32()
        offset = cursor.u64()
        entries[name] = Entry(dims, kind, offset)
    return entries


def read_weight(data: np.ndarray, name: str, entry: Entry) -> Weight:
    """A tensor of a file [bytes], dequantized row by row when it is read.

    Raises ModelError for a type that gguf cannot dequantize, and where the file ends before.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    shape = tuple(reversed(entry.dims))
    try:
        quantization = GGMLQuantizationType(entry.kind)
        # A block of so many weights takes so many bytes.
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        dequantize(np.zeros(block_bytes, np.uint8), quantization)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"weights '{name}' are of type {entry.kind}, which is not supported: "
            "quantize it otherwise"
        ) from error
    row_bytes, remainder = divmod(shape[-1] * block_bytes, block)
    end = entry.offset + math.prod(shape[:-1]) * row_bytes
    has_whole_blocks = not remainder and shape[-1] % block == 0
    if not has_whole_blocks or min(shape) < 1 or end > len(data):
        raise ModelError(f"weights '{name}' {list(shape)} do not fit the file: download it again")
    stored = data[entry.offset : end].reshape(*shape[:-1], row_bytes)

    def rows(wanted: slice) -> np.ndarray:
        if stored.ndim == 1:  # a vector: its blocks hold several "rows" of one number
            return np.asarray(dequantize(stored, quantization)[wanted], np.float32)
        return np.asarray(dequantize(stored[wanted], quantization), np.float32)

    return Weight(shape, rows, stored_form(quantization.name, stored))
