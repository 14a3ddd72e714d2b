"""Notices that another bundle has taken the place of one that is in use."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class HeldFolder:
    """The folder that a path led to when this was made.

    Segments are opened by path, some of them long after the manifest was read: those that do not
    stay in memory, and those of a lost device, which another one loads. Meanwhile `build --force`
    may have put another bundle there, whose segments would give wrong results without a word.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status = _status(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return  # Windows opens no folders
        # While it is open no other folder gets this one's inode number; that of a folder that was
        # removed goes to the next one that is made.
        weakref.finalize(self, os.close, descriptor)
        self._status = os.fstat(descriptor)

    def was_replaced(self) -> bool:
        """Whether the path now leads to another folder, or to none."""
        now = _status(self.path)
        if self._status is None or now is None:
            return True
        return not os.path.samestat(self._status, now)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
