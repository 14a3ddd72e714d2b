"""Prompts that a language model has read, kept in files: who begins a text alike again, also after
the server was started anew, does not wait for it to be read again.

A file holds tokens and what the key/value cache has for them. It is of one bundle, by a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Shorter prompts are read faster than they are found.
LEAST_TOKENS = 64
# A prompt is not kept where a file has so much of it already.
ENOUGH = 0.9
# Bytes of all files; those that were not used for the longest time go first.
MOST_BYTES = 2 << 30
_SUFFIX = ".prefix"
# What numpy raises for files that are not what they should be.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError),
    *(zipfile.BadZipFile, zlib.error),
)

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Kept:
    """A file and its tokens."""

    path: Path
    tokens: np.ndarray

    def shared(self, tokens: np.ndarray) -> int:
        """How many tokens of a text are at the beginning of this one too."""
        count = min(len(tokens), len(self.tokens))
        differs = np.flatnonzero(tokens[:count] != self.tokens[:count])
        return int(differs[0]) if len(differs) else count


class PrefixStore:
    """Prompts in the files of a folder, which only its owner can read; `digest` tells the bundle.

    One thread at a time may ask; files are written in a thread of its own. Files that are broken,
    or of another bundle, count as not there. Raises OSError where the folder cannot be made.
    """

    def __init__(self, folder: Path, digest: str, most_bytes: int = MOST_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._digest = digest
        self._most_bytes = most_bytes
        self._kept = [kept for path in self._files() if (kept := self._open(path)) is not None]
        # One waits while one is written; more are not worth their memory.
        self._unwritten: queue.Queue[tuple[np.ndarray, Arrays] | None] = queue.Queue(1)
        self._writer = threading.Thread(target=self._write_all, name="prefixes", daemon=True)
        self._writer.start()

    def find(self, tokens: Sequence[int]) -> tuple[int, Path | None]:
        """(how many tokens of a text a file begins with, that file)."""
        text = np.asarray(tokens, np.int64)
        best = max(self._kept, key=lambda kept: kept.shared(text), default=None)
        return (best.shared(text), best.path) if best is not None else (0, None)

    def read(self, path: Path, shapes: Mapping[str, tuple[int, ...]], count: int) -> Arrays | None:
        """What the cache has for the first `count` tokens of a file: by name, [heads, count,
        channels]; None for a file that is damaged or does not fit `shapes` of the cache's rows."""
        found = {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name, (heads, _, channels) in shapes.items():
                    array = arrays[f"cache/{name}"][:, :count]
                    if array.shape != (heads, count, channels):
                        raise ValueError(name)
                    found[name] = array
            os.utime(path)
        except _DAMAGED:
            self._kept = [kept for kept in self._kept if kept.path != path]
            return None
        return found

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether a prompt is worth a file."""
        if len(tokens) < LEAST_TOKENS or self._unwritten.full():
            return False
        return self.find(tokens)[0] < ENOUGH * len(tokens)

    def keep(self, tokens: Sequence[int], cache: Arrays) -> None:
        """Write a file of a prompt, in the background; `cache` is by name [heads, tokens,
        channels], and nobody else's."""
        with contextlib.suppress(queue.Full):
            self._unwritten.put_nowait((np.asarray(tokens, np.int64), cache))

    def close(self) -> None:
        """Wait for what is being written."""
        self._unwritten.put(None)
        self._writer.join()

    def _files(self) -> list[Path]:
        """All files, the one that was used last at the end."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _open(self, path: Path) -> _Kept | None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tokens = np.asarray(arrays["tokens"], np.int64).ravel()
                digest = str(arrays["digest"])
        except _DAMAGED:
            return None
        return _Kept(path, tokens) if digest == self._digest else None

    def _write_all(self) -> None:
        while (item := self._unwritten.get()) is not None:
            tokens, cache = item
            # A full disk must not end the server: then prompts are just read again.
            with contextlib.suppress(OSError):
                path = self._write(tokens, cache)
                self._kept = [*self._kept, _Kept(path, tokens)]
                self._forget_oldest(path)

    def _write(self, tokens: np.ndarray, cache: Arrays) -> Path:
        name = hashlib.sha256(self._digest.encode() + tokens.tobytes()).hexdigest()[:32]
        arrays: dict[str, Any] = {f"cache/{key}": array for key, array in cache.items()}
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            try:
                np.savez(file, tokens=tokens, digest=np.array(self._digest), **arrays)
                path = self._folder / f"{name}{_SUFFIX}"
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        return path

    def _forget_oldest(self, newest: Path) -> None:
        total = 0
        for path in reversed(self._files()):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
                if total > self._most_bytes and path != newest:
                    path.unlink()
                    self._kept = [kept for kept in self._kept if kept.path != path]
