"""What reads a part of a Concat reads what was joined there; a last layer that is read in parts
becomes several."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites, run_passes, weight


def test_parts_are_read_through_layouts_and_other_joins() -> None:
    """Detectors' heads: distances and scores joined for each level, levels joined, both read apart
    again."""
    rewrites(
        ("lower", "split_joins", "cancel_reshapes"),
        """
        g (float[1,8,4,4] a, float[1,2,4,4] b, float[1,8,2,2] c, float[1,2,2,2] d)
        => (float[1,8,20] x, float[1,2,20] y)
        <int64[3] flat = {1, 10, -1}, int64[2] sizes = {8, 2}>
        {
            first = Concat <axis = 1> (a, b)
            second = Concat <axis = 1> (c, d)
            f = Reshape (first, flat)
            s = Reshape (second, flat)
            all = Concat <axis = 2> (f, s)
            p, q = Split <axis = 1> (all, sizes)
            x = Relu (p)
            y = Sigmoid (q)
        }""",
        """
        g (float[1,8,4,4] a, float[1,2,4,4] b, float[1,8,2,2] c, float[1,2,2,2] d)
        => (float[1,8,20] x, float[1,2,20] y)
        <int64[3] a_flat = {1, 8, 16}, int64[3] c_flat = {1, 8, 4}, int64[3] b_flat = {1, 2, 16},
         int64[3] d_flat = {1, 2, 4}>
        {
            a_part = Reshape (a, a_flat)
            c_part = Reshape (c, c_flat)
            p = Concat <axis = 2> (a_part, c_part)
            b_part = Reshape (b, b_flat)
            d_part = Reshape (d, d_flat)
            q = Concat <axis = 2> (b_part, d_part)
            x = Relu (p)
            y = Sigmoid (q)
        }""",
    )


def test_a_part_may_be_groups_of_several_joined_values() -> None:
    rewrites(
        "split_joins",
        """
        g (float[1,8,5] a, float[1,4,5] b, float[1,4,5] c) => (float[1,3,4,5] x)
        <int64[4] groups = {1, 4, 4, 5}, int64[1] one = {1}, int64[1] four = {4}>
        {
            all = Concat <axis = 1> (b, a, c)
            g = Reshape (all, groups)
            x = Slice (g, one, four, one)
        }""",
        """
        g (float[1,8,5] a, float[1,4,5] b, float[1,4,5] c) => (float[1,3,4,5] x)
        <int64[4] groups = {1, 3, 4, 5}>
        {
            joined = Concat <axis = 1> (a, c)
            x = Reshape (joined, groups)
        }""",
    )


@pytest.mark.parametrize(
    "body",
    [
        # Not whole parts.
        "j = Concat <axis = 1> (a, b) x = Slice (j, one, three, one)",
        # The cut axis is of no axis in front of the Reshape.
        "j = Concat <axis = 1> (a, b) r = Reshape (j, turned) x = Slice (r, one, three, one)",
        # Something is computed between.
        "j = Concat <axis = 1> (a, b) r = Relu (j) x = Slice (r, zero, two, one)",
        "x = Slice (a, zero, one, one)",
    ],
)
def test_other_parts_are_left(body: str) -> None:
    constants = {"zero": "{0}", "one": "{1}", "two": "{2}", "three": "{3}", "turned": "{1, 6, 4}"}
    sizes = {"turned": 3}
    used = [name for name in constants if f" {name}" in body]
    declared = ", ".join(f"int64[{sizes.get(n, 1)}] {n} = {constants[n]}" for n in used)
    shape = "1,2,4" if "turned" in body else "1,1,6" if "Concat" not in body else "1,2,6"
    leaves_alone(
        "split_joins",
        f"g (float[1,2,6] a, float[1,2,6] b) => (float[{shape}] x) <{declared}> {{ {body} }}",
    )


HEAD = """
    g (float[1,4,4,4] a) => (float[1,6,4,4] x, float[1,3,4,4] y)
    <int64[2] sizes = {{6, 3}}> {{
        h = Conv (a, w)
        p, q = Split <axis = 1> (h, sizes)
        x = {} (p{})
        y = Sigmoid (q)
    }}"""
BEFORE_CUT = ("lower", "split_joins", "cancel_transposes")


def test_a_last_layer_is_divided() -> None:
    weights = {"w": weight(9, 4, 1, 1)}
    _, made = run_passes(BEFORE_CUT, HEAD.format("Relu", ""), weights)
    layers = [node for node in made.model.graph if node.op_type == "Conv2D"]
    assert [list(node.outputs[0].shape or ()) for node in layers] == [[1, 4, 4, 6], [1, 4, 4, 3]]
    assert "Slice" not in made.kinds


def test_a_layer_that_others_follow_stays_whole() -> None:
    weights = {"w": weight(9, 4, 1, 1), "v": weight(6, 6, 1, 1)}
    _, made = run_passes(("lower", "split_joins"), HEAD.format("Conv", ", v"), weights)
    assert made.kinds.count("Slice") == 2
    assert made.kinds.count("edgetpu.Conv2D") == 2
