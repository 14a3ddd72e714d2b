"""The plan as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.view.cleaned import cleaned

REPORT = "report.html"
_TEMPLATE = Path(__file__).parent / "page.html"
_DATA_ENDS = "</script>"


def page(plan: Mapping[str, Any]) -> str:
    """A plan or a manifest as HTML that needs no network."""
    data = json.dumps(cleaned(plan), ensure_ascii=False, sort_keys=True)
    # A name in the data must not end the element that the data stand in.
    safe = data.replace("<", "\\u003c")
    template = _TEMPLATE.read_text(encoding="utf-8")
    return template.replace(f"DATA{_DATA_ENDS}", safe + _DATA_ENDS, 1)


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the page of a bundle into its folder."""
    (folder / REPORT).write_text(page(manifest), encoding="utf-8")
