"""Large constants of a bundle, each stored once: a file that already holds the same bytes serves
other segments too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

# Smaller constants stay inside their segment.
LEAST_BYTES = 1 << 16
# onnxruntime maps external data into memory by pages.
ALIGNMENT = 4096


@dataclass(frozen=True)
class FileSpan:
    """Where bytes lie, in a file of the store's folder."""

    file: str
    offset: int
    length: int


class Store:
    """Finds or makes a place for constants in the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[bytes, FileSpan] = {}

    def register(self, file: Path) -> None:
        """Make the buffers of a TFLite file known."""
        data = file.read_bytes()
        model = schema.Model.GetRootAs(data, 0)
        start = _address(np.frombuffer(data, np.uint8))
        for index in range(model.BuffersLength()):
            buffer = model.Buffers(index)
            if buffer.DataLength() < LEAST_BYTES:
                continue
            # An array without a copy: its address tells where in the file the buffer lies.
            array = buffer.DataAsNumpy()
            span = FileSpan(file.name, _address(array) - start, array.nbytes)
            self._places.setdefault(hashlib.sha256(array.tobytes()).digest(), span)

    def place(self, array: np.ndarray) -> FileSpan:
        """Where the bytes of an array lie; they are appended to weights.bin where no file has them
        yet."""
        data = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            self._places[digest] = self._append(data)
        return self._places[digest]

    def _append(self, data: bytes) -> FileSpan:
        with (self.folder / "weights.bin").open("ab") as file:
            padding = -file.tell() % ALIGNMENT
            file.write(bytes(padding))
            span = FileSpan("weights.bin", file.tell(), len(data))
            file.write(data)
        return span


def _address(array: np.ndarray) -> int:
    """Where the first byte of an array is in memory."""
    return int(array.__array_interface__["data"][0])
