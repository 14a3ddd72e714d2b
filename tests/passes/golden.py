"""Golden tests of passes: the graph that goes in and the one that is to come out, as ONNX text.

    rewrites("fold_flatten", BEFORE, AFTER)      the pass makes AFTER of BEFORE
    leaves_alone("fold_flatten", GRAPH)          the pass must not fire here

Both hold the result against graphs and numbers that the compiler did not make:

- The nodes are those of AFTER, in this order, with these attributes; an attribute that has ONNX's
  default value counts as absent. Values that BEFORE names keep their names, all others are free.
- Constants have the values that AFTER gives, to 1e-6 of their largest one. Constants of more than 64
  elements are printed without values; the test computes them: `constants={"turned": w @ h.T}`.
- BEFORE, AFTER and what the pass made run on onnxruntime, unoptimized, on drawn inputs. Every tensor
  that BEFORE names and that is still there must be the same to 1e-5 of its largest value.
- The shapes that the pass noted are those that onnxruntime computes.

A label in front of a node says what passes noted of it: [host] that it is kept on the host,
[balanced] that its factors may be chosen by calibration, [balanced_host] both, [refused] that
lowering left it. BEFORE may have these labels too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import defs, helper, numpy_helper

from compiler.graph import BALANCED, HOST_REASON, LOWERING_REASON, operator_name
from compiler.importer import load as importer
from compiler.ops import dialect
from compiler.targets import Target
from passes import PASSES, PassContext

Arrays = Mapping[str, np.ndarray]
# The name of a pass, or another change of a model in place.
Step = str | Callable[[ir.Model], object]

TARGET = Target.load()
RECORDS = {record.name: record for record in PASSES}
HEAD = '<ir_version: 11, opset_import: ["" : 23, "edgetpu" : 1, "com.microsoft" : 1]>\n'
# Constants up to this many elements are part of the text.
SHOWN = 64
# What ONNX text calls the element types that tests use.
TYPES = {
    np.dtype(np.float32): "float",
    np.dtype(np.int64): "int64",
    np.dtype(np.int32): "int32",
    np.dtype(np.int8): "int8",
    np.dtype(np.uint8): "uint8",
    np.dtype(np.uint16): "uint16",
    np.dtype(bool): "bool",
}
LABELS = {HOST_REASON: "host", BALANCED: "balanced", LOWERING_REASON: "refused"}
CONSTANT_TOLERANCE = 1e-6
TOLERANCE = 1e-5


@dataclass
class Rewritten:
    """What a pass made of a graph, for checks beyond those of `rewrites`."""

    model: ir.Model
    proto: onnx.ModelProto = field(init=False)

    def __post_init__(self) -> None:
        self.proto = ir.serde.serialize_model(self.model)

    @property
    def text(self) -> str:
        return printed(self.proto.graph)

    @property
    def kinds(self) -> list[str]:
        """The operators, in order."""
        return [operator_name(node) for node in self.model.graph]

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """All constants that are left, by the names that `text` gives them."""
        return {_identifier(t.name): numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    def reasons(self, key: str) -> dict[str, str]:
        """What passes noted under `key`, by the name of the node's first output."""
        marked = [node for node in self.model.graph if key in node.metadata_props]
        return {str(node.outputs[0].name): node.metadata_props[key] for node in marked}


def rewrites(
    names: Step | Sequence[Step],
    before: str,
    after: str,
    *,
    weights: Arrays | None = None,
    constants: Arrays | None = None,
    inputs: Arrays | None = None,
    changed: Collection[str] = (),
) -> Rewritten:
    """Hold that these passes make `after` of `before`.

    `weights` are constants of `before`, `constants` those of `after`, both beside what the texts
    give; `inputs` are drawn where they are not given. `changed` are inner tensors that are to have
    other values.
    """
    original, made = run_passes(names, before, weights)
    expected = parsed(after, constants)
    _complete(expected.graph)
    known = _names(original.graph)
    got, want = _Canonical(made.proto.graph, known), _Canonical(expected.graph, known)
    assert got.lines == want.lines, f"the graph is now\n{made.text}"
    for (where, array), (_, wanted) in zip(got.arrays, want.arrays, strict=True):
        largest = float(np.abs(wanted.astype(np.float64)).max(initial=0, where=np.isfinite(wanted)))
        message = f"constant {where} of\n{made.text}"
        np.testing.assert_allclose(
            array, wanted, rtol=0, atol=CONSTANT_TOLERANCE * largest, err_msg=message
        )
    compute_the_same(original, [made.proto, expected], inputs, changed)
    return made


