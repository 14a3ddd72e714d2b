"""Texts of the command line as the values that options classes take. Raises OptionError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.errors import OptionError

if TYPE_CHECKING:
    from compiler import PartitionOptions

Texts = Iterable[str] | None


def dims(texts: Texts) -> dict[str, int]:
    """Of NAME=VALUE."""
    found = {}
    for text in texts or ():
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal():
            raise OptionError(f"{text}: write NAME=VALUE, e.g. batch=1", "dims")
        found[name] = int(value)
    return found


def shapes(texts: Texts) -> dict[str, tuple[int, ...]]:
    """Of INPUT=1,3,224,224."""
    found = {}
    for text in texts or ():
        name, _, value = text.rpartition("=")
        sizes = value.split(",") if value else []
        if not name or not all(size.isdecimal() for size in sizes):
            raise OptionError(f"{text}: write INPUT=1,3,224,224", "shapes")
        found[name] = tuple(int(size) for size in sizes)
    return found


def values(texts: Texts) -> dict[str, str]:
    """Of INPUT=VALUE."""
    found = {}
    for text in texts or ():
        name, _, value = text.rpartition("=")
        if not name or not value:
            raise OptionError(f"{text}: write INPUT=VALUE, e.g. sr=16000", "values")
        found[name] = value
    return found


def state(texts: Texts) -> dict[str, str] | None:
    """Of OUTPUT=INPUT, or "none" alone; None where nothing is given."""
    given = list(texts or ())
    if given in ([], ["none"]):
        return {} if given else None
    found: dict[str, str] = {}
    for text in given:
        output, _, name = text.partition("=")
        if not output or not name:
            raise OptionError(f"{text}: write OUTPUT=INPUT, e.g. stateN=state, or none", "state")
        if output in found or name in found.values():
            raise OptionError(f"{text}: an output and an input are named once each", "state")
        found[output] = name
    return found


def pins(texts: Texts) -> dict[str, Any]:
    """Of NODE=DEVICE."""
    found = {}
    for text in texts or ():
        name, _, device = text.rpartition("=")
        if not name or device not in ("tpu", "host"):
            raise OptionError(f"{text}: write NODE=host or NODE=tpu", "pins")
        found[name] = device
    return found


def quality(texts: Texts) -> dict[str, float] | None:
    """Of FIGURE=VALUE, several with commas; None of "none"."""
    given = ",".join(texts or ())
    if given == "none":
        return None
    found = {}
    for text in given.split(",") if given else ():
        name, _, value = text.partition("=")
        if name in found:
            raise OptionError(f"{text}: {name} is named twice", "quality")
        try:
            found[name] = float(value)
        except ValueError:
            raise OptionError(f"{text}: write FIGURE=VALUE, e.g. sqnr=25", "quality") from None
    return found


def counts(text: str) -> list[int]:
    """Of a number, several with commas, or a range such as 1..8."""
    first, dots, last = text.partition("..")
    parts = [first, last] if dots else text.split(",")
    # Numbers with more digits are refused here, before a range of them is written out.
    if not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise OptionError(
            f"{text}: write a number, several with commas, or a range such as 1..8", "tpus"
        )
    numbers = [int(part) for part in parts]
    if not dots:
        return numbers
    if numbers[0] > numbers[1]:
        raise OptionError(f"{text}: a range goes up, such as {last}..{first}", "tpus")
    return [*range(numbers[0], numbers[1] + 1)]


def names(text: str | None) -> tuple[str, ...]:
    """Of names separated by commas."""
    return () if text is None else tuple(text.split(","))


def floats(option: str, text: str | None) -> tuple[float, ...] | None:
    """Of numbers separated by commas."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{text}: write numbers separated by commas", option) from error


def size(text: str | None) -> tuple[int, int] | None:
    """Of HEIGHT,WIDTH."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"{text}: write HEIGHT,WIDTH", "size")
    return int(parts[0]), int(parts[1])


def rate(text: str | None) -> float | None:
    """Requests per second, written 30/s or 30."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("/s"))
    except ValueError:
        raise OptionError(f"{text}: write requests per second as 30/s", "rate") from None


def partition_options(
    tpus: int,
    objective: str,
    place: str | None,
    host: str,
    pinned: Texts,
    cuts: Sequence[str],
    rate: float | None,
) -> PartitionOptions:
    """The options of the partition, which checks the choices itself."""
    from compiler import PartitionOptions

    return PartitionOptions(
        tpus,
        objective,  # type: ignore[arg-type]  # it checks itself
        place,  # type: ignore[arg-type]
        pins(pinned),
        tuple(cuts),
        host,
        rate=rate,
    )
