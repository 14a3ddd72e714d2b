"""The two products of a feed-forward layer become one segment, with the gate between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph import key_of, origin_of
from compiler.partition import PartitionOptions
from compiler.quantize.products import products
from passes import PassContext, fuse_blocks
from tests.passes.golden import TARGET, compute_the_same, rewrites, run_passes, weight
from tests.passes.hadamard import check_rotation

EXPORTS = Path(__file__).parents[2] / "fixtures" / "exports" / "encoders"
# From ONNX to what the pass looks for.
BEFORE = ("keep_gates", "fold_affine", "lower", "cancel_transposes", "cancel_reshapes")
STEPS = (*BEFORE, "fuse_blocks", "rotate_rows", "normalise_linears")
CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
BY_CHANNELS = (
    "edgetpu.DepthwiseConv2D"
    " <dilations = [1, 1], group = {channels}, pads = [0, 0, 0, 0], strides = [1, 1]>"
)
WEIGHTS = {
    "gain": weight(8),
    "w": weight(8, 12),
    "c": weight(12),
    "v": weight(12, 6),
    "d": weight(6),
    "second": weight(8, 12)[::-1].copy(),
    "both": weight(8, 24),
}
MLP = """
    g (float[1,5,8] x) => (float[1,5,6] y) {{
        n = RMSNormalization (x, gain)
        {body}
        y = Erf (e)
    }}"""
# A second block.
BEHIND = " i = Erf (k) o = MatMul (i, p) t = Gelu (o) e = MatMul (t, q)"
GELU = "m = MatMul (n, w) h = Add (m, c) a = Gelu (h) r = MatMul (a, v) e = Add (r, d)"


def graph(body: str) -> str:
    return MLP.format(body=body)


def test_an_encoders_block() -> None:
    """Rows are rotated, not normalised; factors are norms of the second product's weights."""
    after = f"""
    g (float[1,5,8] x) => (float[1,5,6] y)
    <int64[2] matrix = {{5, 8}}, int64[4] image = {{1, 1, 5, 8}}, int64[3] tokens = {{1, 5, 6}},
     float[6] offsets = {{0, 0, 0, 0, 0, 0}}>
    {{
        [refused] n = RMSNormalization (x, gain)
        flat = Reshape (n, matrix)
        [host] product = MatMul (flat, rotation)
        rows = Reshape (product, image)
        hidden = {CONV} (rows, turned, c)
        scaled = {BY_CHANNELS.format(channels=12)} (hidden, slope, shift)
        gate = edgetpu.CubicGeluGate (scaled)
        gated = Mul (hidden, gate)
        z = {CONV} (gated, balanced, moved)
        [balanced_host] wide = Mul (z, factors)
        [host] out = Add (wide, offsets)
        e = Reshape (out, tokens)
        [refused] y = Erf (e)
    }}"""
    made = run_passes(STEPS, graph(GELU), WEIGHTS)[1]
    rotation = next(array for array in made.constants.values() if array.shape == (8, 8))
    check_rotation(rotation, 8)
    turned = WEIGHTS["w"].T.astype(np.float64) @ rotation
    norms = np.linalg.norm(WEIGHTS["v"], axis=0)
    constants = {
        "gain": WEIGHTS["gain"],
        "rotation": rotation,
        "turned": turned.reshape(12, 8, 1, 1).astype(np.float32),
        "c": WEIGHTS["c"],
        # The cube root of 2 sqrt(2 / pi) 0.044715.
        "slope": np.full((12, 1, 1, 1), 0.41477041, np.float32),
        "shift": np.zeros(12, np.float32),
        "balanced": (WEIGHTS["v"] / norms).T.reshape(6, 12, 1, 1),
        "moved": WEIGHTS["d"] / norms,
        "factors": norms,
    }
    rewrites(STEPS, graph(GELU), after, weights=WEIGHTS, constants=constants)


