"""The edits of which adapters of old operators are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.graph import ORIGIN, attribute_of, fresh_name, origin_of


class Edit:
    """Adds nodes in front of `node`, which lies in the main graph or in a subgraph.

    An adapter leaves `node` itself as the last one, so that its outputs keep their names and
    readers. `taken` are the names of all values of the model; new names are added to it.
    """

    def __init__(self, node: ir.Node, taken: set[str]) -> None:
        self.node = node
        self._taken = taken

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """A new node of one output."""
        node = ir.node(op_type, inputs, attributes or {}, num_outputs=1)
        node.metadata_props[ORIGIN] = origin_of(self.node)
        node.name = fresh_name(f"{self.node.outputs[0].name}/{op_type}", self._taken)
        (value,) = node.outputs
        value.name = node.name
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        return value

    def ints(self, numbers: Sequence[int] | int) -> ir.Value:
        """A constant of int64."""
        return self._constant(np.asarray(numbers, np.int64))

    def floats(self, numbers: Sequence[float]) -> ir.Value:
        """A constant of float32."""
        return self._constant(np.asarray(numbers, np.float32))

    def number_like(self, number: float, like: ir.Value | None) -> ir.Value:
        """A constant scalar of the type of another value."""
        assert like is not None
        # The type is not known, or numpy does not have it: the model casts.
        if like.dtype is None or like.dtype == ir.DataType.BFLOAT16:
            return self.op("CastLike", [self._constant(np.asarray(number, np.float32)), like])
        return self._constant(np.asarray(number, like.dtype.numpy()))

    def become(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Make the node itself another one."""
        self.node.op_type = op_type
        self.node.attributes.clear()
        for attribute in ir.convenience.convert_attributes(attributes or {}):
            self.node.attributes[attribute.name] = attribute
        self.read(*inputs)

    def read(self, *inputs: ir.Value | None) -> None:
        """Replace the inputs of the node."""
        self.node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            self.node.replace_input_with(index, value)

    def pop(self, name: str, default: Any = None) -> Any:
        """Take an attribute off the node; its value as a plain Python object."""
        value = attribute_of(self.node, name, default)
        self.node.attributes.pop(name, None)
        return value

    def _constant(self, array: np.ndarray) -> ir.Value:
        value = self.op("Constant", [], {"value": ir.tensor(array)})
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
        return value
