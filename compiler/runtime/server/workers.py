"""Threads beside the event loop, for work that would hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from compiler.runtime.batching import BusyError

T = TypeVar("T")

# Characters up to which a text counts as short. Tokenizing so many takes a few milliseconds.
SHORT_TEXT = 1 << 14
# Characters that a message or a text counts beside its own: many empty ones are work too.
OVERHEAD = 16


class Worker:
    """One thread that runs functions in the order in which they are handed over.

    Where `waiting` is given, it refuses more while so many wait behind the one that runs.
    """

    def __init__(self, name: str, waiting: int | None = None) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._waiting = waiting
        self._unfinished = 0
        self.refused = 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in this thread while the event loop goes on; returns its result.

        Raises BusyError where too many wait, and what the function raises.
        """
        # Only the event loop's thread comes here: the counts need no lock.
        if self._waiting is not None and self._unfinished > self._waiting:
            self.refused += 1
            raise BusyError(f"{self._waiting} long texts are waiting already")
        self._unfinished += 1
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, function, *arguments)
        finally:
            self._unfinished -= 1


class TextReaders:
    """Two workers that parse and tokenize: short texts do not wait for long ones.

    Only long texts are refused, once `waiting` of them wait.
    """

    def __init__(self, waiting: int) -> None:
        self._short = Worker("short texts")
        self._long = Worker("long texts", waiting)

    @property
    def refused(self) -> int:
        return self._long.refused

    async def run(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that reads `size` characters. Raises BusyError."""
        worker = self._short if size <= SHORT_TEXT else self._long
        return await worker.run(function, *arguments)
