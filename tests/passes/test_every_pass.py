"""Every pass has a file of its own here, and its record says where it stands."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import passes
from compiler.graph import OPSET, RAISED
from passes import PASSES, SAMPLE_PASSES, Pass, PassContext, in_order

HERE = Path(__file__).parent
# What passes are given and told by; each has tests of its own.
NO_PASSES = {"__init__", "context", "record"}


def test_every_pass_has_its_goldens() -> None:
    names = [record.name for record in (*PASSES, *SAMPLE_PASSES)]
    missing = [name for name in names if not (HERE / f"test_{name}.py").is_file()]
    assert not missing, f"passes without a test file: {missing}"


def test_every_module_is_a_pass_of_its_name() -> None:
    modules = {path.stem for path in Path(passes.__file__).parent.glob("*.py")} - NO_PASSES
    records = (*PASSES, *SAMPLE_PASSES)
    assert {record.name for record in records} == modules
    assert all(record.run.__module__ == f"passes.{record.name}" for record in records)


def test_names_of_one_kind_come_from_the_records() -> None:
    assert passes.OPTIONAL == ("fuse_blocks", "rotate_outputs", "second_row", "rotate_stream")
    assert set(passes.ACCURACY) > {"keep_gates", "normalise_linears", "balance", "correct_biases"}
    assert not {"lower", "observe", *passes.OPTIONAL} & set(passes.ACCURACY)


def nothing(model: ir.Model, context: PassContext) -> None: ...


def test_a_pass_that_comes_too_early_is_an_error() -> None:
    first = Pass("first", nothing)
    second = Pass("second", nothing, after={"first": "it reads what that writes"})
    assert in_order(first, second) == (first, second)
    with pytest.raises(ValueError, match="second must come after first: it reads what that writes"):
        in_order(second, first)
    with pytest.raises(ValueError, match="two passes are named first"):
        in_order(first, first)


def test_passes_may_follow_those_of_an_earlier_list() -> None:
    record = Pass("second", nothing, after={"first": "it reads what that writes"})
    assert in_order(record, earlier=["first"]) == (record,)
    with pytest.raises(ValueError, match="two passes are named second"):
        in_order(record, earlier=["first", "second"])


@pytest.mark.parametrize(
    ("model_opset", "lowest_opset", "accepted"),
    [(17, RAISED, False), (RAISED, RAISED, True), (RAISED, OPSET, False), (17, 0, True)],
)
def test_old_opsets_are_left_alone(model_opset: int, lowest_opset: int, accepted: bool) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": model_opset})
    record = Pass("any", nothing, lowest_opset=lowest_opset)
    assert record.accepts(ir.Model(graph, ir_version=10)) is accepted