def leaves_alone(
    names: Step | Sequence[Step],
    graph: str,
    *,
    weights: Arrays | None = None,
    inputs: Arrays | None = None,
) -> Rewritten:
    """Hold that these passes do not touch a graph. It must have no node of constants alone."""
    return rewrites(names, graph, graph, weights=weights, constants=weights, inputs=inputs)


def run_passes(
    names: Step | Sequence[Step], before: str, weights: Arrays | None = None
) -> tuple[onnx.ModelProto, Rewritten]:
    """(the graph as it was, what `fold_constants` and then these passes made of it)."""
    original = parsed(before, weights)
    model = ir.serde.deserialize_model(original)
    for node in model.graph:
        for key, label in LABELS.items():
            if label in str(node.name).split("_"):
                node.metadata_props[key] = "the test says so"
        node.name = ""
    importer.name_nodes(model.graph)
    steps = names if isinstance(names, Sequence) and not isinstance(names, str) else [names]
    for step in ("fold_constants", *steps):
        if isinstance(step, str):
            RECORDS[step].run(model, PassContext(TARGET))
        else:
            step(model)
    return original, Rewritten(model)


def weight(*shape: int) -> np.ndarray:
    """Drawn weights, the same for the same shape."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def parsed(text: str, constants: Arrays | None = None) -> onnx.ModelProto:
    """A model from ONNX text, constants that the text leaves open, and the dialect's functions."""
    proto = onnx.parser.parse_model(HEAD + textwrap.dedent(text))
    graph = proto.graph
    for name, array in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    given = {tensor.name for tensor in graph.initializer}
    left = [info for info in graph.value_info if info.name not in given]
    del graph.value_info[:]
    graph.value_info.extend(left)
    proto.functions.extend(
        ir.serde.serialize_function(function) for function in dialect.functions()
    )
    return proto


def printed(graph: onnx.GraphProto) -> str:
    """A graph as ONNX text: attributes and small constants in full, larger ones without values."""
    constants = [_declaration(tensor) for tensor in graph.initializer]
    lines = [f"g ({_signature(graph.input)}) => ({_signature(graph.output)})"]
    if constants:
        lines.append("<" + ",\n ".join(constants) + ">")
    return "\n".join([*lines, "{", *(f"    {_node_text(node)}" for node in graph.node), "}"])


def _signature(values: Iterable[onnx.ValueInfoProto]) -> str:
    return ", ".join(
        f"{_type_text(value.type.tensor_type)} {_identifier(value.name)}" for value in values
    )


def _type_text(tensor: onnx.TypeProto.Tensor) -> str:
    name = TYPES[helper.tensor_dtype_to_np_dtype(tensor.elem_type)]
    dimensions = ",".join(
        str(d.dim_value) if d.HasField("dim_value") else "?" for d in tensor.shape.dim
    )
    return f"{name}[{dimensions}]" if dimensions else name


def _declaration(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    shape = f"[{','.join(map(str, array.shape))}]" if array.shape else ""
    declared = f"{TYPES[array.dtype]}{shape} {_identifier(tensor.name)}"
    if array.size > SHOWN:
        return declared
    return f"{declared} = {{{', '.join(_number(n) for n in array.reshape(-1))}}}"


def _number(number: np.generic) -> str:
    if number.dtype.kind in "biu":
        return str(int(number))
    return str(number).removesuffix(".0") if number else "0"


def _node_text(node: onnx.NodeProto) -> str:
    inputs = ", ".join(_identifier(name) for name in node.input)
    outputs = ", ".join(_identifier(name) for name in node.output)
    attributes = ", ".join(f"{name} = {value}" for name, value in _attributes(node).items())
    label = "".join(f"[{label}] " for label in [_label(node)] if label)
    return f"{label}{outputs} = {_kind(node)}{f' <{attributes}>' if attributes else ''} ({inputs})"


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _kind(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _label(node: onnx.NodeProto) -> str:
    """What passes noted of a node that they made, or the label that it has in a text."""
    marks = [LABELS[entry.key] for entry in node.metadata_props if entry.key in LABELS]
    if marks:
        return "_".join(sorted(marks))
    words = sorted(node.name.split("_"))
    return "_".join(words) if set(words) <= set(LABELS.values()) else ""


def _attributes(node: onnx.NodeProto) -> dict[str, str]:
    """Attributes as ONNX text, without those that have ONNX's default value."""
    found = {}
    schema = defs.get_schema(node.op_type, 23) if not node.domain else None
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        known = schema.attributes.get(attribute.name) if schema is not None else None
        value = helper.get_attribute_value(attribute)
        default = known.default_value if known is not None else None
        if default is None or default.type == 0 or helper.get_attribute_value(default) != value:
            found[attribute.name] = _attribute_text(value)
    return found


def _attribute_text(value: object) -> str:
    if isinstance(value, bytes):
        return f'"{value.decode()}"'
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if "." in short or "e" in short else f"{short}.0"
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, Sequence), f"an attribute that goldens cannot show: {value}"
    return f"[{', '.join(map(_attribute_text, value))}]"


def _names(graph: onnx.GraphProto) -> set[str]:
    """All values of a graph but its constants."""
    return {value.name for value in graph.input} | {
        name for node in graph.node for name in node.output
    }


def _complete(graph: onnx.GraphProto) -> None:
    made = _names(graph) | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in made]
        assert not missing, (
            f"the expected graph does not say what {missing} are: give them as constants"
        )


