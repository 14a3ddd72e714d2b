"""How a build tells its caller what it is doing, and names the stage that an error came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compiler import files
from compiler.errors import CompilerError, InternalError, ModelError, OutputError

Progress = Callable[[str, int], Callable[[], None]]
"""progress(stage, steps) announces a stage and returns what to call after each of its steps."""


def silent(stage: str, steps: int) -> Callable[[], None]:
    """The Progress that shows nothing."""
    return _nothing


def _nothing() -> None:
    pass


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
