"""Reads a bundle's manifest and makes sure that its files are those that were built."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime import folders, schema
from compiler.runtime.held import HeldFolder

MANIFEST_VERSION = 6
MANIFEST_BYTES = 64 << 20
# Bytes of an input of a program, and of a tensor of a language model's cache.
INPUT_BYTES = 4 << 30
_INPUT_TYPES = {"bool", "float16", "float32", "float64"} | {
    f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)
}


class RuntimeBundleError(Exception):
    """The bundle is damaged, edited or made by another version."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its manifest (docs/manifest.md)."""

    path: Path
    manifest: dict[str, Any]
    folder: HeldFolder = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, check: bool = True) -> Bundle:
        """Read the manifest; with `check`, compare every file with its sha256. Raises
        RuntimeBundleError."""
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
        file = path / "manifest.json"
        if not file.is_file():
            restore(path)
        # From before the manifest is read: whatever comes to stand there later is another bundle.
        folder = HeldFolder(path)
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
        bundle = cls(path, manifest, folder)
        language = manifest.get("language")
        wrongs = [_broken(program) for program in bundle.programs().values()]
        wrongs += [
            _broken_cache(program, language is not None) for program in bundle.programs().values()
        ]
        wrongs.append(None if language is None else _broken_language(manifest, language))
        for wrong in wrongs:
            if wrong is not None:
                raise RuntimeBundleError(f"{file}: {wrong}: build the bundle again")
        if check:
            for entry in bundle.files():
                bundle._check(entry)
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

    def _check(self, entry: Mapping[str, Any]) -> None:
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
            f"{path}: a build was killed as it replaced it: {old} cannot be put back: {error.strerror}"
        ) from error


def _broken(program: Mapping[str, Any]) -> str | None:
    """What of a program does not fit together, which its schema cannot say."""
    known = {t["name"] for t in program["inputs"]}
    for tensor in program["inputs"]:
        if (
            tensor["dtype"] not in _INPUT_TYPES
            or tensor["shape"] is None
            or None in tensor["shape"]
        ):
            return f"input '{tensor['name']}' is {tensor['dtype']} {tensor['shape']}, not numbers of a fixed shape"
        if math.prod(tensor["shape"]) * np.dtype(tensor["dtype"]).itemsize > INPUT_BYTES:
            return (
                f"input '{tensor['name']}' {tensor['shape']} has more than {INPUT_BYTES >> 20} MiB"
            )
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


def _broken_cache(program: Mapping[str, Any], language: bool) -> str | None:
    """What is wrong with outputs that are written to where an input lies; only language models have
    any."""
    inputs = {t["name"]: t for t in program["inputs"]}
    outputs = {t["name"]: t for t in program["outputs"]}
    for number, segment in enumerate(program["segments"]):
        pairs = segment.get("in_place", {})
        if pairs and (not language or segment["device"] != "host"):
            return (
                f"segment {number} writes in place, which only host segments of language models do"
            )
        if len(set(pairs.values())) < len(pairs):
            return f"segment {number} writes two outputs to the same place"
        reads = {t["name"] for t in segment["inputs"]}
        gives = {t["name"] for t in segment["outputs"]}
        for output, source in pairs.items():
            known = source in inputs and source in reads and output in outputs and output in gives
            if not known or _form(inputs[source]) != _form(outputs[output]):
                return f"segment {number} cannot write '{output}' to where '{source}' lies"
    return None


def _form(tensor: Mapping[str, Any]) -> tuple[Any, ...]:
    return tensor["dtype"], tensor["shape"], tensor.get("scale"), tensor.get("zero_point")


def _broken_language(manifest: Mapping[str, Any], language: Mapping[str, Any]) -> str | None:
    """What of a language model does not fit together."""
    if language["slots"] > 1 and "batch" not in language["programs"]:
        return f"it has {language['slots']} slots and no program for them"
    logits = manifest["outputs"][0]["shape"]
    if not logits or logits[-1] is None:
        return f"its logits have shape {logits}"
    tokens = [language["tokenizer"]["begin"], *language["tokenizer"]["ends"]]
    if any(token is not None and token >= logits[-1] for token in tokens):
        return (
            f"token {max(token for token in tokens if token is not None)} is none of {logits[-1]}"
        )
    return None


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
