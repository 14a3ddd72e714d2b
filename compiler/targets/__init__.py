"""Targets and hosts: what is known of a device, as data. Users can write their own TOML files and
pass their paths."""

from compiler.targets.memory import Layer, cached, capacity, fits, stored_bytes
from compiler.targets.target import Host, Target

__all__ = ["Host", "Layer", "Target", "cached", "capacity", "fits", "stored_bytes"]
