"""What was chosen for its accuracy is kept on the host, and nothing else."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from compiler.graph import HOST_REASON
from compiler.targets import Target
from passes import PassContext, keep_chosen
from tests.passes.golden import leaves_alone

TEXT = """
g (float[1,8] x) => (float[1,8] y)
<float two = {2}>
{
    d = Sub (x, two)
    y = Div (d, two)
}"""


def test_chosen_nodes_stay_on_the_host() -> None:
    head = '<ir_version: 11, opset_import: ["" : 23]>'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(head + TEXT))
    for node, name in zip(model.graph, ("centre", "scale"), strict=True):
        node.name = name
    context = PassContext(Target.load(), kept={"scale"})
    keep_chosen.run(model, context)
    kept = [node.name for node in model.graph if HOST_REASON in node.metadata_props]
    assert kept == context.trace.matches == ["scale"]


def test_without_a_choice_nothing_is_kept() -> None:
    leaves_alone("keep_chosen", TEXT)
