"""Transposes move towards the outputs until inverse ones meet; what stays is at a border."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

ALL = (
    "fold_affine",
    "shuffle_channels",
    "lower",
    "cancel_transposes",
    "fold_flatten",
    "cancel_reshapes",
)
CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
POOL = "edgetpu.MaxPool2D <kernel_shape = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"


@dataclass(frozen=True)
class Passing:
    """What an operator becomes between Transposes of an image [1, 4, 3, 2] to t [1, 2, 4, 3]."""

    between: str
    wanted: str
    shape: str = "[1,4,3,2]"
    constants: str = ""
    moved: str = ""


PASSING = {
    "free": Passing("r = Relu (t)", "m = Relu (p)"),
    # By channel and column.
    "constant": Passing(
        "r = Mul (t, c)",
        "m = Mul (p, c)",
        "[1,4,3,2]",
        "float[2,1,3] c = {1, 2, 3, 4, 5, 6}",
        "float[1,1,3,2] c = {1, 4, 2, 5, 3, 6}",
    ),
    "one number": Passing(
        "r = Add (c, t)", "m = Add (c, p)", "[1,4,3,2]", "float c = {2}", "float c = {2}"
    ),
    "joined rows": Passing(
        "r = Concat <axis = 2> (t, t)", "m = Concat <axis = 1> (p, p)", "[1,8,3,2]"
    ),
    "joined channels": Passing(
        "r = Concat <axis = -3> (t, t)", "m = Concat <axis = 3> (p, p)", "[1,4,3,4]"
    ),
    "softmax": Passing("r = Softmax <axis = 1> (t)", "m = Softmax <axis = 3> (p)"),
    "mean": Passing(
        "r = ReduceMean (t, c)",
        "m = ReduceMean (p, c)",
        "[1,1,1,2]",
        "int64[2] c = {2, 3}",
        "int64[2] c = {1, 2}",
    ),
    "padding": Passing(
        "r = Pad (t, c)",
        "m = Pad (p, c)",
        "[1,5,3,5]",
        "int64[8] c = {0, 1, 1, 0, 0, 2, 0, 0}",
        "int64[8] c = {0, 1, 0, 1, 0, 0, 0, 2}",
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_lets_a_transpose_pass(name: str) -> None:
    case = PASSING[name]
    before = f"""
    g (float[1,4,3,2] x) => (float{case.shape} y) <{case.constants}> {{
        p = {POOL} (x)
        t = Transpose <perm = [0, 3, 1, 2]> (p)
        {case.between}
        s = Transpose <perm = [0, 2, 3, 1]> (r)
        y = {POOL} (s)
    }}"""
    after = f"""
    g (float[1,4,3,2] x) => (float{case.shape} y) <{case.moved}> {{
        p = {POOL} (x)
        {case.wanted}
        y = {POOL} (m)
    }}"""
    if not case.constants:
        before, after = before.replace("<>", ""), after.replace("<>", "")
    rewrites("cancel_transposes", before, after)


def test_both_outputs_of_a_split_take_it_on() -> None:
    """The second has one channel, so that what is left of its Transpose moves nothing."""
    before = f"""
    g (float[1,4,3,2] x) => (float[1,4,3,1] y, float[1,1,4,3] z) {{
        p = {POOL} (x)
        t = Transpose <perm = [0, 3, 1, 2]> (p)
        a, b = Split <axis = 1, num_outputs = 2> (t)
        s = Transpose <perm = [0, 2, 3, 1]> (a)
        y = {POOL} (s)
        z = Relu (b)
    }}"""
    after = f"""
    g (float[1,4,3,2] x) => (float[1,4,3,1] y, float[1,1,4,3] z)
    <int64[4] shape = {{1, 1, 4, 3}}>
    {{
        p = {POOL} (x)
        left, right = Split <axis = 3, num_outputs = 2> (p)
        y = {POOL} (left)
        relu = Relu (right)
        z = Reshape (relu, shape)
    }}"""
    rewrites("cancel_transposes", before, after)


def test_two_transposes_in_a_row_are_one() -> None:
    before = """
    g (float[1,4,3,2] x) => (float[3,1,2,4] y) {
        a = Transpose <perm = [0, 3, 1, 2]> (x)
        y = Transpose <perm = [3, 0, 1, 2]> (a)
    }"""
    after = "g (float[1,4,3,2] x) => (float[3,1,2,4] y) { y = Transpose <perm = [2, 0, 3, 1]> (x) }"
    rewrites("cancel_transposes", before, after)


def test_a_transpose_rises_to_the_input() -> None:
    """In front of what is done to the input before it, such as its normalisation."""
    before = f"""
    g (float[1,2,4,3] x) => (float[1,4,3,2] y)
    <float[2,1,1] s = {{1, 2}}>
    {{
        n = Mul (x, s)
        m = Sub (n, s)
        t = Transpose <perm = [0, 2, 3, 1]> (m)
        y = {POOL} (t)
    }}"""
    after = f"""
    g (float[1,2,4,3] x) => (float[1,4,3,2] y)
    <float[2,1,1] s = {{1, 2}}, float[1,1,1,2] last = {{1, 2}}>
    {{
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        scaled = Mul (nhwc, last)
        shifted = Sub (scaled, last)
        y = {POOL} (shifted)
    }}"""
    rewrites("cancel_transposes", before, after)


def test_a_transpose_that_moves_nothing_is_a_reshape() -> None:
    before = """
    g (float[1,1,3,4] x) => (float[1,3,4,1] y) {
        y = Transpose <perm = [0, 2, 3, 1]> (x)
    }"""
    after = """
    g (float[1,1,3,4] x) => (float[1,3,4,1] y)
    <int64[4] shape = {1, 3, 4, 1}>
    {
        y = Reshape (x, shape)
    }"""
    rewrites("cancel_transposes", before, after)


def test_transposes_that_move_nothing_do_not_sink_for_ever() -> None:
    """Either side of the Add can be permuted for nothing: a Transpose could go back and forth."""
    before = """
    g (float[1,4,8] x, float[4,1,8] z) => (float[1,4,8] y) {
        r = Relu (x)
        p = Relu (z)
        t = Transpose <perm = [1, 0, 2]> (p)
        y = Add (r, t)
    }"""
    after = """
    g (float[1,4,8] x, float[4,1,8] z) => (float[1,4,8] y)
    <int64[3] column = {4, 1, 8}, int64[3] row = {1, 4, 8}>
    {
        r = Relu (x)
        p = Relu (z)
        turned = Reshape (r, column)
        sum = Add (turned, p)
        y = Reshape (sum, row)
    }"""
    rewrites("cancel_transposes", before, after)


@pytest.mark.parametrize(
    "body",
    [
        # A Reshape that puts elements of axes together that were apart.
        f"p = {POOL} (x) t = Transpose <perm = [0, 3, 1, 2]> (p) y = Reshape (t, joined)",
        # The host made it, and for the host it stays: nothing is gained on the Edge TPU.
        "p = Erf (x) t = Transpose <perm = [0, 3, 1, 2]> (p) y = Relu (t)",
        # The other side comes out of no Transpose, and to permute it would cost one.
        f"p = {POOL} (x) t = Transpose <perm = [0, 3, 1, 2]> (p) y = Add (t, z)",
    ],
)
def test_where_it_stays(body: str) -> None:
    inputs = "float[1,4,3,2] x, float[1,2,4,3] z" if "z)" in body else "float[1,4,3,2] x"
    shape, constants = "1,2,4,3", ""
    if "joined" in body:
        shape, constants = "1,8,3", "<int64[3] joined = {1, 8, 3}>"
    leaves_alone(
        "cancel_transposes", f"g ({inputs}) => (float[{shape}] y) {constants} {{ {body} }}"
    )


RESHAPES = {
    "rows of an image": ("1,2,12", "1,12,2", (0, 2, 1)),
    "channels in groups": ("1,1,2,4,3", "1,4,3,1,2", (0, 3, 4, 1, 2)),
    "without the batch": ("2,12", "12,2", (1, 0)),
    "an axis of one behind": ("1,2,12,1", "1,12,1,2", (0, 3, 1, 2)),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_a_reshape_of_neighbours_lets_it_pass(name: str) -> None:
    """Of an image [1, 4, 3, 2] that was turned to channels first, [1, 2, 4, 3]."""
    shape, inner, perm = RESHAPES[name]
    rank = len(perm)
    before = f"""
    g (float[1,4,3,2] x) => (float[{shape}] y) <int64[{rank}] s = {{{shape}}}> {{
        p = {POOL} (x)
        t = Transpose <perm = [0, 3, 1, 2]> (p)
        y = Reshape (t, s)
    }}"""
    after = f"""
    g (float[1,4,3,2] x) => (float[{shape}] y) <int64[{rank}] s = {{{inner}}}> {{
        p = {POOL} (x)
        r = Reshape (p, s)
        y = Transpose <perm = {list(perm)}> (r)
    }}"""
    rewrites("cancel_transposes", before, after)


def test_transposes_cancel_between_convolutions() -> None:
    """From ONNX through the passes around."""
    before = """
    g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        a = Conv (x, w)
        r = Relu (a)
        m = Mul (r, s)
        b = Conv (m, v)
        y = Relu (b)
    }"""
    after = f"""
    g (float[1,3,8,8] x) => (float[1,4,4,4] y)
    <float[4] zeros = {{0, 0, 0, 0}}>
    {{
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        conv = {CONV} (nhwc, w, zeros)
        relu = Relu (conv)
        product = Mul (relu, columns)
        conv2 = {CONV} (product, v, zeros)
        relu2 = Relu (conv2)
        y = Transpose <perm = [0, 3, 1, 2]> (relu2)
    }}"""
    weights = {"w": weight(4, 3, 3, 3), "v": weight(4, 4, 3, 3), "s": weight(1, 1, 6)}
    constants = {"w": weights["w"], "v": weights["v"], "columns": weights["s"].reshape(1, 1, 6, 1)}
    rewrites(ALL, before, after, weights=weights, constants=constants)


def test_transpose_rises_to_the_input_through_its_normalisation() -> None:
    """Without fold_affine, which would make one product and one sum of it."""
    before = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        n = Mul (x, s)
        m = Add (n, s)
        y = Conv (m, w)
    }"""
    after = f"""
    g (float[1,3,8,8] x) => (float[1,4,6,6] y)
    <float[4] zeros = {{0, 0, 0, 0}}>
    {{
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        product = Mul (nhwc, last)
        sum = Add (product, last)
        conv = {CONV} (sum, w, zeros)
        y = Transpose <perm = [0, 3, 1, 2]> (conv)
    }}"""
    weights = {"w": weight(4, 3, 3, 3), "s": weight(3, 1, 1)}
    constants = {"w": weights["w"], "last": weights["s"].reshape(1, 1, 1, 3)}
    rewrites(ALL[1:], before, after, weights=weights, constants=constants)
