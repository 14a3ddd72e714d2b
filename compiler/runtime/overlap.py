"""Runs parts of one chunk of tokens through a program at once: while an Edge TPU works on one part,
the host works on another.

Parts read what those before them wrote into the cache. So a part enters a segment once the part
before it has left that segment.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from compiler.runtime.pipeline import Pipeline


def run_parts(pipeline: Pipeline, parts: Sequence[dict[str, np.ndarray]]) -> None:
    """Run every segment on the values of each part, which are changed as `Pipeline.advance` does.

    Raises what the first segment that fails raises; the others then stop before their next one.
    """
    run = _Run(pipeline, parts)
    threads = [threading.Thread(target=run.part, args=(n,)) for n in range(1, len(parts))]
    for thread in threads:
        thread.start()
    run.part(0)
    for thread in threads:
        thread.join()
    if run.error is not None:
        raise run.error


class _Run:
    """How far each part has come: `_left` counts the segments that it has left."""

    def __init__(self, pipeline: Pipeline, parts: Sequence[dict[str, np.ndarray]]) -> None:
        self.error: BaseException | None = None
        self._pipeline = pipeline
        self._parts = parts
        self._left = [0] * len(parts)
        self._moved = threading.Condition()

    def part(self, number: int) -> None:
        """All segments of one part, in order."""
        try:
            for index in range(len(self._pipeline.segments)):
                if not self._may_enter(number, index):
                    return
                self._pipeline.advance(index, self._parts[number])
                self._leave(number)
        except BaseException as error:
            self._fail(error)

    def _may_enter(self, number: int, index: int) -> bool:
        """Wait for the part before; returns whether to go on."""
        with self._moved:
            if number:
                self._moved.wait_for(lambda: self.error or self._left[number - 1] > index)
            return self.error is None

    def _leave(self, number: int) -> None:
        with self._moved:
            self._left[number] += 1
            self._moved.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._moved:
            self.error = self.error or error
            self._moved.notify_all()
