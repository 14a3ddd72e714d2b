"""What long work tells about itself, and to whom."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int], Callable[[], None]]
"""progress(stage, steps) announces a stage and returns what to call after each of its steps."""


def silent(stage: str, steps: int) -> Callable[[], None]:
    """The Progress that shows nothing."""
    return _nothing


def _nothing() -> None:
    pass
