"""Reads the TOML files of targets and hosts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import OptionError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """An Edge TPU on its link: sizes in bytes, times in seconds, rates per second. Sources stand in
    the TOML files.

    `conv`, `pointwise`, `depthwise`, `dense` (multiply-accumulates) and `vector` (elements) are
    rates per clock cycle.
    """

    name: str
    description: str
    tiles: int
    tile_bytes: int
    block_outputs: int
    output_multiple: int
    input_multiple: int
    spatial_bytes: int
    sram_bytes: int
    activation_share: float
    activation_bytes: int
    softmax_elements: int
    open_dimensions: int
    kernel_size: int
    mean_positions: int
    clock: float
    conv: float
    pointwise: float
    depthwise: float
    dense: float
    vector: float
    pass_bytes: int
    invoke: float
    operator: float
    slowdown: float
    down: float
    up: float
    stream: float
    error_percent: float

    @classmethod
    def load(cls, name: str = "usb3") -> Target:
        """A shipped target by name, or a TOML file by path. Raises OptionError.

        A file that names a `chip` takes from chips/CHIP.toml what it does not say itself.
        """
        own = _read("target", name, _FOLDER)
        chip = own.pop("chip", None)
        shared = _read("target", str(chip), _FOLDER / "chips") if chip else {}
        return _made(cls, "target", name, shared | own)


@dataclass(frozen=True)
class Host:
    """The CPU beside: float multiply-accumulates and bytes of memory per second, seconds for each
    operator."""

    name: str
    description: str
    macs: float
    bytes: float
    operator: float

    @classmethod
    def load(cls, name: str = "pi5") -> Host:
        """A shipped host by name, or a TOML file as `measure` writes it. Raises OptionError."""
        return _made(cls, "host", name, _read("host", name, _FOLDER / "hosts"))


def _read(option: str, name: str, folder: Path) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise OptionError(
            f"{name}: no such file; shipped are: {shipped}; or give a .toml file", option
        )
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{name}: {error}", option) from error
    inner = [value for value in table.values() if isinstance(value, dict)]
    flat = {key: value for key, value in table.items() if not isinstance(value, dict)}
    return flat | {key: value for group in inner for key, value in group.items()}


def _made(cls: Any, option: str, name: str, table: Mapping[str, Any]) -> Any:
    for key, value in table.items():
        text = key in ("name", "description")
        if not (isinstance(value, str) if text else _is_number(value)):
            kind = "text" if text else "a number"
            raise OptionError(f"{name}: {key} = {value!r}; it must be {kind}", option)
    try:
        return cls(**table)
    except TypeError as error:
        raise OptionError(
            f"{name}: {error}; compare with the files in compiler/targets/", option
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
