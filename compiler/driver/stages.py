"""Stages of a build: what is announced of them, how long they take, and errors that name them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from compiler import files
from compiler.errors import CompilerError, InternalError, ModelError, OutputError
from compiler.progress import Progress, silent


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turn errors that nobody foresaw into an InternalError that names the stage.

    A full disk becomes an OutputError and exhausted memory a ModelError: the user can mend these.
    """
    try:
        yield
    except (CompilerError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise ModelError(
            f"stage '{name}' ran out of memory: take a smaller model, or a larger machine"
        ) from error
    except OSError as error:
        if not files.ran_full(error):
            raise _internal(name, error) from error
        reason = error.strerror or error
        raise OutputError(
            f"stage '{name}' ran out of room: {reason}: free some or set $TMPDIR"
        ) from error
    except Exception as error:
        raise _internal(name, error) from error


def _internal(name: str, error: Exception) -> InternalError:
    return InternalError(name, f"{type(error).__name__}: {error}")


@dataclass
class Timings:
    """Where the time of a build went, in the order of its work. A build fills it in.

    stages: (name, seconds) of each stage
    passes: (name, seconds, number of rewrites) of each run of a pass
    """

    stages: list[tuple[str, float]] = field(default_factory=list)
    passes: list[tuple[str, float, int]] = field(default_factory=list)


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
