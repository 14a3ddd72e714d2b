"""Numbers and names as people read them."""

from __future__ import annotations

_KIB = 1 << 10
_MIB = 1 << 20


def size(number: int) -> str:
    """Bytes: 512 B, 1.5 KiB, 7.88 MiB; nothing for 0."""
    if not number:
        return ""
    if number < _KIB:
        return f"{number} B"
    if number < _MIB:
        return f"{number / _KIB:.1f} KiB"
    return f"{number / _MIB:.2f} MiB"


def brief_size(number: int) -> str:
    """Bytes for a narrow column: 512, 1.5K, 7.9M; nothing for 0."""
    if not number:
        return ""
    if number < _KIB:
        return str(number)
    unit, factor = ("K", _KIB) if number < _MIB else ("M", _MIB)
    amount = number / factor
    return f"{amount:.0f}{unit}" if amount >= 100 else f"{amount:.1f}{unit}"


def count(number: float) -> str:
    """Counts: 512, 1.5 M, 3.9 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(int(number))


def rate(number: float) -> str:
    """A number per second: 2.41, 83.5, 1224."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def figure(decibels: float | None) -> str:
    """A figure in dB; a question mark where it cannot be told."""
    return "?" if decibels is None else f"{decibels:.1f}"


def short(name: str, width: int = 28) -> str:
    """A name of at most `width` characters. A long one keeps its end, which tells more."""
    if len(name) <= width:
        return name
    return "…" + name[-(width - 1) :]


def sentence(text: str) -> str:
    """Text with a capital letter in front."""
    return text[0].upper() + text[1:]
