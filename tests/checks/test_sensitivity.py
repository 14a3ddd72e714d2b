"""What contributes to the error at the end, what --keep-float does about it, and --without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.quantize import balance
from tests.conftest import Cli, save

ROWS, WIDTH = 8, 64


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, Path]:
    return two_layers(tmp_path, 3)


def two_layers(tmp_path: Path, shift: float) -> tuple[Path, Path]:
    """Two linear layers between norms. Rows differ in size by three orders of magnitude, and
    channels of the second have means as far from zero as `shift` says. (model, samples)"""
    rng = np.random.default_rng(0)
    names = ("first", "second")
    weights = {n: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8 for n in names}
    weights |= {
        "gain": np.ones(WIDTH, np.float32),
        "shift": rng.standard_normal(WIDTH).astype(np.float32) * shift,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        helper.make_node("LayerNormalization", ["a", "gain", "shift"], ["b"], name="norm"),
        helper.make_node("MatMul", ["b", "second"], ["c"], name="second"),
        helper.make_node("Gelu", ["c"], ["y"], name="gelu"),
    ]
    shape = [1, ROWS, WIDTH]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy")
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    sizes = 10.0 ** rng.uniform(-2, 1, (12, 1, ROWS, 1))
    samples = (rng.standard_normal((12, *shape)) * sizes).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    return save(tmp_path / "m.onnx", proto), tmp_path / "c.npz"


def built(run_cli: Cli, encoder: tuple[Path, Path], *options: str) -> tuple[dict, str]:  # type: ignore[type-arg]
    model, samples = encoder
    bundle = model.with_suffix(".bundle")
    code, out, err = run_cli(
        "build", model, "--calibration", samples, "--force", "--place", "tpu", *options
    )
    assert code == 0, err
    return json.loads((bundle / "manifest.json").read_text()), out


def sqnr(manifest: dict) -> float:  # type: ignore[type-arg]
    return float(manifest["quality"]["outputs"]["y"]["sqnr_db"])


def test_shares_add_up_and_are_shown(run_cli: Cli, encoder: tuple[Path, Path]) -> None:
    manifest, out = built(run_cli, encoder, "--accuracy", "report")
    shares = [s["share"] for s in manifest["quality"]["segments"].values()]
    assert len(shares) == 2 and min(shares) > 0.02 and abs(sum(shares) - 1) < 1e-3
    assert "Share of the error" in out


@pytest.mark.slow
def test_keep_float_buys_accuracy_within_its_budget(
    run_cli: Cli, encoder: tuple[Path, Path]
) -> None:
    plain, _ = built(run_cli, encoder)
    manifest, out = built(run_cli, encoder, "--keep-float", "60")
    tpu = [s for s in manifest["segments"] if s["device"] == "tpu"]
    assert len(tpu) == 1 and "--keep-float" in out
    assert sqnr(manifest) > sqnr(plain) + 1
    none, _ = built(run_cli, encoder, "--keep-float", "10")
    assert sum(s["device"] == "tpu" for s in none["segments"]) == 2


def test_normalised_rows_hold_what_static_ranges_lose(
    run_cli: Cli, encoder: tuple[Path, Path]
) -> None:
    plain, _ = built(run_cli, encoder)
    # The search would see what is lost.
    static, _ = built(run_cli, encoder, "--without", "normalise_linears", "--quality", "none")
    assert sqnr(plain) > sqnr(static) + 10
    for kind, steps in (("balanced", ()), ("not", ("--without", "balance"))):
        manifest, _ = built(run_cli, encoder, *steps)
        (out,) = manifest["segments"][1]["outputs"]
        assert (out["scale"] == pytest.approx(1 / 127) and out["zero_point"] == 0) == (
            kind == "balanced"
        )
    assert run_cli("build", encoder[0], "--without", "import")[0] == 2


def test_a_second_row_gives_outputs_finer_steps(run_cli: Cli, tmp_path: Path) -> None:
    encoder = two_layers(tmp_path, 0)
    plain, _ = built(run_cli, encoder)
    finer, _ = built(run_cli, encoder, "--with", "second_row", "--check-passes")
    assert sqnr(finer) > sqnr(plain) + 1
    assert [s["device"] for s in finer["segments"]] == [s["device"] for s in plain["segments"]]
    before, after = (m["segments"][1]["outputs"][0] for m in (plain, finer))
    assert after["scale"] == before["scale"] and after["shape"][2] == 2 * before["shape"][2]
    for wrong in (["balance"], ["second_row", "--place", "host"]):
        assert run_cli("build", encoder[0], "--with", *wrong)[0] == 2


def test_balance_centres_channels_and_leaves_room() -> None:
    low, high = (
        np.array([-1.0, 3.0, 0.0, -0.5], np.float32),
        np.array([1.0, 5.0, 0.0, 0.0], np.float32),
    )
    twice = [np.stack([a, a]) for a in (low, high)]
    half, middle = balance._half_and_middle(*twice)
    np.testing.assert_allclose(middle, [0, 4, 0, -0.25])
    # A tenth of the 0.9 quantile of 0, 0.5, 1 and 5, which is 3.8; half of 0.5 is less too.
    rest = [0.38, max(0.38, 0.25 * balance.MARGIN)]
    np.testing.assert_allclose(half, [balance.MARGIN, balance.MARGIN, *rest], rtol=1e-6)


def test_a_single_huge_channel_leaves_the_others_their_steps() -> None:
    reached = np.full((2, 100), 0.25, np.float32)
    reached[:, 7] = 1000
    half, _ = balance._half_and_middle(-reached, reached)
    np.testing.assert_allclose(half, reached[0] * balance.MARGIN, rtol=1e-6)


def test_balance_leaves_more_room_where_one_half_of_the_samples_says_little_of_the_other() -> None:
    low, high = np.array([[-1.0], [1.5]], np.float32), np.array([[1.0], [2.5]], np.float32)
    half, _ = balance._half_and_middle(low, high)
    needed = balance._needed(low, high, 0.0)
    np.testing.assert_allclose(needed, [[2.5], [6.0]])
    margin = min(np.quantile(needed, balance.COVERED), balance.WIDEST)
    np.testing.assert_allclose(half, 3.5 / 2 * margin, rtol=1e-6)
