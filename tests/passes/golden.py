"""Runs passes on a model written as ONNX text and prints what comes out, one line per node.

Every run is also checked: the result is valid and computes on onnxruntime what the input computes.
"""

from __future__ import annotations

import textwrap

import numpy as np
import onnx
import onnx_ir as ir

import passes
from compiler.checks.pass_checks import Checker
from compiler.graph import array_of, attribute_of, is_constant, operator_name, shape_of
from compiler.importer import load as importer
from compiler.targets import Target

PASSES = dict(passes.PASSES)
TARGET = Target.load()


def rewritten(text: str, *names: str, **weights: np.ndarray) -> str:
    """The graph after `fold_constants` and the named passes. `weights` become initializers."""
    head = '<ir_version: 11, opset_import: ["" : 23]>\n'
    proto = onnx.parser.parse_model(head + textwrap.dedent(text))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    model = ir.serde.deserialize_model(proto)
    importer.name_nodes(model.graph)
    PASSES["fold_constants"](model, TARGET)
    checker = Checker(model.clone(), 0)
    for name in names:
        PASSES[name](model, TARGET)
        checker.check(name, model)
    return "\n".join(_line(node) for node in model.graph)


def _line(node: ir.Node) -> str:
    names: list[str] = []
    for value in node.inputs:
        if value is None:
            names.append("_")
        elif is_constant(value):
            array = array_of(value)
            names.append(str(array.tolist()) if array.size <= 4 else f"const{list(array.shape)}")
        else:
            names.append(str(value.name))
    outputs = ", ".join(f"{v.name}{list(shape_of(v))}" for v in node.outputs)
    perm = f" perm={list(attribute_of(node, 'perm'))}" if node.op_type == "Transpose" else ""
    return f"{outputs} = {operator_name(node)}({', '.join(names)}){perm}"


def kinds(text: str) -> list[str]:
    """The operators of what `rewritten` gives, in order."""
    return [line.split(" = ")[1].split("(")[0] for line in text.splitlines()]


def lines(text: str) -> str:
    return textwrap.dedent(text).strip()


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
