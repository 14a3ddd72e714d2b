"""Lines of positions that are too long for one RESHAPE are made in parts."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.device import legality
from compiler.graph import element_count
from compiler.targets import Target
from passes import divide_reshapes
from tests.passes.golden import leaves_alone, rewrites

POOL = "edgetpu.MaxPool2D <kernel_shape = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
# A Reshape to more elements is refused.
MOST = 24


@pytest.fixture(autouse=True)
def small_reshapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of small RESHAPEs, so that graphs of a test are."""

    def refusal(node: ir.Node, target: Target) -> str | None:
        if node.op_type == "Reshape" and element_count(node.outputs[0]) > MOST:
            return "it is too large"
        return legality.refusal(node, target)

    monkeypatch.setattr(divide_reshapes, "refusal", refusal)


def test_parts_join_with_other_levels() -> None:
    """An image of 6 x 4 is 2 x 48 elements in one line; in thirds it is small enough."""
    before = f"""
    g (float[1,6,4,3] a, float[1,2,2,3] b) => (float[1,28,3] y)
    <int64[3] all = {{1, 24, 3}}, int64[3] few = {{1, 4, 3}}> {{
        p = {POOL} (a)
        q = {POOL} (b)
        r = Reshape (p, all)
        s = Reshape (q, few)
        y = Concat <axis = 1> (r, s)
    }}"""
    after = f"""
    g (float[1,6,4,3] a, float[1,2,2,3] b) => (float[1,28,3] y)
    <int64[3] part = {{1, 8, 3}}, int64[3] part2 = {{1, 8, 3}}, int64[3] part3 = {{1, 8, 3}},
     int64[3] few = {{1, 4, 3}}> {{
        p = {POOL} (a)
        q = {POOL} (b)
        i, j, k = Split <axis = 1, num_outputs = 3> (p)
        l = Reshape (i, part)
        m = Reshape (j, part2)
        n = Reshape (k, part3)
        s = Reshape (q, few)
        y = Concat <axis = 1> (l, m, n, s)
    }}"""
    rewrites("divide_reshapes", before, after)


def test_a_line_by_itself_is_joined_of_its_parts() -> None:
    before = f"""
    g (float[1,4,4,3] a) => (float[1,16,3] y) <int64[3] all = {{1, 16, 3}}> {{
        p = {POOL} (a)
        r = Reshape (p, all)
        y = Relu (r)
    }}"""
    after = f"""
    g (float[1,4,4,3] a) => (float[1,16,3] y)
    <int64[3] part = {{1, 8, 3}}, int64[3] part2 = {{1, 8, 3}}> {{
        p = {POOL} (a)
        i, j = Split <axis = 1, num_outputs = 2> (p)
        l = Reshape (i, part)
        m = Reshape (j, part2)
        r = Concat <axis = 1> (l, m)
        y = Relu (r)
    }}"""
    rewrites("divide_reshapes", before, after)


@pytest.mark.parametrize(
    ("image", "line", "body"),
    [
        # The host reads it, and makes it for nothing.
        ("1,4,4,3", "1,16,3", "r = Reshape (p, all) y = Erf (r)"),
        # It leaves.
        ("1,4,4,3", "1,16,3", "y = Reshape (p, all)"),
        # Single rows are too large as well.
        ("1,7,16,3", "1,112,3", "r = Reshape (p, all) y = Relu (r)"),
    ],
)
def test_what_is_left(image: str, line: str, body: str) -> None:
    leaves_alone(
        "divide_reshapes",
        f"""
        g (float[{image}] a) => (float[{line}] y) <int64[3] all = {{{line}}}> {{
            p = {POOL} (a)
            {body}
        }}""",
    )
