"""Targets: what is known of a device, as data. Users can write their own TOML file and pass its path."""

from compiler.targets.memory import Layer, fits, stored_bytes
from compiler.targets.target import Target

__all__ = ["Layer", "Target", "fits", "stored_bytes"]
