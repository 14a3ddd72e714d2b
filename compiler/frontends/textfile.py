"""Reads the small text and JSON files beside a model, which strangers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.errors import ModelError, no_file

LARGEST_TEXT = 16 << 20  # bytes


def read_text(path: Path) -> str:
    """The text of a small file. Raises ModelError."""
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {no_file(path)}")
        if path.stat().st_size > LARGEST_TEXT:
            raise ModelError(f"{path}: larger than {LARGEST_TEXT >> 20} MiB")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as text: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return found


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; nothing where there is no such file."""
    return read_json(path) if path.is_file() else {}
