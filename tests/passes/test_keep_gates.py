"""Gates of transformers' linear layers are kept on the host."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

W = {"w": weight(8, 8), "v": weight(8, 8)}


def graph(body: str, shape: str = "float[1,4,8]", constants: str = "") -> str:
    return f"g ({shape} x) => ({shape} y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("h = MatMul (x, w) y = Gelu (h)", ["y = Gelu"]),
        ("h = MatMul (x, w) a = Add (h, v) y = Gelu (a)", ["y = Gelu"]),
        ("h = MatMul (x, w) s = Sigmoid (h) y = Mul (h, s)", ["s = Sigmoid", "y = Mul"]),
        # SwiGLU: the product with another layer's rows is a part of the gate.
        (
            "h = MatMul (x, w) u = MatMul (x, v) s = Sigmoid (h) m = Mul (h, s) y = Mul (m, u)",
            ["s = Sigmoid", "m = Mul", "y = Mul"],
        ),
        # With a slope, as in x * sigmoid(1.702 x).
        (
            "h = MatMul (x, w) i = Mul (h, slope) s = Sigmoid (i) y = Mul (h, s)",
            ["i = Mul", "s = Sigmoid", "y = Mul"],
        ),
    ],
)
def test_gates_of_rows(body: str, kept: list[str]) -> None:
    weights = {name: W[name] for name in ("w", "v") if f", {name})" in body}
    if "Add (h, v)" in body:
        weights["v"] = weight(8)
    constants = "<float slope = {1.702}>" if "slope" in body else ""
    wanted = body
    for node in kept:
        wanted = wanted.replace(node, f"[host] {node}")
    rewrites(
        "keep_gates",
        graph(body, constants=constants),
        graph(wanted, constants=constants),
        weights=weights,
        constants=weights,
    )


def test_a_gate_of_one_row_with_the_product_of_another() -> None:
    """Of one row (decode) the gate alone stays on the Edge TPU, SwiGLU does not."""
    before = "h = MatMul (x, w) u = MatMul (x, v) s = Sigmoid (h) m = Mul (h, s) y = Mul (m, u)"
    after = (
        before.replace("s = Sig", "[host] s = Sig")
        .replace("m = Mul", "[host] m = Mul")
        .replace("y =", "[host] y =")
    )
    rewrites(
        "keep_gates",
        graph(before, "float[1,8]"),
        graph(after, "float[1,8]"),
        weights=W,
        constants=W,
    )


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        # One row: nothing differs from token to token.
        ("h = MatMul (x, w) y = Gelu (h)", "float[1,8]"),
        ("h = MatMul (x, w) s = Sigmoid (h) y = Mul (h, s)", "float[1,8]"),
        # Of no linear layer: convolutions of images have their own ways.
        ("h = Conv (x, k) y = Gelu (h)", "float[1,8,4,4]"),
        ("h = Conv (x, k) s = Sigmoid (h) y = Mul (h, s)", "float[1,8,4,4]"),
        # Relu is between the layer and the gate, so that it is not of the layer's rows.
        ("h = MatMul (x, w) r = Relu (h) y = Gelu (r)", "float[1,4,8]"),
        # No gate: multiplied by something else than what the Sigmoid reads.
        ("h = MatMul (x, w) s = Sigmoid (h) y = Mul (x, s)", "float[1,4,8]"),
        ("h = MatMul (x, w) y = Sigmoid (h)", "float[1,4,8]"),
        # The weights are computed.
        ("h = MatMul (x, x) y = Gelu (h)", "float[1,8,8]"),
    ],
)
def test_what_is_no_gate_of_rows(body: str, shape: str) -> None:
    weights = {"w": W["w"]} if "w)" in body else {"k": weight(8, 8, 1, 1)} if "k)" in body else {}
    leaves_alone("keep_gates", graph(body, shape), weights=weights)
