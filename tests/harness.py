"""Compiles a small model to one int8 segment in memory and compares it with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compiler import importer
from compiler.checks.pass_checks import Checker
from compiler.device.legality import refusal
from compiler.driver.rewriting import PassDriver
from compiler.emit import tflite
from compiler.graph import all_activations
from compiler.graph.reference import Reference
from compiler.quantize.calibrate import Observers, calibrate, observe
from compiler.quantize.scales import assign
from compiler.runtime.tflite_segment import TFLiteSegment
from compiler.targets import Target
from passes import PASSES, PassContext, Steps

TARGET = Target.load()
# They would hand lone joins, arithmetic or part of a product to the host.
TO_HOST = frozenset({"rotate_rows", "normalise_linears", "keep_tails"})


def lowered(proto: onnx.ModelProto, folder: Path) -> tuple[ir.Model, ir.Model]:
    """(imported, lowered) model; every pass is checked against the imported one."""
    path = folder / "model.onnx"
    onnx.save(proto, path)
    model = importer.load(path)
    original = model.clone()
    driver = PassDriver(Steps(TO_HOST), checker=Checker(original, 0))
    driver.run(PASSES, model, PassContext(TARGET))
    return original, model


def refusals(model: ir.Model) -> list[str]:
    return [reason for node in model.graph if (reason := refusal(node, TARGET)) is not None]


def error_in_steps(
    original: ir.Model,
    model: ir.Model,
    feeds: dict[str, np.ndarray],
    folder: Path,
    allowed: float = 0.0,
) -> float:
    """Largest difference between the int8 segment of the whole graph and float beyond what is
    allowed, in steps of the output's scale."""
    graph = model.graph
    values = list(all_activations(graph))
    shown = observe(model, values, [feeds])
    quants = assign(list(graph), values, calibrate(model, values, shown, [feeds], Observers()))
    path = folder / "segment.tflite"
    path.write_bytes(tflite.write(list(graph), graph.inputs, graph.outputs, quants))
    inputs = [quants[str(v.name)].quantize(feeds[str(v.name)]) for v in graph.inputs]
    (got,) = TFLiteSegment(path, 1).run(inputs)
    with Reference(original) as reference:
        (want,) = reference.run(feeds).values()
    quant = quants[str(graph.outputs[0].name)]
    return float((np.abs(quant.dequantize(got) - want) - allowed).max() / quant.scale)
