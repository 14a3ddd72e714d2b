"""SpaceToDepth: SPACE_TO_DEPTH."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import DIALECT, Builder, attribute_of, to_nchw, to_nhwc
from compiler.ops.common import Operator, same_scale
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer


def lower(node: ir.Node, builder: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    block = int(attribute_of(node, "blocksize"))
    y = builder.op("SpaceToDepth2D", [to_nhwc(builder, x)], {"blocksize": block}, DIALECT)
    builder.replace(to_nchw(builder, y))


def emit(node: ir.Node, writer: Writer) -> None:
    options = {"blockSize": int(attribute_of(node, "blocksize"))}
    writer.add(
        "SPACE_TO_DEPTH",
        2,
        [writer.tensor(node.inputs[0])],
        [writer.tensor(node.outputs[0])],
        options,
    )


BUILTINS = (Builtin("SPACE_TO_DEPTH", 2),)

OPERATORS = (
    Operator("SpaceToDepth", lower=lower),
    # It moves elements too, but is not declared to: where it stands at a boundary it would then go
    # to the host (compiler/partition/placement.py), which nobody has measured.
    Operator(
        "SpaceToDepth2D",
        DIALECT,
        body="""
    SpaceToDepth2D <blocksize> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        deep = SpaceToDepth <blocksize: int = @blocksize> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (deep)
    }""",
        scales=same_scale,
        emit=emit,
    ),
)
