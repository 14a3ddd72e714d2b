"""The plan as one self-contained page, which is part of every bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import one_line

REPORT = "report.html"
_TEMPLATE = Path(__file__).parent / "report.html"
_DATA_ENDS = "</script>"


def page(plan: Mapping[str, Any], sights: Sequence[Mapping[str, str]] = ()) -> str:
    """A plan or a manifest as HTML that needs no network. `sights` are pairs of pictures as data
    URIs, of what the float model says and of what the bundle says."""
    data = json.dumps(_cleaned({**plan, "sights": sights}), ensure_ascii=False, sort_keys=True)
    # A name in the data must not end the element that the data stand in.
    safe = data.replace("<", "\\u003c")
    template = _TEMPLATE.read_text(encoding="utf-8")
    return template.replace(f"DATA{_DATA_ENDS}", safe + _DATA_ENDS, 1)


def write(
    folder: Path, manifest: Mapping[str, Any], sights: Sequence[Mapping[str, str]] = ()
) -> None:
    """Write the page of a bundle into its folder."""
    (folder / REPORT).write_text(page(manifest, sights), encoding="utf-8")


def _cleaned(data: Any) -> Any:
    """A copy of what JSON can hold, in which control characters of all texts are escaped.

    Names come from files. Among the characters are those that turn the direction of text, by which
    a name can show as another.
    """
    if isinstance(data, str):
        return one_line(data)
    if isinstance(data, list | tuple):
        return [_cleaned(item) for item in data]
    if isinstance(data, dict):
        return {_cleaned(key): _cleaned(item) for key, item in data.items()}
    return data