class _Canonical:
    """A graph in which only the names of `known` values count.

    `lines` are its signature and nodes, `arrays` its constants in the order in which nodes read
    them.
    """

    def __init__(self, graph: onnx.GraphProto, known: Collection[str]) -> None:
        self._constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._known = known
        self._renamed: dict[str, str] = {}
        self.arrays: list[tuple[str, np.ndarray]] = []
        self.lines = [f"({_signature(graph.input)}) => ({_signature(graph.output)})"]
        self.lines += [self._line(node) for node in graph.node]
        used = {name for node in graph.node for name in node.input}
        self.lines += [f"nobody reads {name}" for name in self._constants if name not in used]

    def _line(self, node: onnx.NodeProto) -> str:
        inputs = ", ".join(self._input(name) for name in node.input)
        outputs = ", ".join(self._value(name) for name in node.output)
        attributes = ", ".join(f"{name} = {value}" for name, value in _attributes(node).items())
        return f"[{_label(node)}] {outputs} = {_kind(node)} <{attributes}> ({inputs})"

    def _value(self, name: str) -> str:
        if not name or name in self._known:
            return name
        return self._renamed.setdefault(name, f"%{len(self._renamed)}")

    def _input(self, name: str) -> str:
        array = self._constants.get(name)
        if array is None:
            return self._value(name)
        self.arrays.append((name, array))
        return f"{TYPES[array.dtype]}{list(array.shape)}"


def compute_the_same(
    original: onnx.ModelProto,
    others: Sequence[onnx.ModelProto],
    inputs: Arrays | None = None,
    changed: Collection[str] = (),
) -> None:
    """Hold that models compute what the original computes, and have the shapes that they note."""
    outputs = {output.name for output in original.graph.output}
    assert not outputs & set(changed)
    feeds = dict(inputs or {})
    rng = np.random.default_rng(0)
    for value in original.graph.input:
        if value.name not in feeds:
            feeds[value.name] = _drawn(rng, value.type.tensor_type)
    wanted = _computed(original, feeds)
    for proto in others:
        found = _computed(proto, feeds)
        assert outputs <= set(found)
        for name in (wanted.keys() & found.keys()) - set(changed):
            want, got = wanted[name], found[name]
            assert got.dtype == want.dtype, name
            largest = float(np.abs(want.astype(np.float64)).max(initial=0, where=np.isfinite(want)))
            np.testing.assert_allclose(
                got, want, rtol=0, atol=TOLERANCE * largest, err_msg=f"tensor {name}"
            )
        for info in proto.graph.value_info:
            if info.name in found and info.type.tensor_type.HasField("shape"):
                noted = [
                    d.dim_value if d.HasField("dim_value") else None
                    for d in info.type.tensor_type.shape.dim
                ]
                shape = found[info.name].shape
                known = [
                    got if wanted is None else wanted
                    for wanted, got in zip(noted, shape, strict=True)
                ]
                assert known == list(shape), f"the shape of {info.name}"


def _drawn(rng: np.random.Generator, tensor: onnx.TypeProto.Tensor) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = [d.dim_value for d in tensor.shape.dim]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _computed(proto: onnx.ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    """Every tensor that the nodes of a graph make."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    for node in shown.graph.node:
        node.name = ""
    own = {output.name for output in proto.graph.output}
    inner = [name for node in proto.graph.node for name in node.output if name and name not in own]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
