"""The harness of the goldens itself: what it shows, and that it tells graphs apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import compute_the_same, parsed, printed, rewrites

GRAPH = """
    g (float[1,2,4] x) => (float[1,4,2] y)
    <float[2] c = {1.5, -2}>
    {
        t = Transpose <perm = [0, 2, 1]> (x)
        s = Mul (t, c)
        [host] y = Relu (s)
    }"""


def test_what_is_printed_is_onnx_text() -> None:
    text = printed(parsed(GRAPH).graph)
    assert text.split() == GRAPH.split()
    assert printed(parsed(text).graph) == text


def test_large_constants_are_declared_without_values() -> None:
    graph = parsed(
        "g (float[65] x) => (float[65] y) { y = Add (x, w) }", {"w": np.zeros(65, np.float32)}
    ).graph
    assert "<float[65] w>" in printed(graph)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Another attribute, another constant, a name of the model, another mark, another operator.
        ("perm = [0, 2, 1]", "perm = [0, 1, 2]"),
        ("1.5", "1.50001"),
        (
            "s = Mul (t, c)\n        [host] y = Relu (s)",
            "t1 = Mul (t, c)\n        [host] y = Relu (t1)",
        ),
        ("[host] ", ""),
        ("Relu", "Sigmoid"),
        # The other way round, and a constant too much.
        ("Mul (t, c)", "Mul (c, t)"),
        ("<float[2] c", "<float unused = {1}, float[2] c"),
        ("(float[1,4,2] y)", "(float[1,4,3] y)"),
    ],
)
def test_graphs_that_differ_are_told_apart(old: str, new: str) -> None:
    assert old in GRAPH
    rewrites((), GRAPH, GRAPH)
    with pytest.raises(AssertionError):
        rewrites((), GRAPH, GRAPH.replace(old, new))


def test_a_wrong_rewrite_is_seen_although_it_was_expected() -> None:
    """Both graphs run: what was written down wrongly with the pass is not passed."""
    original = parsed("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    wrong = parsed("g (float[2] x) => (float[2] y) { y = Sigmoid (x) }")
    with pytest.raises(AssertionError, match="tensor y"):
        compute_the_same(original, [wrong])
