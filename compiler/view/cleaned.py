"""Names from files, without characters that a terminal or a browser obeys."""

from __future__ import annotations

from typing import Any

from compiler.errors import one_line


def cleaned(data: Any) -> Any:
    """A copy of what JSON can hold, in which control characters of all texts are escaped.

    Among them are those that turn the direction of text, by which a name can show as another.
    """
    if isinstance(data, str):
        return one_line(data)
    if isinstance(data, list | tuple):
        return [cleaned(item) for item in data]
    if isinstance(data, dict):
        return {cleaned(key): cleaned(item) for key, item in data.items()}
    return data
