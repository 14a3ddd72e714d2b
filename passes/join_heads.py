"""Let Attention take its heads apart and put them together by itself.

    Transpose(Attention(Transpose(q), Transpose(k), Transpose(v)))       of [B, S, H, D]
        ->   Reshape(Attention(Reshape(q), Reshape(k), Reshape(v)))      of [B, S, H * D]

Reshapes cost nothing, and four operators that move all elements go.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    float32_nodes,
    key_of,
    only_consumer,
    produced_by,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy

# Between [B, S, H, D] and [B, H, S, D].
HEADS_FORWARD = (0, 2, 1, 3)
# Queries, keys, values and the mask; with a cache of keys and values there are more.
PLAIN_INPUTS = 4


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) != ("", "Attention") or len(shape_of(node.inputs[0])) != 4:
            continue
        if _join(node, Builder(model, names, node)):
            context.matched(node)
        else:
            context.missed(node, "its heads are not moved by Transposes of their own")
    tidy(model)


def _join(node: ir.Node, b: Builder) -> bool:
    is_plain = all(value is None for value in node.inputs[PLAIN_INPUTS:])
    after = only_consumer(node.outputs[0])
    if not is_plain or len(node.outputs) > 1 or after is None or not _moves_heads(after):
        return False
    sources: list[ir.Value] = []
    for value in node.inputs[:3]:
        before = produced_by(value, "Transpose")
        if before is None or not _moves_heads(before) or before.inputs[0] is None:
            return False
        sources.append(before.inputs[0])
    joined = []
    for source in sources:
        batch, rows, heads, width = shape_of(source)
        joined.append(b.reshape(source, (batch, rows, heads * width)))
    attributes = {
        **{name: attribute.value for name, attribute in node.attributes.items()},
        "q_num_heads": shape_of(sources[0])[2],
        "kv_num_heads": shape_of(sources[1])[2],
    }
    y = b.op("Attention", [*joined, *node.inputs[3:PLAIN_INPUTS]], attributes)
    apart = b.reshape(y, shape_of(after.outputs[0]))
    after_builder = Builder(b.model, b.names, after)
    after_builder.made |= b.made
    after_builder.replace(apart)
    return True


def _moves_heads(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(attribute_of(node, "perm")) == HEADS_FORWARD
