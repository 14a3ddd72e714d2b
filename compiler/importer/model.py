"""The import on one page, each step in its order. Weights stay in their files; none is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.errors import ModelError, first_line
from compiler.graph import HOST_REASON, IR_VERSION, is_current, key_of
from compiler.importer import checking, upgrade
from compiler.importer import values as fixed_values
from compiler.importer.inputs import fix_inputs
from compiler.importer.names import name_nodes
from compiler.importer.reading import read_file
from compiler.importer.widen import widen_halves

# onnxruntime's operator that exporters write without a domain. ONNX's checker knows no such
# operator, so it stands in the domain of onnxruntime's own until the opset is raised.
_SIMPLIFIED = "SimplifiedLayerNormalization"
_SIMPLIFIED_KEY = ("com.microsoft", _SIMPLIFIED)


def load(
    path: Path,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, str] | None = None,
    *,
    widen: bool = True,
) -> ir.Model:
    """Read, check and normalise the model in `path`.

    `dims` fixes symbolic dimensions by name, `shapes` whole inputs by name, and `values` what
    inputs hold: one number, or one for each element, separated by commas. Without `widen`,
    float16 stays. Raises ModelError for a file that is broken, unsafe or still dynamic, and
    OptionError for names that the model does not have.
    """
    dims = dims or {}
    shapes = shapes or {}
    values = values or {}
    model = read_file(path)
    checking.check_defined(model.graph)
    _rename(model, ("", _SIMPLIFIED), _SIMPLIFIED_KEY)
    _normalise(model, path)
    checking.check_inference(model.graph)
    fixed_values.fix(model, values, shapes)
    remaining_shapes = {name: shape for name, shape in shapes.items() if name not in values}
    fix_inputs(model, dims, remaining_shapes)
    _upgrade(model)
    # From opset 23 on, ONNX has the operator itself under another name.
    standard = "RMSNormalization" if is_current(model) else _SIMPLIFIED
    _rename(model, _SIMPLIFIED_KEY, ("", standard))
    if widen:
        widen_halves(model)
    name_nodes(model.graph)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    return model


def _normalise(model: ir.Model, path: Path) -> None:
    """Inline functions, make constants initializers, and hold the result against ONNX's checker."""
    try:
        common.InlinePass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        # Before any node is replaced, so that what replaces it keeps the name of its origin.
        name_nodes(model.graph)
        upgrade.replace_deprecated(model)
        checking.check_valid(model)
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX model: {first_line(error)}") from error


def _rename(model: ir.Model, old: tuple[str, str], new: tuple[str, str]) -> None:
    for node in model.graph.all_nodes():
        if key_of(node) == old:
            node.domain, node.op_type = new


def _upgrade(model: ir.Model) -> None:
    """Raise the opset to 23, so that each operator has one form.

    A model that cannot be raised keeps its opset, and all its nodes run on the host: passes and
    operator rules are written for opset 23, while onnxruntime knows the older meanings.
    """
    reason = upgrade.upgrade(model)
    if reason is None:
        return
    for node in model.graph:
        node.metadata_props[HOST_REASON] = f"the model keeps its opset: {reason}"
