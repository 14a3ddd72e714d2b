"""SpaceToDepth: SPACE_TO_DEPTH."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler import ir as cir
from compiler.ops.common import Operator, same_scale
from compiler.ops.rules import Builtin

if TYPE_CHECKING:
    from compiler.emit.tflite import Writer


def lower(node: ir.Node, b: cir.Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    block = int(cir.attr(node, "blocksize"))
    y = b.op("SpaceToDepth2D", [cir.to_nhwc(b, x)], {"blocksize": block}, cir.DIALECT)
    b.replace(cir.to_nchw(b, y))


def emit(node: ir.Node, w: Writer) -> None:
    options = {"blockSize": int(cir.attr(node, "blocksize"))}
    w.add("SPACE_TO_DEPTH", 2, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], options)


BUILTINS = (Builtin("SPACE_TO_DEPTH", 2),)

OPERATORS = (
    Operator("SpaceToDepth", lower=lower),
    Operator("SpaceToDepth2D", cir.DIALECT, scales=same_scale, emit=emit),
)
