"""What the host keeps of normalised products is plain, gives the same, and is not paid for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import origin_of
from compiler.partition import DeviceKind, PartitionOptions, Program, partition, plain_on_host
from compiler.targets import Target
from tests.partition.graphs import check_borders
from tests.passes.golden import compute_the_same, parsed, run_passes, weight

TARGET = Target.load()
PASSES = ("lower", "cancel_transposes", "cancel_reshapes", "rotate_rows", "normalise_linears")
TEXT = """
    g (float[{rows},{wide}] x) => (float[{rows},{wide}] y) {{
        s = Erf (x)
        d = MatMul (s, w)
        t = Erf (d)
        e = MatMul (t, v)
        y = Erf (e)
    }}"""
SMALL = TEXT.format(rows=6, wide=16)
WEIGHTS = {"w": weight(16, 24), "v": weight(24, 16)}


def program(
    options: PartitionOptions, text: str = SMALL, weights: Mapping[str, np.ndarray] = WEIGHTS
) -> Program:
    """The products, normalised and placed."""
    _, made = run_passes(PASSES, text, weights)
    return Program(made.model, partition(made.model, TARGET, options), TARGET)


def kinds(program: Program) -> list[str]:
    return [node.op_type for node in program.model.graph if node.op_type != "Reshape"]


def test_products_on_the_host_are_plain() -> None:
    found = program(PartitionOptions(place="host"))
    made = plain_on_host(found)
    assert kinds(made) == ["Erf", "Gemm", "Erf", "Gemm", "Erf"]
    compute_the_same(parsed(SMALL, WEIGHTS), [ir.serde.serialize_model(made.model)])
    check_borders(made.plan, made.model.graph)
    assert plain_on_host(made) is made


def test_plans_count_on_that() -> None:
    """Large enough that what is saved is less than the product takes."""
    weights = {"w": weight(256, 1024), "v": weight(1024, 256)}
    found = program(PartitionOptions(place="host"), TEXT.format(rows=256, wide=256), weights)
    made = plain_on_host(found)
    assert made.plan.latency == pytest.approx(found.plan.latency, rel=0.01)


def test_products_on_an_edge_tpu_stay_normalised() -> None:
    first, second = (node for node in program(PartitionOptions()).model.graph if node.domain)
    pins: dict[str, DeviceKind] = {origin_of(first): "host", origin_of(second): "tpu"}
    made = plain_on_host(program(PartitionOptions(pins=pins)))
    assert kinds(made).count("Gemm") == 1 and kinds(made).count("ReduceMax") == 1
    assert [node.domain for node in made.model.graph].count("edgetpu") == 1
    check_borders(made.plan, made.model.graph)
    compute_the_same(parsed(SMALL, WEIGHTS), [ir.serde.serialize_model(made.model)])
