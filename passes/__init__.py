"""The passes, in order. Each takes a valid model and gives a valid model that computes the same; see `run_all`."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler.targets import Target
from passes import (
    cancel_reshapes,
    cancel_transposes,
    fold_affine,
    fold_constants,
    fold_flatten,
    keep_scales,
    lower,
    recognise,
    shuffle_channels,
    tile_matmul,
)

Pass = Callable[[ir.Model, Target], None]

PASSES: tuple[tuple[str, Pass], ...] = (
    ("fold_constants", fold_constants.run),
    ("keep_scales", keep_scales.run),
    ("recognise", recognise.run),
    ("fold_affine", fold_affine.run),
    ("shuffle_channels", shuffle_channels.run),
    ("lower", lower.run),
    ("cancel_transposes", cancel_transposes.run),
    ("fold_flatten", fold_flatten.run),
    ("cancel_reshapes", cancel_reshapes.run),
    ("tile_matmul", tile_matmul.run),
)


def run_all(model: ir.Model, target: Target, after: Callable[[str, ir.Model], None]) -> None:
    """Run every pass in place. `after(name, model)` is called behind each: it checks, reports, or both."""
    for name, run in PASSES:
        run(model, target)
        after(name, model)
