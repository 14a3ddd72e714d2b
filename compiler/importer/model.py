"""The import on one page, each step in its order. Weights stay in their files; none is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.errors import ModelError, first_line
from compiler.graph import HOST_REASON, IR_VERSION, is_current, key_of
from compiler.importer import checking, cutting, metadata, state, upgrade
from compiler.importer import values as fixed_values
from compiler.importer.inputs import Hints, fix_inputs, joined
from compiler.importer.metadata import Facts
from compiler.importer.names import name_nodes
from compiler.importer.reading import read_file
from compiler.importer.widen import widen_halves
from compiler.progress import notes

# onnxruntime's operator that exporters write without a domain. ONNX's checker knows no such
# operator, so it stands in the domain of onnxruntime's own until the opset is raised.
_SIMPLIFIED = "SimplifiedLayerNormalization"
_SIMPLIFIED_KEY = ("com.microsoft", _SIMPLIFIED)


@dataclass(frozen=True)
class Reading:
    """How a file is read, beside what its inputs are.

    outputs: tensors that the model ends at, instead of at its own outputs
    hints:   asked for the sizes of inputs that options leave open, before what the file's metadata
             tell
    widen:   float16 becomes float32
    """

    outputs: Sequence[str] = ()
    hints: Callable[[Sequence[ir.Value]], Hints] | None = None
    widen: bool = True


AS_IT_IS = Reading()


def load(
    path: Path,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, str] | None = None,
    reading: Reading = AS_IT_IS,
) -> ir.Model:
    """Read, check and normalise the model in `path`.

    `dims` fixes symbolic dimensions by name, `shapes` whole inputs by name, and `values` what
    inputs hold: one number, or one for each element, separated by commas. Raises ModelError for a
    file that is broken, unsafe or still dynamic, and OptionError for names that the model does not
    have.
    """
    dims = dims or {}
    shapes = shapes or {}
    values = values or {}
    model = read_file(path, reading.outputs)
    facts = metadata.read(model, path)
    checking.check_defined(model.graph)
    _rename(model, ("", _SIMPLIFIED), _SIMPLIFIED_KEY)
    _normalise(model, path)
    checking.check_inference(model.graph)
    fixed_values.fix(model, values, shapes)
    remaining_shapes = {name: shape for name, shape in shapes.items() if name not in values}
    fix_inputs(model, dims, remaining_shapes, _hints(model, facts, reading))
    _upgrade(model)
    # From opset 23 on, ONNX has the operator itself under another name.
    standard = "RMSNormalization" if is_current(model) else _SIMPLIFIED
    _rename(model, _SIMPLIFIED_KEY, ("", standard))
    if reading.widen:
        widen_halves(model)
    name_nodes(model.graph)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    model.meta[cutting.META] = tuple(reading.outputs)
    model.meta[metadata.META] = facts
    return model


def _hints(model: ir.Model, facts: Facts, reading: Reading) -> Hints:
    """The sizes of inputs as the caller and the file's metadata tell them, where any is open."""
    inputs = model.graph.inputs
    if all(value.shape is not None and value.shape.is_static() for value in inputs):
        return {}
    asked = reading.hints(inputs) if reading.hints is not None else {}
    for name, shape in asked.items():
        sizes = ", ".join("?" if size is None else str(size) for size in shape)
        notes.info("taken from the calibration samples: '%s' [%s]", name, sizes)
    told = joined(asked, facts.hints(inputs))
    return joined(told, state.hints(inputs, model.graph.outputs))


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
