"""How long a search goes on, in work and not in time: the same problem gives the same plan on any
machine."""

from __future__ import annotations

# Counted in a second by one core of an x86 server on graphs of 66 to 732 nodes (5 to 8 million).
RATE = 6_000_000
# Graphs of up to so many nodes are searched more widely: random orders, plans that are shaken.
SMALL_GRAPH = 120


class Budget:
    """Work that a search may do: `seconds` of it on a current x86 core, more on a slower one."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds * RATE

    def spend(self, steps: int) -> None:
        self._left -= steps

    @property
    def spent(self) -> bool:
        return self._left <= 0
