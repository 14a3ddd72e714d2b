"""Reads a bundle's manifest and makes sure that its files are those that were built."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_VERSION = 3


class RuntimeBundleError(Exception):
    """The bundle is damaged, edited or made by another version."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its manifest (docs/manifest.md)."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, check: bool = True) -> Bundle:
        """Read the manifest; with `check`, compare every file with its sha256. Raises RuntimeBundleError."""
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise RuntimeBundleError(f"{path}: not a bundle: it has no manifest.json")
        try:
            manifest = json.loads(file.read_text("utf-8"))
            version = manifest["manifest_version"]
            segments = manifest["segments"]
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeBundleError(f"{file}: not a manifest ({error}): build the bundle again") from error
        if version != MANIFEST_VERSION:
            raise RuntimeBundleError(
                f"{file}: manifest version {version}, this runtime reads {MANIFEST_VERSION}: build the bundle again"
            )
        bundle = cls(path, manifest)
        if check:
            language, entries = manifest.get("language"), [manifest.get("tokenizer")]
            if language:
                segments = [*segments, *(s for p in language["programs"].values() for s in p["segments"])]
                entries.append(language["tokenizer"])
            entries += [e for s in segments for e in s["files"]]
            files = {e["path"]: e["sha256"] for e in entries if e is not None}
            for name, digest in files.items():
                bundle._check(name, digest)
        return bundle

    def _check(self, name: str, digest: str) -> None:
        file = (self.path / name).resolve()
        if not file.is_relative_to(self.path.resolve()):
            raise RuntimeBundleError(f"{self.path}: '{name}' lies outside the bundle")
        if not file.is_file():
            raise RuntimeBundleError(f"{file}: missing: build the bundle again")
        if sha256(file) != digest:
            raise RuntimeBundleError(f"{file}: changed since the bundle was built: build the bundle again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
