"""Makes the JSON Schema of manifests from their types, and holds manifests to it; a device has no
other library for it.

The checker knows type, const, enum, required, properties, additionalProperties, dependentRequired,
items, minItems, maxItems, minimum, exclusiveMinimum, maximum, pattern and $ref into $defs. A test
compares it with the jsonschema package. It is stricter with numbers: 1.0 is no integer, and none is
larger than 64 bits hold.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from compiler.runtime.manifest import Limits, Manifest

Schema = dict[str, Any]

# The same schema as a file, for other tools; `python -m compiler.emit.document` writes it.
SCHEMA = Path(__file__).parent / "manifest.schema.json"

_LARGEST = 1 << 63
_MOST_SHOWN = 60
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SCALARS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
}
# JSON Schema's word for each of our limits.
_WORDS = {
    "pattern": "pattern",
    "minimum": "minimum",
    "above": "exclusiveMinimum",
    "maximum": "maximum",
    "least": "minItems",
    "most": "maxItems",
    "const": "const",
}


@cache
def manifest_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a manifest, with every TypedDict in `$defs`."""
    definitions: dict[str, Schema] = {}
    whole = _object(Manifest, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Bundle manifest",
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


@dataclass(frozen=True)
class Field:
    """A field of a TypedDict; `kind` is its type without annotations, `text` its documentation."""

    kind: Any
    limits: Limits
    text: str
    is_required: bool


def fields(entry: Any) -> dict[str, Field]:
    """The fields of a TypedDict by name, those of its bases first."""
    found = {}
    for name, hint in get_type_hints(entry, include_extras=True).items():
        # Classes with total=False have fields that may be absent without a word at the field.
        is_required = name in entry.__required_keys__
        bare = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        kind, limits, text = annotated(bare)
        found[name] = Field(kind, limits, text, is_required)
    return found


def annotated(hint: Any) -> tuple[Any, Limits, str]:
    """(type, limits, documentation) of a hint; empty ones where it is not `Annotated`."""
    if get_origin(hint) is not Annotated:
        return hint, Limits(), ""
    kind, *notes = get_args(hint)
    limits = Limits()
    text = ""
    for note in notes:
        if isinstance(note, Limits):
            limits = _joined(limits, note)
        else:
            text = note
    return kind, limits, text


def _joined(limits: Limits, further: Limits) -> Limits:
    """Both limits; where both set one, the later wins."""
    changed = {name: value for name, value in vars(further).items() if value not in (None, ())}
    return replace(limits, **changed)


def _object(entry: type, definitions: dict[str, Schema]) -> Schema:
    """The schema of a TypedDict; those within it are added to the definitions."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    dependent: dict[str, list[str]] = {}
    for name, field in fields(entry).items():
        properties[name] = _schema(field.kind, field.limits, definitions)
        if field.is_required:
            required.append(name)
        if field.limits.beside is not None:
            dependent[name] = [field.limits.beside]
    found: Schema = {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }
    if dependent:
        found["dependentRequired"] = dependent
    return found


def _schema(hint: Any, limits: Limits, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type that is a scalar, a literal, a list, a dict, a TypedDict, one of these
    or None, or one of several TypedDicts."""
    kind, own, _ = annotated(hint)
    limits = _joined(own, limits)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        choices = get_args(kind)
        if types.NoneType in choices:
            return _nullable(kind, limits, definitions)
        return {"anyOf": [_schema(choice, Limits(), definitions) for choice in choices]}
    if origin is Literal:
        return _literal(get_args(kind))
    if origin is list:
        items = _schema(get_args(kind)[0], Limits(), definitions)
        return {"type": "array", "items": items} | _words(limits)
    if origin is dict:
        values = _schema(get_args(kind)[1], Limits(), definitions)
        required = {"required": list(limits.keys)} if limits.keys else {}
        return {"type": "object", **required, "additionalProperties": values}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]} | _words(limits)
    definitions.setdefault(kind.__name__, _object(kind, definitions))
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _nullable(kind: Any, limits: Limits, definitions: dict[str, Schema]) -> Schema:
    """The schema of `kind | None`: that of the kind, whose type may be null too."""
    (inner,) = (choice for choice in get_args(kind) if choice is not types.NoneType)
    # A reference cannot be widened, so a TypedDict stands here itself.
    found = (
        _object(inner, definitions) if is_typeddict(inner) else _schema(inner, limits, definitions)
    )
    if "enum" in found:
        return {"enum": [*found["enum"], None]}
    return found | {"type": [found["type"], "null"]}


def _literal(choices: tuple[Any, ...]) -> Schema:
    return {"const": choices[0]} if choices == (True,) else {"enum": list(choices)}


def _words(limits: Limits) -> Schema:
    """What JSON Schema says of limits."""
    found = {}
    for name, word in _WORDS.items():
        value = getattr(limits, name)
        if value is not None:
            found[word] = value
    return found


def complaint(value: Any) -> str | None:
    """Where a manifest does not hold to its schema, and how; None where it does."""
    root = manifest_schema()
    return next(_complaints(value, root, root, "manifest"), None)


def _complaints(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        yield from _complaints_of_all(value, schema["anyOf"], root, at)
        return
    wrong_type = _wrong_type(value, schema, at)
    if wrong_type is not None:
        yield wrong_type
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
        yield from _lists(value, schema, root, at)
    if isinstance(value, dict):
        yield from _objects(value, schema, root, at)


def _complaints_of_all(
    value: Any, choices: Sequence[Mapping[str, Any]], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    """Those of the first choice, where the value holds to none."""
    found = [list(_complaints(value, choice, root, at)) for choice in choices]
    if all(found):
        yield from found[0]


def _wrong_type(value: Any, schema: Mapping[str, Any], at: str) -> str | None:
    allowed = schema.get("type")
    if allowed is None:
        return None
    names = [allowed] if isinstance(allowed, str) else allowed
    if any(_is(value, name) for name in names):
        return None
    return f"{at} is {_shown(value)}, not {' or '.join(names)}"


def _numbers(value: float, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        yield f"{at} is {_shown(value)}, which is out of range"
        return
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        yield f"{at} is {value}, which is out of range"
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        yield f"{at} is {value}, not above {schema['exclusiveMinimum']}"
    if not math.isfinite(value):
        yield f"{at} is {value}, which is no JSON number"


def _lists(
    value: list[Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{at} has {len(value)} entries, at least {schema['minItems']} are needed"
    if len(value) > schema.get("maxItems", len(value)):
        # One line for a list of any length: what is in it is not looked at.
        yield f"{at} has {len(value)} entries, at most {schema['maxItems']} are read"
        return
    if "items" not in schema:
        return
    for index, inner in enumerate(value):
        yield from _complaints(inner, schema["items"], root, f"{at}[{index}]")


def _objects(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
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
    return isinstance(value, _TYPES[name])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
