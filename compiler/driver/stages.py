"""Stages of a build: what is announced of them, how long they take, and errors that name them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from compiler import files
from compiler.errors import CompilerError, InternalError, ModelError, OutputError

Progress = Callable[[str, int], Callable[[], None]]
"""report(stage, steps) announces a stage and returns what to call after each of its steps."""


def silent(stage: str, steps: int) -> Callable[[], None]:
    """A Progress that nobody sees."""
    return lambda: None


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Errors that we did not foresee name the stage they came from."""
    try:
        yield
    except (CompilerError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and files.ran_full(error):
            why = error.strerror or error
            raise OutputError(
                f"stage '{name}' ran out of room: {why}: free some or set $TMPDIR"
            ) from error
        if isinstance(error, MemoryError):
            raise ModelError(
                f"stage '{name}' ran out of memory: take a smaller model, or a larger machine"
            ) from error
        raise InternalError(name, f"{type(error).__name__}: {error}") from error


@dataclass
class StageTimer:
    """A Progress that hands announcements on to another one, and notes how long each stage took.

    A stage lasts until the next one is announced; `end` ends the last one.
    """

    report: Progress = silent
    seconds: list[tuple[str, float]] = field(default_factory=list)
    _current: str | None = None
    _since: float = 0.0

    def __call__(self, stage: str, steps: int) -> Callable[[], None]:
        self.end()
        self._current = stage
        self._since = time.perf_counter()
        return self.report(stage, steps)

    def end(self) -> None:
        if self._current is not None:
            self.seconds.append((self._current, time.perf_counter() - self._since))
        self._current = None
