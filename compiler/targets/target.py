"""Reads the TOML files of targets and hosts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compiler.errors import OptionError, no_file

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """An Edge TPU on its link: sizes in bytes, times in seconds, rates per second. Sources stand in
    the TOML files.

    `conv`, `pointwise`, `depthwise`, `dense` (multiply-accumulates), `vector` and `broadcast`
    (elements) are rates per clock cycle.
    """

    name: str
    description: str
    # Where parameters are stored.
    tiles: int
    tile_bytes: int
    block_outputs: int
    output_multiple: int
    input_multiple: int
    layer_multiple: int
    block_positions: int
    activation_bytes: int
    # What operators may have.
    softmax_elements: int
    softmax_row: int
    softmax_rows_elements: int
    transposed_elements: int
    line_elements: int
    reshaped_elements: int
    joined_elements: int
    interpolated_elements: int
    open_dimensions: int
    kernel_size: int
    mean_positions: int
    # How fast it is.
    clock: float
    conv: float
    pointwise: float
    depthwise: float
    dense: float
    vector: float
    broadcast: float
    pass_bytes: int
    invoke: float
    operator: float
    slowdown: float
    # How fast its link is.
    down: float
    up: float
    stream: float
    # How far predictions are off.
    error_percent: float

    @property
    def sram_bytes(self) -> int:
        """Memory for parameters, where no activations need any."""
        return self.tiles * self.tile_bytes

    @classmethod
    def load(cls, name: str = "usb3") -> Target:
        """A shipped target by name, or a TOML file by path. Raises OptionError.

        A file that names a `chip` takes from chips/CHIP.toml what it does not say itself.
        """
        table = _read("target", name, _FOLDER)
        chip = table.pop("chip", None)
        if chip is not None:
            table = _read("target", str(chip), _FOLDER / "chips") | table
        return _made(cls, "target", name, table)


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


_Table = TypeVar("_Table", Target, Host)


def _read(option: str, name: str, folder: Path) -> dict[str, Any]:
    """The values of a file; those of its sections stand beside the others."""
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise OptionError(
            f"{name}: {no_file(path)}; shipped are: {shipped}; or give a .toml file", option
        )
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{name}: cannot be read as TOML: {error}", option) from error
    flat: dict[str, Any] = {}
    sections = []
    for key, value in table.items():
        if isinstance(value, dict):
            sections.append(value)
        else:
            flat[key] = value
    for section in sections:
        flat |= section
    return flat


def _made(cls: type[_Table], option: str, name: str, table: Mapping[str, Any]) -> _Table:
    for key, value in table.items():
        is_text = key in ("name", "description")
        is_right = isinstance(value, str) if is_text else _is_number(value)
        if not is_right:
            wanted = "text" if is_text else "a number"
            raise OptionError(f"{name}: {key} = {value!r}; it must be {wanted}", option)
    try:
        return cls(**table)
    except TypeError as error:
        raise OptionError(
            f"{name}: {error}; compare with the files in compiler/targets/", option
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
