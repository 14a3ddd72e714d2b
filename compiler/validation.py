"""Checks that options classes make of their values.

Each raises OptionError with the name of the option.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from compiler.errors import OptionError


def require_choice(option: str, value: object, choices: Collection[str]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise OptionError(f"{value}: choose from {', '.join(choices)}", option)


def require_count(option: str, value: object, least: int, most: int | None = None) -> None:
    """`value` is a whole number of at least `least` and, where it is given, at most `most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):  # type: ignore[operator]
        return
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise OptionError(f"{value}: give a whole number {limits}", option)


def require_number(
    option: str, value: object, least: float = -math.inf, most: float = math.inf
) -> None:
    """`value` is a finite number from `least` to `most`."""
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise OptionError(f"{value}: give a finite number", option)
    if not least <= value <= most:
        raise OptionError(f"{value}: give {_range(least, most)}", option)


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return f"a number of at least {least:g}"
    return f"a number from {least:g} to {most:g}"
