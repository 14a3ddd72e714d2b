"""The part of the manifest about pictures: how they go in, and what the outputs say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from compiler.runtime.manifest import PictureEntry, TaskEntry, VisionEntry


def entry(picture: PictureEntry, labels: Sequence[str], task: TaskEntry) -> VisionEntry:
    """What the manifest says of a model of pictures; `task` is what its outputs were recognised
    as."""
    # A type checker cannot know that a task's optional fields are those of the whole.
    found = cast(VisionEntry, {**task, "picture": picture})
    if labels:
        found["labels"] = list(labels)
    return found
