"""Among nodes for the Edge TPU, Requantize stands where fixed scales meet; the host's are left."""

from __future__ import annotations

from tests.passes.golden import leaves_alone, rewrites


def graph(axis: int, body: str) -> str:
    return f"g (float[1,4] x, float[1,4] z) => (float[{axis},{8 // axis}] y) {{ {body} }}"


def test_a_join_of_two_fixed_scales() -> None:
    rewrites(
        "separate",
        graph(1, "s = Sigmoid (x) t = Tanh (z) y = Concat <axis = 1> (s, t)"),
        graph(
            1,
            "s = Sigmoid (x) t = Tanh (z) a = edgetpu.Requantize (s) b = edgetpu.Requantize (t) "
            "y = Concat <axis = 1> (a, b)",
        ),
    )


def test_a_join_of_free_scales() -> None:
    leaves_alone("separate", graph(1, "s = Neg (x) t = Neg (z) y = Concat <axis = 1> (s, t)"))


def test_a_join_that_the_host_runs() -> None:
    """The Edge TPU does not join along the first axis, where its tensors have one row."""
    body = "[host] s = Sigmoid (x) [host] t = Tanh (z) [host] y = Concat <axis = 0> (s, t)"
    leaves_alone("separate", graph(2, body))
