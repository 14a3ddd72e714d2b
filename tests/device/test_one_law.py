"""`build` and `check` give one verdict: on operators that are drawn at random, and on what is
written for fixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler import importer
from compiler.device.legality import LONE, check, refusal
from compiler.driver.rewriting import PassDriver
from compiler.emit import tflite
from compiler.graph import DIALECT, OPSET, activations_of, all_activations
from compiler.ops import dialect, operator_of
from compiler.quant import Quant
from compiler.targets import Target
from fixtures import light
from passes import PASSES, PassContext

FIXTURES = Path(__file__).parents[2] / "fixtures"
TARGET = Target.load()
DRAWS = 40
Shape = tuple[int, ...]


@dataclass
class Drawn:
    """A node with the shapes of what it reads and makes, and its constants."""

    op_type: str
    inputs: list[Shape]
    outputs: list[Shape]
    constants: list[np.ndarray] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def _shape(rng: np.random.Generator, least: int = 1, most: int = 5) -> Shape:
    """Mostly of batch 1, now and then large."""
    rank = int(rng.integers(least, most + 1))
    sizes = rng.choice([1, 2, 3, 4, 8, 17, 40, 64, 128], rank)
    if rng.random() < 0.8:
        sizes[: max(rank - 3, 1)] = 1
    return tuple(map(int, sizes))


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _transpose(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng, 2)
    perm = [int(axis) for axis in rng.permutation(len(shape))]
    made = tuple(shape[axis] for axis in perm)
    return Drawn("Transpose", [shape], [made], attributes={"perm": perm})


def _reshape(rng: np.random.Generator) -> Drawn:
    """Two neighbours become one, or a dimension becomes two."""
    shape = _shape(rng, 2)
    axis = int(rng.integers(len(shape) - 1))
    joined = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    x, y = (shape, joined) if rng.random() < 0.5 else (joined, shape)
    return Drawn("Reshape", [x], [y], [_ints(*y)])


def _concat(rng: np.random.Generator) -> Drawn:
    shape = list(_shape(rng, 2, 4))
    axis = int(rng.integers(len(shape)))
    whole = [2 * size if at == axis else size for at, size in enumerate(shape)]
    return Drawn("Concat", [tuple(shape)] * 2, [tuple(whole)], attributes={"axis": axis})


def _split(rng: np.random.Generator) -> Drawn:
    part = list(_shape(rng, 1, 4))
    axis = int(rng.integers(len(part)))
    whole = [2 * size if at == axis else size for at, size in enumerate(part)]
    attributes = {"axis": axis, "num_outputs": 2}
    return Drawn("Split", [tuple(whole)], [tuple(part)] * 2, attributes=attributes)


def _slice(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng, 1, 4)
    steps = [int(rng.choice([1, 1, 2])) for _ in shape]
    made = tuple(-(-size // step) for size, step in zip(shape, steps, strict=True))
    axes = range(len(shape))
    constants = [_ints(*(0 for _ in axes)), _ints(*shape), _ints(*axes), _ints(*steps)]
    return Drawn("Slice", [shape], [made], constants)


def _pad(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng)
    after = [int(rng.choice([0, 1])) for _ in shape]
    made = tuple(size + more for size, more in zip(shape, after, strict=True))
    return Drawn("Pad", [shape], [made], [_ints(*(0 for _ in shape), *after)])


def _reduce(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng)
    count = int(rng.integers(1, len(shape) + 1))
    axes = sorted(int(axis) for axis in rng.choice(len(shape), count, replace=False))
    made = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    op_type = str(rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"]))
    return Drawn(op_type, [shape], [made], [_ints(*axes)], {"keepdims": 1})


def _mean_of_image(rng: np.random.Generator) -> Drawn:
    height, width = (int(rng.choice([7, 56, 112])) for _ in range(2))
    channels = int(rng.choice([3, 8]))
    axes = [[1, 2], [3]][int(rng.integers(2))]
    x = (1, height, width, channels)
    made = tuple(1 if axis in axes else size for axis, size in enumerate(x))
    return Drawn("ReduceMean", [x], [made], [_ints(*axes)], {"keepdims": 1})


def _softmax(rng: np.random.Generator) -> Drawn:
    shape = (*_shape(rng, 1, 3), int(rng.choice([4, 16, 17, 2000, 20_000])))
    return Drawn("Softmax", [shape], [shape], attributes={"axis": -1})


def _resize(rng: np.random.Generator) -> Drawn:
    height, channels = int(rng.choice([1, 8, 100])), int(rng.choice([8, 64]))
    x, y = (1, height, height, channels), (1, 2 * height, 2 * height, channels)
    attributes = {
        "mode": str(rng.choice(["linear", "nearest"])),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return Drawn("Resize2D", [x], [y], [_ints(*y)], attributes, DIALECT)


def _conv(rng: np.random.Generator) -> Drawn:
    kernel = [int(rng.choice([1, 3, 17])) for _ in range(2)]
    dilations = [int(rng.choice([1, 2])) for _ in range(2)]
    batch = int(rng.choice([1, 1, 2]))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    x, y = (batch, 40, 40, 3), (batch, 40 - reach[0], 40 - reach[1], 5)
    weights = rng.standard_normal((5, 3, *kernel)).astype(np.float32)
    attributes = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": dilations}
    return Drawn("Conv2D", [x], [y], [weights, np.ones(5, np.float32)], attributes, DIALECT)


def _dense(rng: np.random.Generator) -> Drawn:
    rows = int(rng.choice([1, 1, 4]))
    weights = rng.standard_normal((6, 8)).astype(np.float32)
    constants = [weights, np.ones(6, np.float32)]
    return Drawn("FullyConnected", [(rows, 8)], [(rows, 6)], constants, domain=DIALECT)


def _add(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng)
    return Drawn("Add", [shape, shape], [shape])


def _prelu(rng: np.random.Generator) -> Drawn:
    x = (1, 8, 6, 4)
    slopes = [(4,), (1, 1, 4), (8, 1, 4), (6, 4)][int(rng.integers(4))]
    return Drawn("PRelu", [x], [x], [rng.random(slopes).astype(np.float32)])


def _sigmoid(rng: np.random.Generator) -> Drawn:
    shape = _shape(rng)
    return Drawn("Sigmoid", [shape], [shape])


KINDS: tuple[Callable[[np.random.Generator], Drawn], ...] = (
    _transpose,
    _reshape,
    _concat,
    _split,
    _slice,
    _pad,
    _reduce,
    _mean_of_image,
    _softmax,
    _resize,
    _conv,
    _dense,
    _add,
    _prelu,
    _sigmoid,
)


def _graph(drawn: Drawn) -> ir.Model:
    """A graph of the node, whose results something else reads."""
    given = [f"x{index}" for index in range(len(drawn.inputs))]
    constants = [f"c{index}" for index in range(len(drawn.constants))]
    made = [f"y{index}" for index in range(len(drawn.outputs))]
    node = helper.make_node(
        drawn.op_type, [*given, *constants], made, domain=drawn.domain, **drawn.attributes
    )
    readers = [helper.make_node("Sigmoid", [name], [f"{name}/read"]) for name in made]

    def infos(names: list[str], shapes: list[Shape]) -> list[onnx.ValueInfoProto]:
        pairs = zip(names, shapes, strict=True)
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in pairs]

    graph = helper.make_graph(
        [node, *readers],
        "drawn",
        infos(given, drawn.inputs),
        infos([f"{name}/read" for name in made], drawn.outputs),
        [numpy_helper.from_array(a, n) for n, a in zip(constants, drawn.constants, strict=True)],
        value_info=infos(made, drawn.outputs),
    )
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    )
    dialect.declare(model)
    return model


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__[1:])
def test_one_verdict(kind: Callable[[np.random.Generator], Drawn], tmp_path: Path) -> None:
    """What the compiler says of a node is what `check` says of the operator that is written."""
    rng = np.random.default_rng(7)
    seen: Counter[bool] = Counter()
    for _ in range(DRAWS):
        model = _graph(kind(rng))
        node = next(iter(model.graph))
        operator = operator_of(node)
        assert operator.emit is not None
        if operator.refuse is not None:
            assert operator.refuse(node, TARGET) is None
        reason = refusal(node, TARGET)
        quants = {str(value.name): Quant(0.1, 0) for value in all_activations(model.graph)}
        path = tmp_path / "segment.tflite"
        path.write_bytes(tflite.write([node], model.graph.inputs, list(node.outputs), quants))
        reasons = [row["reason"] for row in check(path, TARGET) if row["reason"] is not None]
        written = reasons[0] if reasons else None
        assert _sentence(reason) == _sentence(written), node
        seen[reason is None] += 1
    # Draws that are all alike would show nothing.
    assert seen[True] >= 4 and seen[False] >= 4, seen


def _sentence(reason: str | None) -> str | None:
    """What is needed, without the names of tensors."""
    return None if reason is None else reason.partition("; ")[0]


def refused_of_written(path: Path, folder: Path) -> tuple[int, list[str]]:
    """(operators that are written for the nodes of a model that the Edge TPU takes, what `check`
    says against any)."""
    model = importer.load(path)
    PassDriver().run(PASSES, model, PassContext(TARGET))
    nodes = [node for node in model.graph if refusal(node, TARGET) is None]
    if not nodes:
        return 0, []
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in activations_of(node))
    quants = {str(value.name): Quant(0.1, 0) for value in all_activations(model.graph)}
    written = folder / "segment.tflite"
    inputs = [value for value in read if value not in made]
    written.write_bytes(tflite.write(nodes, inputs, list(made), quants))
    rows = check(written, TARGET, "many")
    reasons = [row["reason"] for row in rows if row["reason"] not in (None, LONE)]
    return len(rows), [str(reason) for reason in reasons]


# Those whose dimensions are fixed.
EXPORTS = [
    *(FIXTURES / "exports" / "encoders").glob("*.onnx"),
    FIXTURES / "exports/fused/model.onnx",
]


@pytest.mark.parametrize("path", sorted(EXPORTS), ids=lambda path: path.stem)
def test_nothing_is_written_that_check_refuses(path: Path, tmp_path: Path) -> None:
    assert refused_of_written(path, tmp_path)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v1", "shufflenet", "squeezenet", "densenet121"])
def test_nothing_is_written_of_networks_that_check_refuses(name: str, tmp_path: Path) -> None:
    count, refused = refused_of_written(light.generate(name, tmp_path / "m.onnx"), tmp_path)
    assert count > 20 and refused == []
