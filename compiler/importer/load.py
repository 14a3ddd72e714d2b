"""From an ONNX file to one valid, static-shaped, single-graph `onnx_ir.Model` of opset 23 or newer.

Weights stay in their files; nothing in here copies them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from compiler.errors import ModelError, OptionError, first_line
from compiler.graph import (
    HOST_REASON,
    IR_VERSION,
    ORIGIN,
    WIDENED,
    all_activations,
    input_at,
    is_current,
    key_of,
    origin_of,
    scalar_of,
    shape_of,
    shapes,
)
from compiler.importer import onnxfile, upgrade
from compiler.importer import values as fixed_values

OLDEST_OPSET = 7
# Of an input: what numpy and onnxruntime take.
MOST_DIMENSIONS, MOST_ELEMENTS = 64, 1 << 31
# Weights of fewer bytes are read at once: shapes and axes, which passes look at.
SMALL = 4096


# onnxruntime's operator under ONNX's name, which ONNX's checker does not know: RMSNormalization of
# opset 23.
_SIMPLIFIED = "SimplifiedLayerNormalization"
# Types of inputs: those that numpy has itself.
_INPUT_TYPES = {"FLOAT", "FLOAT16", "DOUBLE", "BOOL"} | {
    f"{u}INT{n}" for u in ("", "U") for n in (8, 16, 32, 64)
}


def load(
    path: Path,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, str] | None = None,
    *,
    widen: bool = True,
) -> ir.Model:
    """Read, check and normalise the model in `path`.

    `dims` fixes symbolic dimensions by name, `shapes` whole inputs by name, `values` what inputs
    hold; without `widen`, float16 stays. Raises ModelError for a file that is broken, unsafe or
    still dynamic, OptionError for names that the model does not have.
    """
    model = read_file(path)
    _check_defined(model.graph)
    _rename(model, ("", _SIMPLIFIED), ("com.microsoft", _SIMPLIFIED))
    try:
        common.InlinePass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        name_nodes(
            model.graph
        )  # before any is replaced, so that all keep the name of what they come from
        upgrade.replace_deprecated(model)
        _check_valid(model)
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX model: {first_line(error)}") from error
    _check_inference(model.graph)
    fixed_values.fix(model, values or {}, shapes or {})
    free = {name: shape for name, shape in (shapes or {}).items() if name not in (values or {})}
    _fix_inputs(model, dict(dims or {}), free)
    _upgrade(model)
    _rename(
        model,
        ("com.microsoft", _SIMPLIFIED),
        ("", "RMSNormalization" if is_current(model) else _SIMPLIFIED),
    )
    if widen:
        _widen(model)
    name_nodes(model.graph)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    return model


def read_file(path: Path) -> ir.Model:
    """The model in a file as it stands, its external weights checked and mapped. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of an .onnx file")
    try:
        proto = onnxfile.load(path, SMALL)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: not an ONNX file, or a truncated one ({first_line(error)})"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        raise ModelError(f"{path}: not an ONNX model: it has no graph with outputs and an opset")
    onnxfile.check(proto, path)
    _check_maps(proto.graph)
    proto = _modern(proto, path)
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{path}: initializer '{name}' is sparse; store it densely")
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise ModelError(f"{path}: not a valid ONNX model: {first_line(error)}") from error
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    _unpack(model.graph)
    return model


