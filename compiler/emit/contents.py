"""What a folder holds: whether it is a bundle of ours, and what in it is not the bundle's and must
not be deleted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.runtime import schema
from compiler.runtime.bundle import MANIFEST_BYTES, MANIFEST_VERSION

# Files of a bundle that its manifest does not name.
UNNAMED = {"manifest.json", ".manifest.json", "report.html"}
COMPILED = re.compile(r"^(?P<segment>.+)-[0-9a-f]{8}_edgetpu\.tflite(\.tmp)?$")


def manifest_of(place: Path) -> dict[str, Any]:
    """The manifest of a bundle that this or an older version built. Raises ValueError for anything
    else."""
    file = place / "manifest.json"
    try:
        if file.stat().st_size > MANIFEST_BYTES:
            raise ValueError("its manifest.json is too large")
        manifest = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError("it has no manifest.json") from None
    except OSError as error:
        raise ValueError(f"its manifest.json cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its manifest.json is not ours: {error}") from error
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if version == MANIFEST_VERSION:
        wrong = schema.complaint(manifest)
    elif type(version) is int and 0 < version < MANIFEST_VERSION:
        wrong = _older_complaint(manifest)
    else:
        wrong = f"manifest_version is {version!r}, not up to {MANIFEST_VERSION}"
    if wrong is not None:
        raise ValueError(f"its manifest.json is not ours: {wrong}")
    assert isinstance(manifest, dict)
    return manifest


def _older_complaint(manifest: Mapping[str, Any]) -> str | None:
    """What a manifest lacks that every version since the first has had."""
    missing = [
        name
        for name in ("model", "target", "tools", "inputs", "outputs", "quality")
        if name not in manifest
    ]
    if missing:
        return f"it has no '{missing[0]}'"
    segments = manifest.get("segments")
    if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        return "it has no segments"
    if not all(
        s.get("device") in ("tpu", "host") and _file_entries(s.get("files")) for s in segments
    ):
        return "its segments have no files"
    return None


def _file_entries(value: Any) -> set[str]:
    """Paths of the files that a manifest of any version names in `value`."""
    if isinstance(value, list):
        return set().union(*map(_file_entries, value))
    if not isinstance(value, dict):
        return set()
    own = {value["path"]} if isinstance(value.get("path"), str) and "sha256" in value else set()
    return own.union(*map(_file_entries, value.values()))


def strangers(place: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What of the folder is not the bundle's, as paths in it."""
    named = _file_entries(manifest)
    own = named | UNNAMED
    own_folders = {parent for name in own for parent in PurePosixPath(name).parents}
    found = []
    for parent, inner, names in os.walk(place):
        for name in sorted(inner):
            path = PurePosixPath(Path(parent, name).relative_to(place).as_posix())
            if path not in own_folders or Path(parent, name).is_symlink():
                found.append(f"{path}/")
                inner.remove(name)
        for name in sorted(names):
            file = Path(parent, name).relative_to(place).as_posix()
            if file not in own and not is_leftover(file, named):
                found.append(file)
    return found


def remove_leftovers(place: Path) -> None:
    """Remove compiled files that the manifest does not name."""
    with suppress(OSError, ValueError):
        named = _file_entries(manifest_of(place))
        for file in (place / "segments").iterdir():
            if is_leftover(file.relative_to(place).as_posix(), named):
                file.unlink()


def is_leftover(file: str, named: Iterable[str]) -> bool:
    """Whether a file is what edgetpu_compiler made of a segment and the manifest does not name, as
    after a kill."""
    found = COMPILED.match(file)
    return found is not None and file not in named and found["segment"] + ".tflite" in named
