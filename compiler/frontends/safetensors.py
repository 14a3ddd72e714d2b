"""The safetensors format, read without its library; weights stay memory-mapped.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import ModelError, first_line
from compiler.frontends.architecture import Weight

LARGEST_HEADER = 100 << 20  # the limit of the safetensors library, in bytes
_MOST_DIMENSIONS = 8
_LENGTH_BYTES = 8  # the length of the header, in front of it
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class _Entry:
    """What the header says of a tensor; `begin` and `end` count bytes behind the header."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: Path) -> dict[str, Weight]:
    """The tensors of a file. Raises ModelError for what is damaged or of another type."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(LARGEST_HEADER, size - _LENGTH_BYTES):
            raise ModelError(f"{path}: not a safetensors file, or a truncated one")
        header = file.read(length)
    try:
        entries = _entries(json.loads(header))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its header cannot be read ({first_line(error)})") from error
    start = _LENGTH_BYTES + length
    return {name: _weight(path, name, entry, start, size) for name, entry in entries.items()}


def _entries(header: Mapping[str, Any]) -> dict[str, _Entry]:
    """Raises ValueError for shapes and offsets that are no such numbers."""
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry["shape"]
        offsets = entry["data_offsets"]
        are_counts = all(type(number) is int and number >= 0 for number in [*shape, *offsets])
        if not are_counts or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has shape {shape} at {offsets}")
        entries[name] = _Entry(str(entry["dtype"]), tuple(shape), *offsets)
    return entries


def _weight(path: Path, name: str, entry: _Entry, start: int, size: int) -> Weight:
    """A tensor of a file of `size` bytes whose data begin at byte `start`."""
    if entry.kind not in _TYPES:
        supported = ", ".join(_TYPES)
        raise ModelError(f"{path}: weights '{name}' are {entry.kind}; supported are {supported}")
    dtype = np.dtype(_TYPES[entry.kind])
    is_inside = entry.begin < entry.end <= size - start
    is_whole = entry.end - entry.begin == math.prod(entry.shape) * dtype.itemsize
    if not entry.shape or not is_inside or not is_whole:
        raise ModelError(
            f"{path}: weights '{name}' {list(entry.shape)} do not fit the file: download it again"
        )
    array = np.memmap(path, dtype, "r", start + entry.begin, entry.shape)
    return Weight(entry.shape, lambda rows: np.asarray(array[rows], np.float32))
