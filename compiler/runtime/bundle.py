"""Reads a bundle's manifest and makes sure that its files are those that were built."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from compiler.runtime import consistency, folders, schema
from compiler.runtime.held import HeldFolder
from compiler.runtime.manifest import (
    FILE_NAME,
    FileEntry,
    Manifest,
    ProgramEntry,
    TensorEntry,
    version_complaint,
)

# A larger file is not read: it would fill the memory before anything could be said of it.
MANIFEST_BYTES = 64 << 20


class RuntimeBundleError(Exception):
    """The bundle is damaged, edited, of another version, or no longer where it was opened."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, which a `Runner` or a `LanguageModel` runs.

        bundle = Bundle.open("model.bundle")

    path      its folder
    manifest  what its manifest.json holds (docs/manifest.md), checked
    """

    path: Path
    manifest: Manifest
    # The folder that the manifest was read from, whatever comes to stand at `path` later. None
    # where the manifest was not read but made, for segments that are run before they are a bundle.
    folder: HeldFolder | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, check: bool = True) -> Bundle:
        """Read a bundle's manifest; with `check`, compare every file with its sha256 too, which
        reads all of them.

        Raises RuntimeBundleError for a folder that is no bundle, a manifest of another version or
        whose parts do not fit together, and a file that is missing or changed.
        """
        path = Path(path)
        folder = _identity(path)
        try:
            return cls._read(path, check)
        except RuntimeBundleError:
            if _identity(path) == folder:
                raise
        return cls.open(path, check)  # a build replaced it as we read

    @classmethod
    def _read(cls, path: Path, check: bool) -> Bundle:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise RuntimeBundleError(
                f"{path}: is not UTF-8, which onnxruntime needs of names: rename it"
            ) from error
        file = path / FILE_NAME
        if not file.is_file():
            restore(path)
        # Taken before the manifest is read, so that both are of the same bundle.
        folder = HeldFolder(path)
        bundle = cls(path, _checked_manifest(file), folder)
        if check:
            for entry in bundle.files():
                bundle._check(entry)
        return bundle

    def programs(self) -> dict[str, ProgramEntry]:
        """All programs by name: the manifest's own as "", those of a language model by theirs."""
        found: dict[str, ProgramEntry] = {"": self.manifest}
        language = self.manifest.get("language")
        if language is not None:
            found |= language["programs"]
        return found

    def paths(self) -> list[Path]:
        """The manifest and all files, which no output may replace."""
        names = ["manifest.json", *(entry["path"] for entry in self.files())]
        return [self.path / name for name in names]

    def files(self) -> list[FileEntry]:
        """Every file of the bundle: path, sha256, bytes."""
        return list({entry["path"]: entry for entry in self._files()}.values())

    def _files(self) -> Iterator[FileEntry]:
        for program in self.programs().values():
            for segment in program["segments"]:
                yield from segment["files"]
        tokenizer = self.manifest.get("tokenizer")
        if tokenizer is not None:
            yield tokenizer
        language = self.manifest.get("language")
        if language is not None:
            yield language["tokenizer"]

    def _check(self, entry: FileEntry) -> None:
        try:
            file = (self.path / entry["path"]).resolve()
            if not file.is_relative_to(self.path.resolve()):
                raise RuntimeBundleError(f"{self.path}: '{entry['path']}' lies outside the bundle")
            if not file.is_file():
                raise RuntimeBundleError(f"{file}: missing: build the bundle again")
            if file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
                raise RuntimeBundleError(
                    f"{file}: changed since the bundle was built: build the bundle again"
                )
        except (OSError, RuntimeError) as error:
            raise RuntimeBundleError(
                f"{self.path}: '{entry['path']}' cannot be read: {error}"
            ) from error


def _checked_manifest(file: Path) -> Manifest:
    """The manifest in a file, of our version, true to its schema and of parts that fit together.
    Raises RuntimeBundleError."""
    if not file.is_file():
        raise RuntimeBundleError(f"{file.parent}: not a bundle: it has no {FILE_NAME}")
    if file.stat().st_size > MANIFEST_BYTES:
        raise RuntimeBundleError(
            f"{file}: larger than {MANIFEST_BYTES >> 20} MiB, so not a manifest"
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RuntimeBundleError(
            f"{file}: not a manifest ({error}): build the bundle again"
        ) from error
    except OSError as error:
        raise RuntimeBundleError(f"{file}: cannot be read: {error.strerror}") from error
    other_version = version_complaint(manifest)
    if other_version is not None:
        raise RuntimeBundleError(f"{file}: {other_version}")
    # What fits together is asked only of what the schema has found to be there.
    wrong = schema.complaint(manifest) or consistency.complaint(cast(Manifest, manifest))
    if wrong is not None:
        raise RuntimeBundleError(f"{file}: {wrong}: build the bundle again")
    return cast(Manifest, manifest)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def restore(path: Path) -> None:
    """Put the old bundle back where a build was killed as it replaced it. Raises
    RuntimeBundleError."""
    place = Path(os.path.realpath(path))
    try:
        folders.restore(place)
    except OSError as error:
        old = folders.beside(place, folders.BUILDING) / folders.OLD
        raise RuntimeBundleError(
            f"{path}: a build was killed as it replaced it: {old} cannot be put back: "
            f"{error.strerror}"
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_bytes(tensors: Sequence[TensorEntry]) -> int:
    """Bytes of tensors at a boundary; shapes that depend on data, and types that numpy has not,
    count as nothing."""
    return sum(_tensor_bytes(tensor) for tensor in tensors)


def _tensor_bytes(tensor: TensorEntry) -> int:
    dtype = np.sctypeDict.get(tensor["dtype"])
    shape = tensor["shape"]
    if dtype is None or shape is None:
        return 0
    count = np.prod([size or 0 for size in shape])
    return int(count) * np.dtype(dtype).itemsize
