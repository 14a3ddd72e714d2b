"""Weights of safetensors files; they stay memory-mapped, and rows are read as they are needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # makes bfloat16 known to numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from compiler.errors import ModelError, first_line
from compiler.frontends.architecture import Weight

_TYPES = ("F32", "F16", "BF16")


def read(path: Path) -> dict[str, Weight]:
    """The tensors of a file. Raises ModelError for what is damaged or of another type."""
    try:
        file = safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a safetensors file, or a truncated one ({first_line(error)})"
        ) from error
    weights = {}
    for name in file.keys():  # noqa: SIM118  # it is no dict
        tensor = file.get_slice(name)
        shape = tuple(tensor.get_shape())
        kind = tensor.get_dtype()
        if kind not in _TYPES:
            supported = ", ".join(_TYPES)
            raise ModelError(f"{path}: weights '{name}' are {kind}; supported are {supported}")
        if not shape:
            raise ModelError(f"{path}: weights '{name}' are a single number")
        weights[name] = Weight(shape, partial(_rows, tensor))
    return weights


def _rows(tensor: Any, rows: slice) -> np.ndarray:
    return np.asarray(tensor[rows], np.float32)
