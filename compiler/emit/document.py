"""Brings manifest.schema.json and the tables of docs/manifest.md up to date with
compiler/runtime/manifest.py: `python -m compiler.emit.document`. A test fails where they are not.
"""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

from compiler.runtime import manifest, schema

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "manifest.md"

_TABLE = re.compile(r"<!-- fields of (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_SCALARS = {str: "text", int: "integer", float: "number", bool: "true or false"}


def schema_text() -> str:
    """The content of manifest.schema.json."""
    return json.dumps(schema.manifest_schema(), indent=1, ensure_ascii=False) + "\n"


def page_text(page: str) -> str:
    """The page with the table between each pair of marks made anew; the prose around stays."""
    return _TABLE.sub(lambda found: _marked(found[1]), page)


def documented(page: str) -> set[str]:
    """Names of the entries whose tables are in the page."""
    return set(_TABLE.findall(page))


def entries() -> set[str]:
    """Names of all entries that a manifest is made of."""
    found: set[str] = set()
    _reach(manifest.Manifest, found)
    return found


def entry_type(name: str) -> type:
    """The TypedDict of that name."""
    found: type = getattr(manifest, name)
    return found


def _reach(hint: Any, found: set[str]) -> None:
    """Add the names of the TypedDicts in a type, and of those in their fields."""
    if not is_typeddict(hint):
        for inner in get_args(hint):
            _reach(inner, found)
    elif hint.__name__ not in found:
        found.add(hint.__name__)
        for field in schema.fields(hint).values():
            _reach(field.kind, found)


def _marked(name: str) -> str:
    table = _table(entry_type(name))
    return f"<!-- fields of {name} -->\n{table}\n<!-- end -->"


def _table(entry: type) -> str:
    rows = ["| field | form | meaning |", "|---|---|---|"]
    for name, field in schema.fields(entry).items():
        form = _form(field.kind, field.limits)
        if not field.is_required:
            form += ", optional"
        rows.append(f"| `{name}` | {form} | {field.text} |")
    return "\n".join(rows)


def _form(hint: Any, limits: manifest.Limits) -> str:
    """A type in words, with its limits."""
    kind, own, _ = schema.annotated(hint)
    if get_origin(kind) in (Union, types.UnionType):
        choices = get_args(kind)
        forms = [_form(choice, limits) for choice in choices if choice is not types.NoneType]
        if types.NoneType in choices:
            forms.append("null")
        return " or ".join(forms)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        inner = _form(get_args(kind)[0], manifest.Limits())
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if get_origin(kind) is dict:
        return f"{_form(get_args(kind)[1], manifest.Limits())} by name"
    if kind in _SCALARS:
        return _SCALARS[kind] + _range(own if limits == manifest.Limits() else limits)
    return _link(kind)


def _range(limits: manifest.Limits) -> str:
    """Limits of a number that a reader wants to know; those that only keep overflow away are left
    out."""
    if limits.const is not None:
        return f" {limits.const}"
    if limits.above is not None:
        return f" > {limits.above:g}"
    if limits.minimum is None or limits.minimum != int(limits.minimum):
        return ""
    small = limits.maximum is not None and limits.maximum < 1 << 10
    return f" {limits.minimum} to {limits.maximum}" if small else f" >= {limits.minimum}"


def _link(entry: type) -> str:
    """A link to the heading of an entry: its name in words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", entry.__name__.removesuffix("Entry")).lower()
    return f"[{words}](#{words.replace(' ', '-')})"


def main() -> None:
    schema.SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(page_text(PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
