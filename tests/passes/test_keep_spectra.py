"""What leads from the inputs to the logarithm or root of a spectrum is kept on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight


def test_spectra_stay_on_the_host() -> None:
    before = """
    g (float[1,1,64] x) => (float[1,4,9] y)
    <float tiny = {0.000001}>
    {
        d = Conv <strides = [4]> (x, w)
        p = Mul (d, d)
        a = Abs (p)
        m = MatMul (f, a)
        n = Abs (m)
        e = Add (n, tiny)
        l = Log (e)
        y = Relu (l)
    }"""
    after = before
    for made in "dpamne":
        after = after.replace(f"        {made} = ", f"        [host] {made} = ")
    weights = {"w": weight(8, 1, 32), "f": np.abs(weight(4, 8))}
    rewrites("keep_spectra", before, after, weights=weights, constants=weights)


def test_roots_of_sines_and_cosines_too() -> None:
    before = """
    g (float[1,1,16] x) => (float[1,2,3] y) {
        a = Conv <strides = [4]> (x, sines)
        b = Conv <strides = [4]> (x, cosines)
        p = Mul (a, a)
        q = Mul (b, b)
        s = Add (p, q)
        y = Sqrt (s)
    }"""
    after = before
    for made in "abpqs":
        after = after.replace(f"        {made} = ", f"        [host] {made} = ")
    weights = {"sines": weight(2, 1, 8), "cosines": weight(2, 1, 8) + 1}
    rewrites("keep_spectra", before, after, weights=weights, constants=weights)


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid", "Softmax"])
def test_networks_in_front_of_a_logarithm_do_not(kind: str) -> None:
    """With an activation function in front, a network begins there."""
    text = f"""
    g (float[1,8,4,4] x) => (float[1,8,4,4] y)
    <float one = {{1}}>
    {{
        c = Conv (x, w)
        r = {kind} (c)
        s = Add (r, one)
        y = Log (s)
    }}"""
    leaves_alone("keep_spectra", text, weights={"w": weight(8, 8, 1, 1)})


@pytest.mark.parametrize(
    "body",
    [
        # No layer is in front.
        "s = ReduceSumSquare (x) y = Sqrt (s)",
        # The root of a mean square is a norm's.
        "c = Conv (x, w) p = Mul (c, c) m = ReduceMean (p) y = Sqrt (m)",
    ],
)
def test_norms_in_front_of_a_root_do_not(body: str) -> None:
    weights = {"w": weight(8, 8, 1)} if "w)" in body else {}
    leaves_alone(
        "keep_spectra", f"g (float[1,8,4] x) => (float[1,1,1] y) {{ {body} }}", weights=weights
    )
