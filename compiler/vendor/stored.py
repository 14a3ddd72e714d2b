"""The parameters of a compiled file, byte for byte, and which layer claims which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_ALIGNMENT = 16  # bytes; a layer begins at a multiple


class Stored:
    """The parameters of a compiled file, and which of them no layer has claimed yet."""

    def __init__(self, blobs: Sequence[bytes], min_runtime: int) -> None:
        self.blobs = blobs
        self.min_runtime = min_runtime
        # (blob, first byte) by the place of a layer in the plain file
        self.places: dict[int, tuple[int, int]] = {}
        # (blob, first byte, end)
        self.free = [(index, 0, len(blob)) for index, blob in enumerate(blobs)]

    def find(self, needle: bytes) -> tuple[int, int] | None:
        """(blob, position) of bytes that no layer has claimed."""
        if not needle:
            return 0, 0
        for blob, start, end in self.free:
            place = self.blobs[blob].find(needle, start, end)
            while place > 0 and place % _ALIGNMENT:
                place = self.blobs[blob].find(needle, place + 1, end)
            if place >= 0:
                return blob, place
        return None

    def claim(self, blob: int, start: int, end: int) -> None:
        free = []
        for other, first, last in self.free:
            if other != blob or last <= start or end <= first:
                free.append((other, first, last))
                continue
            if first < start:
                free.append((other, first, start))
            if end < last:
                free.append((other, end, last))
        self.free = free

    def room(self, size: int) -> Iterator[tuple[int, int]]:
        """(blob, position) where unclaimed bytes begin that have room for `size`."""
        for blob, start, end in self.free:
            place = -(-start // _ALIGNMENT) * _ALIGNMENT
            if place + size <= end:
                yield blob, place

    def bytes(self, blob: int, start: int, size: int) -> np.ndarray:
        return np.frombuffer(self.blobs[blob], np.uint8, size, start)

    def unread(self) -> int:
        """How many bytes that are not zero no layer has claimed."""
        count = 0
        for blob, start, end in self.free:
            count += int(np.count_nonzero(self.bytes(blob, start, end - start)))
        return count
