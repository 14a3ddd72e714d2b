"""What a model read from a file must fulfil before anything is made of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.errors import ModelError
from compiler.graph import input_at, key_of, origin_of, scalar_of, shapes


def check_defined(graph: ir.Graph) -> None:
    """Raises ModelError for a node that reads a tensor which nothing makes."""
    known = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is None or value in known or value.producer() is not None:
                continue
            raise ModelError(
                f"{node.op_type} '{node.name}' reads tensor '{value.name}', "
                "which nothing defines: export the model again"
            )


def check_inference(graph: ir.Graph) -> None:
    """Raises ModelError for a model in training mode, whose results are random."""
    for node in graph:
        if _drops_at_random(node):
            raise ModelError(
                f"Dropout '{origin_of(node)}' is in training mode: "
                "export the model again after model.eval()"
            )


def _drops_at_random(node: ir.Node) -> bool:
    if key_of(node) != ("", "Dropout"):
        return False
    training = scalar_of(input_at(node, 2))
    ratio = scalar_of(input_at(node, 1))
    return bool(training) and ratio != 0


def check_maps(graph: onnx.GraphProto) -> None:
    """Raises ModelError for a model that gives dictionaries, as skl2onnx's classifiers do by
    default."""
    for node in graph.node:
        if node.op_type == "ZipMap":
            name = node.name or node.output[0]
            raise ModelError(
                f"ZipMap '{name}' gives dictionaries, which bundles do not have: "
                "export with zipmap=False"
            )


def check_valid(model: ir.Model) -> None:
    """Run ONNX's own checker, which raises on what it finds.

    It wants a shape for every output. Many exporters leave these out; what shape inference cannot
    fill in is a scalar for as long as the checker looks.
    """
    outputs = model.graph.outputs
    if any(value.shape is None for value in outputs):
        shapes.infer(model)
    without_shape = [value for value in outputs if value.shape is None]
    for value in without_shape:
        value.shape = ir.Shape([])
    try:
        common.CheckerPass()(model)
    finally:
        for value in without_shape:
            value.shape = None


def check_weights(graph: ir.Graph) -> None:
    """Look through all weights for NaN; only a build has to read them. Raises ModelError."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and _holds_nan(tensor):
            raise ModelError(
                f"weights '{value.name}' {list(tensor.shape)} hold NaN: "
                "repair or export the model again"
            )


def _holds_nan(tensor: ir.TensorProtocol) -> bool:
    # Floats of less than two bytes have no NaN that ONNX agrees on.
    if not tensor.dtype.is_floating_point() or tensor.dtype.itemsize < 2:
        return False
    array = tensor.numpy().astype(np.float32, copy=False)
    # The minimum is NaN where any element is, and needs no array of flags.
    return bool(np.isnan(np.min(array, initial=0)))
