"""Segments that are opened as they are run, for models whose weights do not fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from compiler.runtime.devices import Executable


class LazySegments:
    """Segments that together take about `limit` bytes for weights, as only some are open at a time.

    Runs go through all segments in order, again and again. So the first ones stay open, as many as
    leave room for two of the others: the one that runs, and the next one, which a thread opens
    meanwhile. The one that ran is closed.

    `open_segment` opens the segment of an index, and `sizes` are the bytes of their weights. One
    segment may run at a time.
    """

    def __init__(
        self, open_segment: Callable[[int], Executable], sizes: Sequence[int], limit: int
    ) -> None:
        self._open = open_segment
        kept = _count_that_fits(sizes, limit - 2 * max(sizes))
        self._kept = {index: open_segment(index) for index in range(kept)}
        self._others = list(range(kept, len(sizes)))
        self._opening: dict[int, Future[Executable]] = {}
        self._thread = ThreadPoolExecutor(1, "segment opener")

    def segment(self, index: int) -> Executable:
        """The segment as something to run, whether it is open or not."""
        return _LazySegment(self, index)

    def run(self, index: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if index in self._kept:
            return self._kept[index].run(arrays)
        executable = self._opened(index)
        following = self._following(index)
        if following not in self._opening and following != index:
            self._opening[following] = self._thread.submit(self._open, following)
        # Nobody else refers to the segment, so its memory is free when this returns.
        return executable.run(arrays)

    def _opened(self, index: int) -> Executable:
        opening = self._opening.pop(index, None)
        if opening is None:
            return self._open(index)
        return opening.result()

    def _following(self, index: int) -> int:
        """The next segment to be opened; behind the last one it is the first, for the next run."""
        position = self._others.index(index) + 1
        return self._others[position % len(self._others)]


class _LazySegment:
    def __init__(self, segments: LazySegments, index: int) -> None:
        self._segments = segments
        self._index = index

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._segments.run(self._index, arrays)


def _count_that_fits(sizes: Sequence[int], room: int) -> int:
    """How many of the first sizes fit the room."""
    count = 0
    for size in sizes:
        if size > room:
            break
        room -= size
        count += 1
    return count
