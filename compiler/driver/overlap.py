"""Predicts how long the parts of a chunk take that overlap: while the Edge TPU works on one of
them, the host works on the next.

Parts go through the same segments in the same order. A segment takes a part when the part before it
has left that segment, whose keys and values it reads, and when its own device is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """A segment: the number of its Edge TPU, None for the host, and its predicted seconds."""

    tpu: int | None
    seconds: float


def makespan(steps: Sequence[Step], parts: int) -> float:
    """Seconds until the last of `parts` has left the last segment."""
    free: dict[int | None, float] = {}
    # By part the segment that it waits for, and by part and segment when it left.
    waiting = [0] * parts
    left = [[0.0] * len(steps) for _ in range(parts)]
    for _ in range(parts * len(steps)):
        start, part = min(_starts(steps, waiting, left, free))
        place = waiting[part]
        end = start + steps[place].seconds
        free[steps[place].tpu] = end
        left[part][place] = end
        waiting[part] += 1
    return max((part[-1] for part in left if part), default=0.0)


def _starts(
    steps: Sequence[Step],
    waiting: Sequence[int],
    left: Sequence[Sequence[float]],
    free: dict[int | None, float],
) -> list[tuple[float, int]]:
    """When each part that may go on could start with its next segment; of equals the oldest part
    goes first."""
    found = []
    for part, place in enumerate(waiting):
        if place == len(steps) or (part and waiting[part - 1] <= place):
            continue
        ready = free.get(steps[place].tpu, 0.0)
        if place:
            ready = max(ready, left[part][place - 1])
        if part:
            ready = max(ready, left[part - 1][place])
        found.append((ready, part))
    return found
