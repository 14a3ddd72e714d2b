"""The passes, in order. Each changes a valid model, in place, into a valid model that computes the
same."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler.graph import is_current
from compiler.targets import Target
from passes import (
    cancel_reshapes,
    cancel_transposes,
    fold_affine,
    fold_constants,
    fold_flatten,
    keep_gates,
    keep_scales,
    keep_spectra,
    lower,
    normalise_linears,
    recognise_attention,
    recognise_gelu,
    recognise_hard_swish,
    recognise_norms,
    recognise_rotary,
    rotate_outputs,
    rotate_rows,
    second_row,
    shuffle_channels,
    split_gates,
    split_means,
    tile_matmul,
    unfuse,
)

Pass = Callable[[ir.Model, Target], None]


def _current(run: Pass) -> Pass:
    """For a pass that writes operators of the newest opset: a model that could not be raised to it
    is left alone."""

    def guarded(model: ir.Model, target: Target) -> None:
        if is_current(model):
            run(model, target)

    return guarded


PASSES: tuple[tuple[str, Pass], ...] = (
    ("fold_constants", fold_constants.run),
    ("unfuse", _current(unfuse.run)),
    ("keep_scales", keep_scales.run),
    ("recognise_gelu", _current(recognise_gelu.run)),
    ("recognise_hard_swish", _current(recognise_hard_swish.run)),
    ("recognise_norms", _current(recognise_norms.run)),
    ("recognise_rotary", _current(recognise_rotary.run)),
    ("recognise_attention", _current(recognise_attention.run)),
    ("keep_gates", keep_gates.run),
    ("keep_spectra", keep_spectra.run),
    ("fold_affine", fold_affine.run),
    ("shuffle_channels", shuffle_channels.run),
    ("split_gates", split_gates.run),
    ("lower", lower.run),
    ("cancel_transposes", cancel_transposes.run),
    ("fold_flatten", fold_flatten.run),
    ("cancel_reshapes", cancel_reshapes.run),
    ("split_means", split_means.run),
    ("rotate_rows", rotate_rows.run),
    ("rotate_outputs", rotate_outputs.run),
    ("normalise_linears", normalise_linears.run),
    ("second_row", second_row.run),
    ("tile_matmul", tile_matmul.run),
)
