"""Reshapes in a row become one; a Reshape moves behind operators that do not look at shapes."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites


def test_reshapes_in_a_row_become_one() -> None:
    before = """
    g (float[2,3,4] x) => (float[4,6] y)
    <int64[2] rows = {6, 4}, int64[1] flat = {24}, int64[2] wide = {4, -1}>
    {
        a = Reshape (x, rows)
        b = Reshape (a, flat)
        y = Reshape (b, wide)
    }"""
    after = """
    g (float[2,3,4] x) => (float[4,6] y)
    <int64[2] shape = {4, 6}>
    {
        y = Reshape (x, shape)
    }"""
    rewrites("cancel_reshapes", before, after)


def test_what_comes_back_to_its_shape_vanishes() -> None:
    before = """
    g (float[2,3,4] x) => (float[2,3,4] y)
    <int64[2] rows = {6, 4}, int64[3] back = {2, 3, 4}>
    {
        r = Softmax (x)
        a = Reshape (r, rows)
        b = Reshape (a, back)
        y = Softmax <axis = 1> (b)
    }"""
    after = "g (float[2,3,4] x) => (float[2,3,4] y) { r = Softmax (x) y = Softmax <axis = 1> (r) }"
    rewrites("cancel_reshapes", before, after)


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid", "Tanh"])
def test_it_moves_behind_an_operator_that_does_not_look_at_shapes(kind: str) -> None:
    before = f"""
    g (float[2,3,4] x) => (float[2,3,4] y)
    <int64[2] rows = {{6, 4}}, int64[3] back = {{2, 3, 4}}>
    {{
        s = Softmax (x)
        a = Reshape (s, rows)
        b = {kind} (a)
        r = Reshape (b, back)
        y = Softmax (r)
    }}"""
    after = f"""
    g (float[2,3,4] x) => (float[2,3,4] y) {{
        s = Softmax (x)
        t = {kind} (s)
        y = Softmax (t)
    }}"""
    rewrites("cancel_reshapes", before, after)


def test_attributes_and_bounds_go_along() -> None:
    before = """
    g (float[2,3,4] x) => (float[6,4] y)
    <int64[2] rows = {6, 4}, float low = {0}, float high = {6}>
    {
        a = Reshape (x, rows)
        y = Clip (a, low, high)
    }"""
    after = """
    g (float[2,3,4] x) => (float[6,4] y)
    <int64[2] rows = {6, 4}, float low = {0}, float high = {6}>
    {
        c = Clip (x, low, high)
        y = Reshape (c, rows)
    }"""
    rewrites("cancel_reshapes", before, after)


@pytest.mark.parametrize(
    "body",
    [
        # The softmax is of rows of four.
        "a = Reshape (x, rows) y = Softmax (a)",
        # Others read the rows too, so that the Reshape stays anyway.
        "a = Reshape (x, rows) r = Relu (a) y = Add (r, a)",
        # A Transpose is between: another order, not only another shape.
        "t = Transpose <perm = [0, 2, 1]> (x) a = Reshape (t, rows) y = Softmax (a)",
        # Products with a constant look at the shape that it is broadcast over.
        "a = Reshape (x, rows) y = Mul (a, column)",
    ],
)
def test_what_looks_at_shapes(body: str) -> None:
    constants = "int64[2] rows = {6, 4}"
    if "column" in body:
        constants += ", float[6,1] column = {1, 2, 3, 4, 5, 6}"
    leaves_alone(
        "cancel_reshapes", f"g (float[2,3,4] x) => (float[6,4] y) <{constants}> {{ {body} }}"
    )
