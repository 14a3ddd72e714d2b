"""Kinds of fields that a request's JSON object may have, and how their values are checked.

A field that is null counts as one that is not there. Everything here raises FieldError, a
ValueError with one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from compiler.runtime.confined import check_unicode

Body = Mapping[str, Any]


class FieldError(ValueError):
    """What is wrong with the field `name` of a request."""

    def __init__(self, name: str, complaint: str) -> None:
        super().__init__(f"{name}: {complaint}")
        self.name = name


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object of a request, in which every text is Unicode."""
    try:
        text = data.decode("utf-8")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the request is not JSON in UTF-8") from error
    if not isinstance(found, dict):
        raise ValueError("the request is not a JSON object")
    # Half of a surrogate pair is valid JSON, but no text. Only an escape can bring one into UTF-8,
    # so that other requests need not be looked through.
    if "\\ud" in text.lower():
        _check_texts(found)
    return found


def _check_texts(found: dict[str, Any]) -> None:
    try:
        check_unicode(json.dumps(found, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        raise ValueError("the request has half of a surrogate pair, which is no text") from error


def is_given(body: Body, name: str) -> bool:
    return body.get(name) is not None


def refuse_others(body: Body, known: Set[str]) -> None:
    """Refuse fields that are not served: to ignore one would give another answer than was asked
    for. Those that ask for nothing (null, false, 0 or empty) may be there."""
    for name, value in body.items():
        if value and name not in known:
            # A name may be as long as a request.
            raise FieldError(name[:60], "is not supported")


@dataclass(frozen=True)
class NumberField:
    """A number from `least` to `most`."""

    name: str
    default: float
    least: float
    most: float

    def read(self, body: Body) -> float:
        if not is_given(body, self.name):
            return self.default
        value = body[self.name]
        # true is an int to Python.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN lies in no range.
        if not is_number or not self.least <= value <= self.most:
            raise FieldError(self.name, f"a number from {self.least} to {self.most}")
        return float(value)


@dataclass(frozen=True)
class IntegerField:
    """A whole number from `least` to `most`."""

    name: str
    default: int
    least: int
    most: int

    def read(self, body: Body) -> int:
        if not is_given(body, self.name):
            return self.default
        value = body[self.name]
        # Neither true nor 1.0 is meant as a whole number.
        if type(value) is not int or not self.least <= value <= self.most:
            raise FieldError(self.name, f"a whole number from {self.least} to {self.most}")
        return value


@dataclass(frozen=True)
class FlagField:
    """true or false; false where it is not given."""

    name: str

    def read(self, body: Body) -> bool:
        if not is_given(body, self.name):
            return False
        value = body[self.name]
        if not isinstance(value, bool):
            raise FieldError(self.name, "true or false")
        return value


@dataclass(frozen=True)
class ChoiceField:
    """One of some words."""

    name: str
    default: str
    choices: tuple[str, ...]

    def read(self, body: Body) -> str:
        if not is_given(body, self.name):
            return self.default
        value = body[self.name]
        if not isinstance(value, str) or value not in self.choices:
            raise FieldError(self.name, f"{' or '.join(self.choices)}")
        return value


@dataclass(frozen=True)
class TextsField:
    """A text, or a list of up to `most` texts."""

    name: str
    most: int

    def read(self, body: Body) -> list[str]:
        """The texts; none where none are given."""
        if not is_given(body, self.name):
            return []
        value = body[self.name]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise FieldError(self.name, f"a text, or a list of up to {self.most} texts")
        if len(texts) > self.most:
            raise FieldError(
                self.name, f"has {len(texts)} texts; a request may have up to {self.most}"
            )
        return texts
