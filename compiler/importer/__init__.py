"""From an ONNX file to one valid, static-shaped, single-graph `onnx_ir.Model` of opset 23 or newer.

onnxfile    reads the file, weights left where they are
cutting     ends it at other tensors
reading     from there to an `onnx_ir.Model`
metadata    what exporters tell beside the graph
checking    what such a model must fulfil
values      inputs that the user fixes to a value
inputs      shapes of all other inputs
state       outputs that go back into inputs at the next step
upgrade     raises the opset, with one adapter per operator (adapters)
widen       float16 to float32
model       all of these, in their order
pixels      inputs in another form than the file's
"""

from compiler.importer.checking import check_weights
from compiler.importer.model import Reading, load
from compiler.importer.names import name_nodes
from compiler.importer.reading import OLDEST_OPSET, SMALL, read_file, require_file

__all__ = [
    "OLDEST_OPSET",
    "SMALL",
    "Reading",
    "check_weights",
    "load",
    "name_nodes",
    "read_file",
    "require_file",
]