def _unpack(graph: ir.Graph) -> None:
    """Take small weights out of protobuf and files, which copy a tensor each time that it is read."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if isinstance(tensor, ir.ExternalTensor) and tensor.length not in (None, tensor.nbytes):
            raise _wrong_size(value)
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= SMALL:
            value.const_value = onnxfile.read_lazily(tensor)
        elif isinstance(tensor, ir.ExternalTensor | ir.TensorProtoTensor):
            try:
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
            except ValueError as error:
                raise _wrong_size(value) from error


def _wrong_size(value: ir.Value) -> ModelError:
    return ModelError(
        f"weights '{value.name}' {list(shape_of(value))} hold another number of values: export again"
    )


def _rename(model: ir.Model, old: tuple[str, str], new: tuple[str, str]) -> None:
    for node in model.graph.all_nodes():
        if key_of(node) == old:
            node.domain, node.op_type = new


def _check_defined(graph: ir.Graph) -> None:
    known = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise ModelError(
                    f"{node.op_type} '{node.name}' reads tensor '{value.name}', which nothing defines: "
                    "export the model again"
                )


def _check_inference(graph: ir.Graph) -> None:
    """Results of a model in training mode are random. Raises ModelError."""
    for node in graph:
        if (
            key_of(node) == ("", "Dropout")
            and scalar_of(input_at(node, 2))
            and scalar_of(input_at(node, 1)) != 0
        ):
            name = origin_of(node)
            raise ModelError(
                f"Dropout '{name}' is in training mode: export the model again after model.eval()"
            )


def _check_maps(graph: onnx.GraphProto) -> None:
    """skl2onnx ends classifiers in dictionaries, by default. Raises ModelError."""
    for node in graph.node:
        if node.op_type == "ZipMap":
            name = node.name or node.output[0]
            raise ModelError(
                f"ZipMap '{name}' gives dictionaries, which bundles do not have: export with zipmap=False"
            )


def _fix_inputs(model: ir.Model, dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    inputs = {v.name: v for v in model.graph.inputs}
    for name, fixed in shapes.items():
        if name not in inputs:
            raise OptionError(
                f"--shape {name}: the model has no such input; it has {_quoted(inputs)}"
            )
        declared = inputs[name].shape
        if declared is not None and len(declared) != len(fixed):
            raise OptionError(
                f"--shape {name}: the input has {len(declared)} dimensions, not {len(fixed)}"
            )
        inputs[name].shape = ir.Shape(fixed)
    symbols = {
        str(d.value)
        for v in inputs.values()
        for d in v.shape or ()
        if isinstance(d, ir.SymbolicDim)
    }
    unused = [name for name in dims if name not in symbols and not shapes]
    if unused:
        has = _quoted(s for s in symbols if s != "None") or "none"
        raise OptionError(f"--dim {unused[0]}: the model has no such dimension; it has {has}")
    missing = []
    for value in inputs.values():
        if value.shape is None:
            missing.append(f"--shape {value.name}=...")
            continue
        fixed_dims = [_fixed(d, dims) for d in value.shape]
        value.shape = ir.Shape(fixed_dims)
        unknown = [
            (d, "..." if axis else 1) for axis, d in enumerate(fixed_dims) if not isinstance(d, int)
        ]
        missing += [
            f"--dim {d}={guess}" if d else f"--shape {value.name}=..." for d, guess in unknown
        ]
    if missing:
        wanted = " ".join(dict.fromkeys(missing))
        raise ModelError(
            f"some dimensions are not fixed; the Edge TPU needs static shapes: add {wanted}"
        )
    for value in inputs.values():
        _check_input(value)
    for value in model.graph.outputs:
        if isinstance(value.type, ir.OptionalType):
            raise ModelError(
                f"output '{value.name}' is optional; bundles give tensors and sequences"
            )
    fixed_inputs = {v: v.shape for v in inputs.values()}
    for value in all_activations(model.graph):
        value.shape = fixed_inputs.get(value)


def _check_input(value: ir.Value) -> None:
    """Raises ModelError for an input that no array can be."""
    name = (
        value.dtype.name
        if isinstance(value.type, ir.TensorType) and value.dtype is not None
        else "not a tensor"
    )
    if name not in _INPUT_TYPES:
        raise ModelError(
            f"input '{value.name}' is {name.lower()}; bundles take tensors of numpy's own types"
        )
    shape = shape_of(value)
    if len(shape) > MOST_DIMENSIONS:
        raise ModelError(
            f"input '{value.name}' has {len(shape)} dimensions; {MOST_DIMENSIONS} are supported"
        )
    if math.prod(shape) > MOST_ELEMENTS:
        raise ModelError(
            f"input '{value.name}' {list(shape)} has more than 2^31 elements: give a smaller --shape"
        )


def _fixed(dim: int | ir.SymbolicDim, dims: Mapping[str, int]) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None  # some exporters write -1 for what is dynamic
    return dims.get(str(dim.value), dim.value) if dim.value is not None else None


def _modern(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model in an opset that onnxruntime takes. Raises ModelError for one that is too old or
    too new."""
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    opset = {o.domain: o.version for o in proto.opset_import}.get("", newest)
    if OLDEST_OPSET <= opset <= newest:
        return proto
    if opset < OLDEST_OPSET:
        _check_slopes(proto.graph, path, opset)
        try:
            proto = onnx.load(path)  # the converter wants the weights
            return onnx.version_converter.convert_version(proto, OLDEST_OPSET)
        except Exception as error:
            why = f" ({first_line(error)})"
    else:
        why = ""
    wanted = f"opsets {OLDEST_OPSET} to {newest} are supported, and older ones that can be raised"
    raise ModelError(f"{path}: opset {opset}; {wanted}{why}: export it again")


