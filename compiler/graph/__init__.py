"""The IR, an `onnx_ir.Model` that onnxruntime can run at any time: how it is read, walked and
rewritten.

Operators that ONNX lacks live in the domain `edgetpu`; each is a model-local function whose body
says in plain ONNX what it computes (compiler/ops/dialect.py).
"""

from compiler.graph.builder import NCHW, NHWC, Builder, Names, to_nchw, to_nhwc
from compiler.graph.editing import infer_node, replace_node
from compiler.graph.keys import (
    BALANCED,
    DIALECT,
    HOST_REASON,
    IR_VERSION,
    LOWERING_REASON,
    OPSET,
    ORIGIN,
    Shape,
    is_current,
    key_of,
    operator_name,
    origin_of,
)
from compiler.graph.lazy import COLUMN_GRID, COLUMNS, GRID, ROWS, grid_of, joined_rows, rows_of
from compiler.graph.patterns import is_near, product_of, unscaled
from compiler.graph.rewriting import MOST_ROUNDS, rewrite_until_stable
from compiler.graph.values import (
    array_of,
    attribute_of,
    axis_of,
    constant_of,
    element_count,
    input_at,
    ints_of,
    is_constant,
    is_static,
    scalar_of,
    shape_of,
)
from compiler.graph.walk import (
    activations_around,
    activations_of,
    all_activations,
    consumers_of,
    only_consumer,
    produced_by,
    values_read,
)

__all__ = [
    "BALANCED",
    "COLUMNS",
    "COLUMN_GRID",
    "DIALECT",
    "GRID",
    "HOST_REASON",
    "IR_VERSION",
    "LOWERING_REASON",
    "MOST_ROUNDS",
    "NCHW",
    "NHWC",
    "OPSET",
    "ORIGIN",
    "ROWS",
    "Builder",
    "Names",
    "Shape",
    "activations_around",
    "activations_of",
    "all_activations",
    "array_of",
    "attribute_of",
    "axis_of",
    "constant_of",
    "consumers_of",
    "element_count",
    "grid_of",
    "infer_node",
    "input_at",
    "ints_of",
    "is_constant",
    "is_current",
    "is_near",
    "is_static",
    "joined_rows",
    "key_of",
    "only_consumer",
    "operator_name",
    "origin_of",
    "produced_by",
    "product_of",
    "replace_node",
    "rewrite_until_stable",
    "rows_of",
    "scalar_of",
    "shape_of",
    "to_nchw",
    "to_nhwc",
    "unscaled",
    "values_read",
]
