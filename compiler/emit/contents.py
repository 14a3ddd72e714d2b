"""Tells whether a folder is a bundle of ours, and which files in it are not the bundle's, so that
nobody deletes them with it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.runtime import schema
from compiler.runtime.bundle import MANIFEST_BYTES
from compiler.runtime.manifest import FILE_NAME, MANIFEST_VERSION, version_complaint

# Files of a bundle that its manifest does not name.
UNNAMED = {FILE_NAME, f".{FILE_NAME}", "report.html"}
COMPILED = re.compile(r"^(?P<segment>.+)-[0-9a-f]{8}_edgetpu\.tflite(\.tmp)?$")
# What the manifests of all versions have had since the first.
_SINCE_EVER = ("model", "target", "tools", "inputs", "outputs", "quality")


def manifest_of(place: Path) -> dict[str, Any]:
    """The manifest of a bundle that this or an older version built. Raises ValueError for anything
    else."""
    file = place / FILE_NAME
    try:
        if file.stat().st_size > MANIFEST_BYTES:
            raise ValueError(f"its {FILE_NAME} is too large")
        manifest = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"it has no {FILE_NAME}") from None
    except OSError as error:
        raise ValueError(f"its {FILE_NAME} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {FILE_NAME} is not ours: {error}") from error
    wrong = _complaint(manifest)
    if wrong is not None:
        raise ValueError(f"in its {FILE_NAME}, {wrong}")
    assert isinstance(manifest, dict)
    return manifest


def _complaint(manifest: Any) -> str | None:
    """Why a manifest cannot be of a bundle that this or an older version built."""
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if type(version) is int and 0 < version < MANIFEST_VERSION:
        return _older_complaint(manifest)
    # What a newer one holds besides its files cannot be known, so it is not replaced.
    return version_complaint(manifest) or schema.complaint(manifest)


def _older_complaint(manifest: Mapping[str, Any]) -> str | None:
    """What a manifest lacks that every version since the first has had."""
    for name in _SINCE_EVER:
        if name not in manifest:
            return f"there is no '{name}'"
    segments = manifest.get("segments")
    if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        return "there are no segments"
    for segment in segments:
        if segment.get("device") not in ("tpu", "host") or not _paths(segment.get("files")):
            return "segments have no files"
    return None


def _paths(value: Any) -> set[str]:
    """Paths of the files that a manifest of any version names in `value`."""
    return set(_each_path(value))


def _each_path(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _each_path(inner)
    elif isinstance(value, dict):
        # Every version names a file by its path and its SHA-256.
        if isinstance(value.get("path"), str) and "sha256" in value:
            yield value["path"]
        for inner in value.values():
            yield from _each_path(inner)


def strangers(place: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What of the folder is not the bundle's, as paths in it."""
    named = _paths(manifest)
    own = named | UNNAMED
    own_folders: set[PurePosixPath] = set()
    for name in own:
        own_folders.update(PurePosixPath(name).parents)
    found = []
    for parent, inner, names in os.walk(place):
        for name in sorted(inner):
            path = PurePosixPath(Path(parent, name).relative_to(place).as_posix())
            if path not in own_folders or Path(parent, name).is_symlink():
                found.append(f"{path}/")
                inner.remove(name)  # so that `walk` does not look into it
        for name in sorted(names):
            file = Path(parent, name).relative_to(place).as_posix()
            if file not in own and not is_leftover(file, named):
                found.append(file)
    return found


def remove_leftovers(place: Path) -> None:
    """Remove compiled files that the manifest does not name."""
    with suppress(OSError, ValueError):
        named = _paths(manifest_of(place))
        for file in (place / "segments").iterdir():
            if is_leftover(file.relative_to(place).as_posix(), named):
                file.unlink()


def is_leftover(file: str, named: Iterable[str]) -> bool:
    """Whether a file is what edgetpu_compiler made of a segment and the manifest does not name, as
    after a kill."""
    found = COMPILED.match(file)
    return found is not None and file not in named and found["segment"] + ".tflite" in named
