"""Keep on the host, in float, what was chosen for its accuracy.

Around such nodes the passes for products between host operators find more to do: rows are
normalised where both neighbours of a product run on the host.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import HOST_REASON, origin_of
from passes.context import PassContext

REASON = "in float for the quality goal: it contributes much to the error"


def run(model: ir.Model, context: PassContext) -> None:
    for node in model.graph:
        if origin_of(node) in context.kept:
            node.metadata_props[HOST_REASON] = REASON
            context.matched(node)