@pytest.mark.parametrize(
    ("body", "gate"),
    [
        # SwiGLU with two products, whichever factor comes first.
        (
            "m = MatMul (n, w) s = Sigmoid (m) g = Mul (m, s) u = MatMul (n, second)"
            " h = Mul (g, u) e = MatMul (h, v)",
            "Sigmoid",
        ),
        (
            "u = MatMul (n, second) m = MatMul (n, w) s = Sigmoid (m) g = Mul (s, m)"
            " h = Mul (u, g) e = MatMul (h, v)",
            "Sigmoid",
        ),
        # One product for both.
        (
            "b = MatMul (n, both) m, u = Split <axis = -1, num_outputs = 2> (b) t = Gelu (m)"
            " h = Mul (t, u) e = MatMul (h, v)",
            "CubicGeluGate",
        ),
        ('m = MatMul (n, w) a = Gelu <approximate = "tanh"> (m) e = MatMul (a, v)', "CubicTanh"),
        # QuickGelu.
        (
            "m = MatMul (n, w) t = Mul (m, slope) s = Sigmoid (t) a = Mul (m, s) e = MatMul (a, v)",
            "Sigmoid",
        ),
    ],
)
def test_gates(body: str, gate: str) -> None:
    """Each is fused, and computes the same."""
    given = {**WEIGHTS, "slope": np.asarray(1.702, np.float32)}
    original, made = run_passes(STEPS, graph(body), given)
    assert any(gate in kind for kind in made.kinds)
    assert "Div" not in made.kinds  # no row is divided by its peak
    (product,) = products(made.model.graph).values()
    assert not product.has_unit_rows
    compute_the_same(original, [made.proto])


@pytest.mark.parametrize(
    "body",
    [
        # The gate is read elsewhere too, the hidden rows likewise.
        "m = MatMul (n, w) a = Gelu (m) r = MatMul (a, v) k = ReduceSum (a) e = Add (r, k)",
        "m = MatMul (n, w) a = Gelu (m) r = MatMul (a, v) k = ReduceSum (m) e = Add (r, k)",
        # Other rows.
        "m = MatMul (n, w) s = Sigmoid (m) g = Mul (m, s) o = Erf (n) u = MatMul (o, second)"
        " h = Mul (g, u) e = MatMul (h, v)",
        # Not gates of a product.
        "m = MatMul (n, w) k = Erf (m) a = Gelu (k) e = MatMul (a, v)",
        "m = MatMul (n, w) s = Sigmoid (m) k = Erf (m) g = Mul (k, s) e = MatMul (g, v)",
        "m = MatMul (n, w) k = Erf (m) e = MatMul (k, v)",
        # The Edge TPU reads the result.
        "m = MatMul (n, w) a = Gelu (m) r = MatMul (a, v) e = Relu (r)",
    ],
)
def test_other_products_stay(body: str) -> None:
    made = run_passes((*BEFORE, "fuse_blocks"), graph(body), WEIGHTS)[1]
    assert made.text == run_passes(BEFORE, graph(body), WEIGHTS)[1].text


def test_a_single_row_is_not_fused() -> None:
    """In decode, weights take the time."""
    one = graph(GELU).replace("1,5,", "1,1,")
    made = run_passes((*BEFORE, "fuse_blocks"), one, WEIGHTS)[1]
    assert not products(made.model.graph)


def test_blocks_are_chosen_by_their_second_product() -> None:
    """Of two blocks one after the other, only the one that is wanted."""
    two = graph(GELU.replace("e = ", "k = ") + BEHIND)
    weights = {**WEIGHTS, "p": weight(6, 10), "q": weight(10, 6)}
    made = run_passes(BEFORE, two, weights)[1]
    lasts = [node for node in made.model.graph if fuse_blocks.find(node) is not None]
    assert len(lasts) == 2
    wanted = origin_of(lasts[1])
    context = PassContext(TARGET, takes=lambda node: origin_of(node) == wanted)
    fuse_blocks.run(made.model, context)
    assert context.trace.matches == [wanted]
    kinds = [key_of(node)[1] for node in made.model.graph]
    assert kinds.count("Gelu") == 1 and kinds.count("CubicGeluGate") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "qwen3"])
def test_bundles_of_encoders(name: str, tmp_path: Path) -> None:
    """An MLP with GELU and one with SwiGLU, in int8: one segment less, and little less accuracy."""
    segments = []
    sqnr = []
    for also in ((), ("fuse_blocks",)):
        partitioning = PartitionOptions(place="tpu")
        options = BuildOptions(also=frozenset(also), partitioning=partitioning)
        manifest = building.build(EXPORTS / f"{name}.onnx", tmp_path / f"{len(also)}", options)
        on_tpu = [segment for segment in manifest["segments"] if segment["device"] == "tpu"]
        segments.append(len(on_tpu))
        (output,) = manifest["quality"]["outputs"].values()
        sqnr.append(output["sqnr_db"])
    assert segments[1] == segments[0] - 1
    assert sqnr[1] > sqnr[0] - 3, sqnr