def _check_slopes(graph: onnx.GraphProto, path: Path, opset: int) -> None:
    """PRelu had slopes per channel before it had numpy's broadcasting, which ONNX's converter does
    not know.

    Raises ModelError.
    """
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "PRelu" and sizes.get(node.input[1], 0) != 1:
            name = node.name or node.output[0]
            raise ModelError(
                f"{path}: PRelu '{name}' of opset {opset} has slopes per channel: export in opset 7 or newer"
            )


def _quoted(names: object) -> str:
    return ", ".join(f"'{n}'" for n in sorted(names))  # type: ignore[call-overload]


def _upgrade(model: ir.Model) -> None:
    """Raise the opset to 23, so that each operator has one form.

    A model that cannot be raised keeps its opset, and all its nodes run on the host: passes and
    rules of operators speak of newer ones, onnxruntime knows the old meaning.
    """
    why = upgrade.upgrade(model)
    if why is not None:
        for node in model.graph:
            node.metadata_props[HOST_REASON] = f"the model keeps its opset: {why}"


def _widen(model: ir.Model) -> None:
    """Compute in float32 what the model computes in float16; its inputs and outputs keep their
    types.

    Calibration and host segments then need one float type only, and lose nothing.
    """
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    graph = model.graph
    if not any(v.dtype == half for v in [*graph.initializers.values(), *graph.inputs]) or any(
        graph.subgraphs()
    ):
        return
    shapes.infer(model)
    if any(
        v.dtype == half and not isinstance(v.type, ir.TensorType) for v in all_activations(graph)
    ):
        return  # sequences, whose operators take one type
    model.metadata_props[WIDENED] = "float16"
    halves = {v for v in graph.outputs if v.dtype == half and not v.is_graph_input()}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == half:
            value.const_value = _lazy_float32(tensor)
            value.type = ir.TensorType(single)
    for node in graph:
        _widen_attributes(node)
        for value in node.outputs:
            if value.dtype == half:
                value.type = ir.TensorType(single)
    for value in graph.inputs:
        if value.dtype == half:
            _cast_input(graph, value)
    for index, value in enumerate(list(graph.outputs)):
        if value in halves:
            graph.outputs[index] = _cast_output(graph, value)


def _lazy_float32(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def widened() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32))

    return ir.LazyTensor(widened, dtype=ir.DataType.FLOAT, shape=ir.Shape(list(tensor.shape)))  # type: ignore[arg-type]


def _widen_attributes(node: ir.Node) -> None:
    """Cast and its like name a type; ConstantOfShape and Constant hold a tensor."""
    for name in ("to", "dtype", "output_dtype", "output_datatype", "stash_type"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value == ir.DataType.FLOAT16:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
    value = node.attributes.get("value")
    if (
        value is not None
        and isinstance(value.value, ir.TensorProtocol)
        and value.value.dtype == ir.DataType.FLOAT16
    ):
        node.attributes["value"] = ir.AttrTensor(
            "value", ir.tensor(value.value.numpy().astype(np.float32))
        )


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, ir.DataType.FLOAT, f"{value.name}/float32")
    graph.insert_before(graph[0], cast)
    for user, index in list(value.uses()):
        if user is not cast:
            user.replace_input_with(index, cast.outputs[0])


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    cast = _cast(value, ir.DataType.FLOAT16, str(value.name))
    value.name = f"{value.name}/float32"
    graph.append(cast)
    return cast.outputs[0]


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": to.value}, num_outputs=1, name=f"{name}/cast")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = (
        name,
        value.shape,
        ir.TensorType(to),
    )
    return node


def name_nodes(graph: ir.Graph) -> None:
    """Give each node a unique name and write down where it comes from."""
    seen: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in seen:
            name = f"{name}_{index}"
        seen.add(name)
        node.name = name
        node.metadata_props.setdefault(ORIGIN, name)


def _check_valid(model: ir.Model) -> None:
    """ONNX's own checker; it insists on shapes of outputs, which many exporters leave out and
    inference fills in."""
    if any(v.shape is None for v in model.graph.outputs):
        shapes.infer(model)
    bare = [v for v in model.graph.outputs if v.shape is None]
    for value in bare:
        value.shape = ir.Shape([])
    try:
        common.CheckerPass()(model)
    finally:
        for value in bare:
            value.shape = None


def check_weights(graph: ir.Graph) -> None:
    """Look through all weights, which only a build has to read. Raises ModelError for NaN."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.itemsize < 2:
            continue
        if np.isnan(np.min(tensor.numpy().astype(np.float32, copy=False), initial=0)):
            raise ModelError(
                f"weights '{value.name}' {list(tensor.shape)} hold NaN: repair or export the model again"
            )
