"""Reads a bundle's manifest and makes sure that its files are those that were built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime import schema

MANIFEST_VERSION = 5
MANIFEST_BYTES = 256 << 20


class RuntimeBundleError(Exception):
    """The bundle is damaged, edited or made by another version."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its manifest (docs/manifest.md)."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, check: bool = True) -> Bundle:
        """Read the manifest; with `check`, compare every file with its sha256. Raises
        RuntimeBundleError."""
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise RuntimeBundleError(f"{path}: not a bundle: it has no manifest.json")
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
        version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
        if version != MANIFEST_VERSION:
            raise RuntimeBundleError(
                f"{file}: manifest version {version!r}, this runtime reads {MANIFEST_VERSION}: build the bundle again"
            )
        wrong = schema.complaint(manifest)
        if wrong is not None:
            raise RuntimeBundleError(f"{file}: {wrong}: build the bundle again")
        bundle = cls(path, manifest)
        for program in bundle.programs().values():
            wrong = _broken(program)
            if wrong is not None:
                raise RuntimeBundleError(f"{file}: {wrong}: build the bundle again")
        if check:
            for entry in bundle.files():
                bundle._check(entry["path"], entry["sha256"])
        return bundle

    def programs(self) -> dict[str, Mapping[str, Any]]:
        """All programs by name: the manifest's own as "", those of a language model by theirs."""
        language = self.manifest.get("language")
        return {"": self.manifest, **(language["programs"] if language else {})}

    def files(self) -> list[dict[str, Any]]:
        """Every file of the bundle: path, sha256, bytes."""
        entries = [
            e
            for program in self.programs().values()
            for s in program["segments"]
            for e in s["files"]
        ]
        tokenizers = [
            self.manifest.get("tokenizer"),
            self.manifest.get("language", {}).get("tokenizer"),
        ]
        return list(
            {e["path"]: e for e in [*entries, *(t for t in tokenizers if t is not None)]}.values()
        )

    def _check(self, name: str, digest: str) -> None:
        file = (self.path / name).resolve()
        if not file.is_relative_to(self.path.resolve()):
            raise RuntimeBundleError(f"{self.path}: '{name}' lies outside the bundle")
        if not file.is_file():
            raise RuntimeBundleError(f"{file}: missing: build the bundle again")
        if sha256(file) != digest:
            raise RuntimeBundleError(
                f"{file}: changed since the bundle was built: build the bundle again"
            )


def _broken(program: Mapping[str, Any]) -> str | None:
    """What of a program does not fit together, which its schema cannot say."""
    known = {t["name"] for t in program["inputs"]}
    for number, segment in enumerate(program["segments"]):
        compiled = segment["compiled"]
        if segment["index"] != number:
            return f"segment {number} has index {segment['index']}"
        if (segment["device"] == "tpu") != (segment["tpu"] is not None):
            return (
                f"segment {number} is for the {segment['device']}, but its tpu is {segment['tpu']}"
            )
        if compiled is not None and compiled["path"] not in [e["path"] for e in segment["files"]]:
            return f"the compiled file of segment {number} is not among its files"
        for tensor in segment["inputs"]:
            if tensor["name"] not in known:
                return f"segment {number} reads '{tensor['name']}', which nothing before it makes"
        known |= {t["name"] for t in segment["outputs"]}
    lost = [t["name"] for t in program["outputs"] if t["name"] not in known]
    return f"nothing makes the output '{lost[0]}'" if lost else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_bytes(tensors: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of tensors at a border; shapes that depend on data, and types that numpy has not, count
    as nothing."""
    return sum(
        int(np.prod([d or 0 for d in t["shape"] or (0,)]))
        * np.dtype(np.sctypeDict[t["dtype"]]).itemsize
        for t in tensors
        if t["dtype"] in np.sctypeDict
    )
