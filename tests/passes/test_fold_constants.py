"""Constants are evaluated, shapes too, dead nodes dropped. Goldens of all passes begin with this
one."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.graph import shape_of
from passes import fold_constants
from tests.passes.golden import leaves_alone, rewrites, run_passes, weight


def test_what_depends_on_constants_is_evaluated_and_dead_nodes_go() -> None:
    before = """
    g (float[1,4] x) => (float[1,4] y) {
        two = Constant <value_float = 2.0> ()
        four = Mul (two, two)
        dead = Mul (x, two)
        y = Mul (x, four)
    }"""
    after = """
    g (float[1,4] x) => (float[1,4] y)
    <float four = {4}>
    {
        y = Mul (x, four)
    }"""
    rewrites((), before, after)


def test_a_static_shape_is_a_constant() -> None:
    before = """
    g (float[2,3,4] x) => (float[2,12] y)
    <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}>
    {
        s = Shape (x)
        rows = Gather (s, zero)
        row = Unsqueeze (rows, axis)
        wanted = Concat <axis = 0> (row, rest)
        y = Reshape (x, wanted)
    }"""
    after = """
    g (float[2,3,4] x) => (float[2,12] y)
    <int64[2] wanted = {2, -1}>
    {
        y = Reshape (x, wanted)
    }"""
    rewrites((), before, after)


def test_a_part_of_a_shape_the_size_and_a_fill_are_constants() -> None:
    before = """
    g (float[2,3,4] x) => (float[3,4] y)
    <int64[1] first = {0}>
    {
        s = Shape <start = 1> (x)
        ones = ConstantOfShape <value = float[1] {1}> (s)
        size = Size (x)
        count = Cast <to = 1> (size)
        filled = Mul (ones, count)
        total = ReduceSum <keepdims = 0> (x, first)
        y = Add (total, filled)
    }"""
    after = """
    g (float[2,3,4] x) => (float[3,4] y)
    <int64[1] first = {0}, float[3,4] filled = {24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24}>
    {
        total = ReduceSum <keepdims = 0> (x, first)
        y = Add (total, filled)
    }"""
    rewrites((), before, after)


def test_outputs_that_are_constants_are_made_by_nodes() -> None:
    """Segments make outputs, so a constant alone cannot be one."""
    before = """
    g (float[2,3] x) => (float[2,3] y, int64[2] s, float[2] c)
    <float[2] constant = {1, 2}>
    {
        y = Relu (x)
        s = Shape (x)
        c = Identity (constant)
    }"""
    after = """
    g (float[2,3] x) => (float[2,3] y, int64[2] s, float[2] c)
    <float[2] constant = {1, 2}>
    {
        y = Relu (x)
        s = Constant <value_ints = [2, 3]> ()
        c = Identity (constant)
    }"""
    rewrites((), before, after)


def test_scales_of_a_quantized_model_stay_for_the_pass_that_reads_them() -> None:
    """Folding the pair would lose that the weights lie on a grid."""
    leaves_alone(
        (),
        """
    g (float[1,2] x) => (float[1,2] y)
    <int8[2] w = {1, 2}, float scale = {0.5}, int8 zero = {0}>
    {
        d = DequantizeLinear (w, scale, zero)
        y = Mul (x, d)
    }""",
    )


def test_what_is_random_stays() -> None:
    """Its results differ from run to run, so only the graph is compared."""
    _, made = run_passes(
        (),
        """
    g (float[1,2] x) => (float[1,2] y) {
        r = RandomUniform <seed = 1.0, shape = [1, 2]> ()
        y = Add (x, r)
    }""",
    )
    assert made.kinds == ["RandomUniform", "Add"]


def test_shapes_follow_from_constants_that_were_folded_under_symbols() -> None:
    """Of a constant too large for ONNX's inference, marked with the shape from before folding."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[1,1] x) => (float[a,b] y) { z = Mul (x, c) y = Relu (z) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(1, 512), "c"))
    model = ir.serde.deserialize_model(proto)
    model.graph.initializers["c"].shape = ir.Shape(["n", "m"])
    fold_constants.infer_shapes(model)
    assert [shape_of(v) for node in model.graph for v in node.outputs] == [(1, 512), (1, 512)]
