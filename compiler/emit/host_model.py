"""The pen for the ONNX model of a host segment: nodes, constants and boundaries, one after the
other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.emit.store import LEAST_BYTES, Store
from compiler.graph import IR_VERSION, OPSET, is_constant, shape_of, values_read


class HostModel:
    """An ONNX model in the making, whose large constants go to a store.

    `opsets` are those of the model that nodes are copied from. `files` names those of the store's
    files that the model keeps constants in.
    """

    def __init__(self, name: str, opsets: Mapping[str, int], store: Store) -> None:
        self.files: list[str] = []
        self._graph = onnx.GraphProto(name=name)
        self._opsets = opsets
        self._store = store
        self._constants: set[str] = set()
        self._domains = {"": OPSET}

    def input(self, value: ir.Value, is_int8: bool) -> None:
        """An input of the model, as int8 or as it is."""
        self._graph.input.append(_boundary(value, is_int8))

    def output(self, value: ir.Value, is_int8: bool) -> None:
        """An output of the model, as int8 or as it is."""
        self._graph.output.append(_boundary(value, is_int8))

    def scalar_output(self, name: str) -> None:
        """A float number as an output."""
        self._graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ())
        )

    def node(self, node: ir.Node) -> None:
        """A copy of a node, with the constants that it reads."""
        for value in values_read(node):
            if is_constant(value):
                self._constant(value)
        self._domains.setdefault(node.domain, self._opsets.get(node.domain, 1))
        self._graph.node.append(ir.serde.serialize_node(node))

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """A new node, named as its first output."""
        node = onnx.helper.make_node(
            op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes
        )
        self.append(node)

    def append(self, node: onnx.NodeProto) -> None:
        """A new node as it is; its domain has version 1 unless it is known already."""
        self._domains.setdefault(node.domain, 1)
        self._graph.node.append(node)

    def array(self, name: str, array: np.ndarray | np.generic) -> str:
        """A new constant; returns its name. One of a name that is there already is the same."""
        self._add(name, np.asarray(array))
        return name

    def finished(
        self, functions: Iterable[ir.Function], properties: dict[str, str]
    ) -> onnx.ModelProto:
        """The model, with the functions that its nodes call and properties for its metadata."""
        model = onnx.ModelProto(
            ir_version=IR_VERSION, producer_name="coral-bundle", graph=self._graph
        )
        for function in functions:
            model.functions.append(ir.serde.serialize_function(function))
        for domain, version in sorted((self._domains | dict(self._opsets)).items()):
            if domain in self._domains:
                model.opset_import.append(onnx.helper.make_opsetid(domain, version))
        onnx.helper.set_model_props(model, properties)
        return model

    def _constant(self, value: ir.Value) -> None:
        name = str(value.name)
        tensor = value.const_value
        assert tensor is not None
        has_bytes = tensor.dtype != ir.DataType.STRING and tensor.dtype.itemsize >= 1
        if has_bytes:
            self._add(name, tensor.numpy())
        elif name not in self._constants:
            self._constants.add(name)
            proto = ir.serde.serialize_tensor(tensor)
            proto.name = name
            self._graph.initializer.append(proto)

    def _add(self, name: str, array: np.ndarray) -> None:
        if name in self._constants:
            return
        self._constants.add(name)
        if array.nbytes < LEAST_BYTES:
            self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            return
        place = self._store.place(array)
        if place.file not in self.files:
            self.files.append(place.file)
        proto = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        proto.external_data.add(key="location", value=place.file)
        proto.external_data.add(key="offset", value=str(place.offset))
        proto.external_data.add(key="length", value=str(place.length))
        self._graph.initializer.append(proto)


def int8_name(value: ir.Value) -> str:
    """What the int8 form of a tensor is called in the model of a host segment."""
    return f"{value.name}/int8"


def _boundary(value: ir.Value, is_int8: bool) -> onnx.ValueInfoProto:
    if not is_int8:
        return ir.serde.serialize_value(value)
    return onnx.helper.make_tensor_value_info(
        int8_name(value), onnx.TensorProto.INT8, shape_of(value)
    )
