"""What clients may know of the model that a server has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from compiler.runtime.bundle import Bundle
from compiler.runtime.manifest import FILE_NAME, WRITER

_UNKNOWN = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class ModelCard:
    """A model as lists of models have it.

    title:    as the model calls itself; empty where it does not
    bytes:    of all files of its bundle
    digest:   sha256 of the bundle's manifest, which has those of all files
    modified: when the bundle was written
    version:  of the program that built the bundle
    context:  tokens that a text may have; None where it is not a language model
    template: of conversations, in Jinja; empty where the model has none
    """

    title: str = ""
    bytes: int = 0
    digest: str = ""
    modified: datetime = _UNKNOWN
    version: str = ""
    context: int | None = None
    template: str = ""

    @classmethod
    def of(cls, bundle: Bundle) -> ModelCard:
        """The card of a bundle on disk."""
        file = bundle.path / FILE_NAME
        language = bundle.manifest.get("language")
        return cls(
            title=language["name"] if language else "",
            bytes=sum(entry["bytes"] for entry in bundle.files()),
            digest=hashlib.sha256(file.read_bytes()).hexdigest(),
            modified=datetime.fromtimestamp(file.stat().st_mtime, UTC),
            version=bundle.manifest["tools"].get(WRITER, ""),
            context=language["context"] if language else None,
            template=language["tokenizer"]["chat_template"] or "" if language else "",
        )
