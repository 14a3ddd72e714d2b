"""What long work tells about itself, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Callable

# What a user should know of the work and did not ask for, such as what was taken from metadata.
notes = logging.getLogger("compiler.notes")

Progress = Callable[[str, int], Callable[[], None]]
"""progress(stage, steps) announces a stage and returns what to call after each of its steps."""


def silent(stage: str, steps: int) -> Callable[[], None]:
    """The Progress that shows nothing."""
    return _nothing


def _nothing() -> None:
    pass
