"""The part of the manifest about pictures: how they go in, and what the outputs say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.runtime.manifest import PictureEntry, VisionEntry


def entry(
    picture: PictureEntry, labels: Sequence[str], results: Sequence[Mapping[str, Any]]
) -> VisionEntry:
    """What the manifest says of a model of pictures. `results` are what the float model gives for
    held-out samples, which tell what its outputs are."""
    found: VisionEntry = {"picture": picture, "task": None}
    if labels:
        found["labels"] = list(labels)
    return found
