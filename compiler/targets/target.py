"""Reads the TOML files of targets and hosts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compiler.errors import OptionError, no_file

_FOLDER = Path(__file__).parent
# About as on the Raspberry Pi 4 (hosts/pi4.toml).
_MACS_PER_SCALAR = 150


@dataclass(frozen=True)
class Target:
    """An Edge TPU on its link to a host: sizes in bytes, times in seconds, rates per second.
    Sources stand in the TOML files.

    `conv`, `pointwise`, `depthwise`, `dense` (multiply-accumulates), `vector` and `broadcast`
    (elements) are rates per clock cycle. `error_percent` tells how far predictions for this target
    on this host were off; None where nobody has measured it.
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
    error_percent: float | None = None

    @property
    def sram_bytes(self) -> int:
        """Memory for parameters, where no activations need any."""
        return self.tiles * self.tile_bytes

    @classmethod
    def load(cls, name: str = "usb3", host: str | None = None) -> Target:
        """A shipped target by name, or a TOML file by path, as it is on `host`. Raises OptionError.

        A file that names a `chip` takes from chips/CHIP.toml what it does not say itself. Its
        section [hosts.NAME] says what differs on the host of that name, which is also the `name`
        in the host's own file; other hosts have the values of [link].
        """
        table = _read("target", name, _FOLDER)
        hosts = _hosts(name, table)
        chip = table.pop("chip", None)
        if chip is not None:
            table = _read("target", str(chip), _FOLDER / "chips") | table
        if host is not None:
            table |= hosts.get(Host.load(host).name, {})
        return _made(cls, "target", name, table)


@dataclass(frozen=True)
class Host:
    """The CPU beside, as onnxruntime uses it.

    macs:      multiply-accumulates per second of float matrices
    int8_macs: of int8 matrices
    bytes:     bytes of memory per second
    scalars:   elements per second where code looks at one after the other, as in sorting
    operator:  seconds for each operator
    cores:     that share the multiply-accumulates
    slots:     segments of different requests that run at once, on some of the cores each
    slots_gain: how many times as much they get done then as one at a time on all cores

    A file may lack what older ones do: it is then read as if int8 were as fast as float, sorting as
    slow beside `macs` as on a Raspberry Pi, all the work done by one core, and one segment run at a
    time.
    """

    name: str
    description: str
    macs: float
    int8_macs: float
    bytes: float
    scalars: float
    operator: float
    cores: float
    slots: float
    slots_gain: float

    @classmethod
    def load(cls, name: str = "pi5") -> Host:
        """A shipped host by name, or a TOML file as `measure` writes it. Raises OptionError."""
        table = _read("host", name, _FOLDER / "hosts")
        macs = table.get("macs")
        if isinstance(macs, int | float):
            older = {
                "int8_macs": macs,
                "scalars": macs / _MACS_PER_SCALAR,
                "cores": 1,
                "slots": 1,
                "slots_gain": 1,
            }
            table = older | table
        return _made(cls, "host", name, table)


_Table = TypeVar("_Table", Target, Host)


def _hosts(name: str, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Takes the sections [hosts.NAME] out of a target's table."""
    hosts = table.pop("hosts", {})
    if not all(isinstance(section, dict) for section in hosts.values()):
        raise OptionError(
            f"{name}: what differs on a host stands in a section [hosts.NAME]", "target"
        )
    return dict(hosts)


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
        if isinstance(value, dict) and key != "hosts":
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
