"""LoRA adapters: PEFT folders and GGUF files, merged into the weights that they were trained for.

    weight = base + scale * B A

Weights stay in their files: a row is merged when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ModelError, first_line, no_file
from compiler.frontends import safetensors
from compiler.frontends.architecture import Architecture, Weight
from compiler.frontends.families import Family, gguf_name
from compiler.frontends.folding import reordered
from compiler.frontends.gguf_file import read_file
from compiler.frontends.textfile import read_json

_CONFIG = "adapter_config.json"
_PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
# Fields of PEFT's configuration under which an adapter is more than products of two matrices.
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")
# Layers whose channels GGUF's converter reorders in some families.
_ROTATED = ("attn_q.", "attn_k.")


@dataclass(frozen=True)
class Adapter:
    """The products of an adapter: `down` [r, K] and `up` [N, r] by the names of weights [N, K] in
    GGUF. `is_interleaved` tells the order of channels of queries and keys."""

    path: Path
    scale: float
    down: Mapping[str, Weight]
    up: Mapping[str, Weight]
    is_interleaved: bool


def merged(
    weights: Mapping[str, Weight],
    paths: Sequence[Path],
    family: Family,
    architecture: Architecture,
) -> dict[str, Weight]:
    """Weights with adapters added, in order. Raises ModelError for adapters that are broken, or for
    another model."""
    found = dict(weights)
    for path in paths:
        adapter = _read(path, family)
        for name, up in adapter.up.items():
            if name not in found:
                raise ModelError(f"{path}: adapts '{name}', which the model does not have")
            found[name] = _sum(adapter, name, found[name], up, architecture)
    return found


def _sum(
    adapter: Adapter, name: str, base: Weight, up: Weight, architecture: Architecture
) -> Weight:
    down = adapter.down[name]
    if base.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
        raise ModelError(
            f"{adapter.path}: '{name}' is {list(base.shape)}, its factors are {list(up.shape)} "
            f"and {list(down.shape)}: the adapter is for another model"
        )
    left = up.array() * np.float32(adapter.scale)
    right = down.array()
    is_rotated = any(part in name for part in _ROTATED)
    if is_rotated and adapter.is_interleaved != architecture.interleaved:
        left = reordered(left, architecture.head, architecture.interleaved)

    def rows(wanted: slice) -> np.ndarray:
        return np.asarray(base.rows(wanted) + left[wanted] @ right, np.float32)

    return Weight(base.shape, rows)


def _read(path: Path, family: Family) -> Adapter:
    if path.is_dir():
        return _peft(path, family)
    if not path.is_file():
        raise ModelError(f"{path}: {no_file(path)}; give a PEFT folder or a .gguf adapter")
    return _gguf(path, family)


def _peft(folder: Path, family: Family) -> Adapter:
    config = read_json(folder / _CONFIG)
    for name in _UNSUPPORTED:
        if config.get(name):
            raise ModelError(f"{folder / _CONFIG}: {name} is not supported")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{folder / _CONFIG}: adapted biases are not supported")
    try:
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{folder / _CONFIG}: r and lora_alpha must be positive") from error
    down: dict[str, Weight] = {}
    up: dict[str, Weight] = {}
    for name, weight in safetensors.read(folder / _PEFT_WEIGHTS).items():
        module, _, kind = name.removeprefix(_PEFT_PREFIX).rpartition(".lora_")
        side = {"A.weight": down, "B.weight": up}.get(kind)
        if side is None:
            raise ModelError(f"{folder}: '{name}' is no factor of a linear layer")
        side[gguf_name(f"{module}.weight", family)] = weight
    return _checked(Adapter(folder, scale, down, up, is_interleaved=False))


def _gguf(path: Path, family: Family) -> Adapter:
    fields, weights = read_file(path)
    if fields.get("general.type") != "adapter" or fields.get("adapter.type") != "lora":
        raise ModelError(f"{path}: is no LoRA adapter (general.type is not 'adapter')")
    down: dict[str, Weight] = {}
    up: dict[str, Weight] = {}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        side = {"lora_a": down, "lora_b": up}.get(kind)
        if side is None:
            raise ModelError(f"{path}: '{name}' is no factor of a linear layer")
        side[module] = weight
    rank = next((weight.shape[0] for weight in down.values()), 1)
    alpha = _number(path, fields.get("adapter.lora.alpha", rank))
    return _checked(Adapter(path, alpha / rank, down, up, family.gguf_interleaved))


def _number(path: Path, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: adapter.lora.alpha: {first_line(error)}") from error


def _checked(adapter: Adapter) -> Adapter:
    if not adapter.up or set(adapter.up) != set(adapter.down):
        raise ModelError(f"{adapter.path}: has no pair of factors for each layer: save it again")
    if not 0 < abs(adapter.scale) < math.inf:
        raise ModelError(f"{adapter.path}: its scale is {adapter.scale}")
    return adapter
