"""Reads a target's TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import OptionError


@dataclass(frozen=True)
class Target:
    """A device: sizes in bytes. Sources of the figures stand in the TOML file."""

    name: str
    description: str
    tiles: int
    tile_bytes: int
    block_outputs: int
    input_multiple: int
    spatial_bytes: int
    softmax_elements: int
    open_dimensions: int
    kernel_size: int
    mean_positions: int

    @classmethod
    def load(cls, name: str = "edgetpu") -> Target:
        """A shipped target by name, or a TOML file by path. Raises OptionError."""
        path = Path(name) if name.endswith(".toml") else Path(__file__).parent / f"{name}.toml"
        if not path.is_file():
            shipped = ", ".join(sorted(p.stem for p in Path(__file__).parent.glob("*.toml")))
            raise OptionError(f"--target {name}: no such target; shipped are: {shipped}; or give a .toml file")
        try:
            table = tomllib.loads(path.read_text())
            head = {k: v for k, v in table.items() if not isinstance(v, dict)}
            return cls(**head, **table["sram"], **table["limits"])
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise OptionError(f"--target {name}: {error}; compare with compiler/targets/edgetpu.toml") from error
