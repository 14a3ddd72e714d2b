"""Holds a value to a JSON Schema of the kind that manifest.schema.json is; a device has no other
library for it.

Knows type, const, enum, required, properties, additionalProperties, dependentRequired, items,
minItems, minimum, exclusiveMinimum, maximum, pattern and $ref into $defs; a test compares it with
the jsonschema package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "manifest.schema.json"
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@cache
def manifest_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return schema


def complaint(value: Any) -> str | None:
    """Where a manifest does not hold to its schema, and how; None where it does."""
    root = manifest_schema()
    return next(_complaints(value, root, root, "manifest"), None)


def _complaints(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    allowed = schema.get("type")
    if allowed is not None:
        names = [allowed] if isinstance(allowed, str) else allowed
        if not any(_is(value, name) for name in names):
            yield f"{at} is {_shown(value)}, not {' or '.join(names)}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {_shown(value)}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {_shown(value)}, not one of {', '.join(map(repr, schema['enum']))}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{at} is {_shown(value)}, which does not match {schema['pattern']}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from _numbers(value, schema, at)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at} has {len(value)} entries, at least {schema['minItems']} are needed"
        for index, inner in enumerate(value if "items" in schema else ()):
            yield from _complaints(inner, schema["items"], root, f"{at}[{index}]")
    if isinstance(value, dict):
        yield from _objects(value, schema, root, at)


def _numbers(value: float, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        yield f"{at} is {value}, which is out of range"
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        yield f"{at} is {value}, not above {schema['exclusiveMinimum']}"
    if not math.isfinite(value):
        yield f"{at} is {value}, which is no JSON number"


def _objects(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at} has no '{name}'"
    for name, others in schema.get("dependentRequired", {}).items():
        for other in others:
            if name in value and other not in value:
                yield f"{at} has '{name}' but no '{other}'"
    for name, inner in value.items():
        if name in properties:
            yield from _complaints(inner, properties[name], root, f"{at}.{name}")
        elif rest is False:
            yield f"{at} has '{name}', which is unknown"
        elif isinstance(rest, dict):
            yield from _complaints(inner, rest, root, f"{at}.{name}")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
