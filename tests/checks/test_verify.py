"""A bundle is run against the float model, and what is bad about it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from compiler.checks import verdict
from compiler.checks.channels import Channels
from compiler.checks.difference import Difference
from compiler.checks.equality import Equality
from compiler.checks.verify import HeldOut, Outputs, Values
from compiler.driver import build as building
from compiler.driver import quality as qualities
from compiler.driver.options import BuildOptions
from compiler.errors import QualityError
from compiler.runtime import Bundle, Pipeline
from tests.conftest import Cli, save


def test_numbers_are_samples_and_outputs_too(tmp_path: Path) -> None:
    """Inputs and outputs without axes."""
    text = (
        "g (float[1,4] x, float s) => (float y) { m = Mul (x, s) y = ReduceSum <keepdims = 0> (m) }"
    )
    model = save(
        tmp_path / "m.onnx",
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 18]> ' + text),
    )
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.ones((8, 1, 4), np.float32), s=np.arange(8, dtype=np.float32))
    manifest = building.build(model, tmp_path / "b", BuildOptions(calibration=data))
    assert manifest["quality"]["outputs"]["y"]["sqnr_db"] > 100


@pytest.fixture
def saturated(tmp_path: Path) -> tuple[Path, Path]:
    """A layer whose held-out samples, every fourth, are fifty times larger than those that set its
    ranges."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((16, 8)).astype(np.float32), "w")
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, s])
        for n, s in (("x", 16), ("y", 8))
    )
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    samples = rng.standard_normal((32, 1, 16)).astype(np.float32)
    samples[3::4] *= 50
    np.savez(tmp_path / "samples.npz", x=samples)
    return save(tmp_path / "m.onnx", proto), tmp_path / "samples.npz"


def test_a_bad_result_says_so(saturated: tuple[Path, Path], tmp_path: Path, run_cli: Cli) -> None:
    """Exit code 0, and a line that names the output, the segment and node to look at, and what to
    try."""
    model, samples = saturated
    options = ("--calibration", samples, "--without", "normalise_linears")
    code, out, _ = run_cli("build", model, *options, "-o", tmp_path / "b")
    assert code == 0
    (warning,) = json.loads((tmp_path / "b" / "manifest.json").read_text())["quality"]["warnings"]
    assert warning["kind"] == "bad" and warning["output"] == "y" and warning["node"] == "dense"
    last = out[out.index("BAD RESULT") :]
    for part in (
        "output 'y'",
        "dB",
        f"segment {warning['segment']}, node 'dense'",
        "--pin 'dense=host'",
    ):
        assert part in last
    assert "more samples than 32 (24 set the ranges, 8 were held out)" in last
    assert (
        "Measured on 8 held-out samples; with so few, the figures may be off by several dB" in out
    )
    assert "Least accurate segment: " in out
    code, out, _ = run_cli("inspect", tmp_path / "b")
    assert code == 0 and "BAD RESULT" in out
    assert "Bad result" in (tmp_path / "b" / "report.html").read_text()
    code, _, err = run_cli("build", model, *options, "-o", tmp_path / "c", "--min-sqnr", 20)
    assert code == 2 and "output 'y'" in err and not (tmp_path / "c").exists()


def test_integers_are_judged_by_equality(
    saturated: tuple[Path, Path], tmp_path: Path, run_cli: Cli
) -> None:
    """The layer's largest output and its index, of which onnxruntime on the user's file is the
    judge."""
    model, samples = saturated
    proto = onnx.load(model)
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["best"], axis=1, name="best"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("best", onnx.TensorProto.INT64, [1, 1]))
    save(model, proto)
    options = ("--calibration", samples, "--without", "normalise_linears")
    code, out, _ = run_cli("build", model, *options, "-o", tmp_path / "b")
    quality = json.loads((tmp_path / "b" / "manifest.json").read_text())["quality"]

    data = np.load(samples)["x"]
    session = onnxruntime.InferenceSession(model)
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    same = [
        session.run(None, {"x": row})[0] == pipeline.run({"x": row})["best"] for row in data[3::4]
    ]
    share = float(np.mean(same))
    assert quality["outputs"] == {"best": {"equal": share}} and share < 0.9
    (warning,) = quality["warnings"]
    assert warning["kind"] == "bad" and warning["node"] == "dense"
    shown = f"{share:.1%} of its values are the same as in float"
    assert code == 0 and "equal values" in out and f"BAD RESULT output 'best': {shown}" in out
    code, out, _ = run_cli("inspect", tmp_path / "b")
    assert code == 0 and f"{share:.2%}" in out and shown in out
    code, _, err = run_cli("build", model, *options, "-o", tmp_path / "c", "--min-sqnr", 1)
    assert code == 2 and shown in err and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("got", "want", "share"),
    [
        (np.array([1, 2, 3]), np.array([1, 2, 4]), 0.6666),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.array(["a", "bc"], object), np.array(["a", "b"], object), 0.5),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), 1.0),
        (np.zeros((0, 3), int), np.zeros((2, 3), int), 0.0),
        (np.zeros((3, 2), int), np.zeros((2, 3), int), 0.0),
        (np.int64(3), np.int64(3), 1.0),
        ([np.array([1, 2]), np.array([3])], [np.array([1, 2]), np.array([4])], 0.6666),
        ([np.array([1, 2])], [np.array([1, 2]), np.array([3, 4])], 0.5),
        ([], [np.zeros(0, int)], 0.0),
        ([], [], 1.0),
        (np.arange(100_000), np.r_[np.arange(99_999), -1], 0.9999),
    ],
)
def test_equal_values(got: object, want: object, share: float) -> None:
    equality = Equality()
    equality.add(got, want)
    assert equality.report() == {"equal": share}


def test_rounded_floats_are_measured_as_numbers() -> None:
    """Pixels that are off by one at most are a good result, though few are equal."""
    rng = np.random.default_rng(0)
    want = rng.integers(0, 255, (8, 1, 3, 8, 8)).astype(np.uint8)
    got = want + (rng.random(want.shape) < 0.6).astype(np.uint8)
    samples = [{"x": np.zeros(1, np.float32)}] * len(want)
    held_out = HeldOut(samples, [{"y": image} for image in want], rounded={"y"})
    outputs = Outputs(held_out)
    for sample, ours, theirs in zip(samples, got, want, strict=True):
        outputs.add({"y": ours}, {"y": theirs}, sample)
    found: Any = outputs.report()
    noise = np.square(got.astype(int) - want).sum()
    expected = 10 * np.log10(np.square(want.astype(float)).sum() / noise)
    figures = found["outputs"]["y"]
    assert figures["plain_sqnr_db"] == pytest.approx(expected, abs=0.01)
    assert figures["equal"] == pytest.approx((got == want).mean(), abs=1e-4)
    assert verdict.findings(found) == []


def test_sequences_of_floats_have_figures() -> None:
    """The first sequence is empty, and those of the bundle lack the second tensor of the others."""
    rng = np.random.default_rng(0)
    wanted: list[list[np.ndarray]] = [[]]
    wanted += [list(rng.standard_normal((2, 3, 4))) for _ in range(8)]
    samples = [{"x": np.zeros(1, np.float32)}] * len(wanted)
    outputs = Outputs(HeldOut(samples, [{"y": sequence} for sequence in wanted]))
    for sample, sequence in zip(samples, wanted, strict=True):
        outputs.add({"y": sequence[:1]}, {"y": sequence}, sample)
    energies = np.sum([np.square(sequence).sum(axis=(1, 2)) for sequence in wanted[1:]], axis=0)
    figures: Any = outputs.report()["outputs"]["y"]
    expected = 10 * np.log10(energies.sum() / energies[1])
    assert figures["plain_sqnr_db"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"i": {"equal": 1.0}}, "output 'i' is of integers.*100.0%.*no output has an SQNR"),
        ({"i": {"equal": 0.5}}, "output 'i' is of integers.*50.0%.*90% are needed"),
        ({"y": {"sqnr_db": 40.0}, "i": {"equal": 0.5}}, "output 'i' is of integers.*50.0%"),
        ({"y": {"sqnr_db": 20.0}, "i": {"equal": 1.0}}, "output 'y' has 20.0 dB"),
        ({"y": {"sqnr_db": 40.0}, "i": {"equal": 0.95}}, None),
    ],
)
def test_a_gate_on_outputs_without_floats(outputs: dict[str, Any], message: str | None) -> None:
    quality: Any = {"samples": 8, "outputs": outputs, "segments": {}}
    if message is None:
        qualities.require_sqnr(quality, 30.0)
        return
    with pytest.raises(QualityError, match=message):
        qualities.require_sqnr(quality, 30.0)


def test_one_sample_cannot_pass_a_gate(
    saturated: tuple[Path, Path], tmp_path: Path, run_cli: Cli
) -> None:
    model, samples = saturated
    np.savez(samples, x=np.load(samples)["x"][0])
    options = ("--calibration", samples, "-o", tmp_path / "b")
    code, _, err = run_cli("build", model, *options, "--min-sqnr", 1)
    assert code == 2 and "one held-out sample" in err
    code, out, _ = run_cli("build", model, *options)
    assert code == 0 and "UNSURE" in out and "does not vary" in out and "BAD" not in out


def entry(**figures: object) -> dict[str, Any]:
    return {
        "sqnr_db": 30.0,
        "variation": 0.9,
        "plain_sqnr_db": 31.0,
        "cosine": 0.999,
        "max_error": 0.1,
    } | figures


@pytest.mark.parametrize(
    ("figures", "kind", "text"),
    [
        ({}, None, ""),
        ({"sqnr_db": 14.9}, "bad", "14.9 dB"),
        (
            {"sqnr_db": -3.0, "worst": {"slice": "[:, 4:22]", "sqnr_db": -3.0}},
            "bad",
            "-3.0 dB at [:, 4:22]",
        ),
        ({"cosine": 0.97}, "bad", "cosine 0.9700"),
        ({"top1_agreement": 0.12}, "bad", "the same class in 12%"),
        ({"top1_agreement": 0.9}, None, ""),
        ({"top1_agreement": 0.8, "top5_agreement": 1.0}, "bad", "among the first five in 100%"),
        ({"text": {"lines": 16, "equal": 9, "character_error": 0.036}}, "bad", "9 of 16 texts"),
        ({"sqnr_db": 13.0, "mask_iou": 0.99}, "bad", "13.0 dB; though masks overlap by 99%"),
        ({"mask_iou": 0.5}, "bad", "masks overlap by 50%"),
        ({"sqnr_db": None, "variation": 0.0}, "unsure", "does not vary"),
        ({"sqnr_db": None, "variation": 0.0, "plain_sqnr_db": 3.0}, "bad", "3.0 dB"),
        ({"sqnr_db": 5.0, "variation": 0.02}, "unsure", "varies by 2.00%"),
        ({"sqnr_db": 25.0, "variation": 0.02}, None, ""),
        ({"sqnr_db": 200.0, "variation": 0.0}, None, ""),
    ],
)
def test_findings(figures: dict[str, Any], kind: str | None, text: str) -> None:
    found = verdict.findings({"outputs": {"y": entry(**figures)}})
    assert [f["kind"] for f in found] == ([] if kind is None else [kind])
    assert text in "".join(f["finding"] for f in found)


def test_lost_detections_are_a_finding() -> None:
    boxes = {
        "outputs": ["y"],
        "float": 100,
        "bundle": 50,
        "recall": 0.5,
        "ap50": 0.52,
        "map50": 0.4,
    }
    (found,) = verdict.findings({"outputs": {"y": entry()}, "detections": boxes})
    assert "AP@50 0.520, mean of classes 0.400, recall 0.50" in found["finding"]


def test_detections_that_cannot_be_compared_are_a_finding() -> None:
    boxes = {"outputs": ["y"], "float": 2, "bundle": 2, "recall": None, "ap50": None}
    (found,) = verdict.findings({"outputs": {"y": entry()}, "detections": boxes})
    assert found["kind"] == "unsure" and "finds 2" in found["finding"]


@pytest.mark.parametrize(("found_boxes", "kind"), [(0, "unsure"), (3, "bad")])
def test_background_alone_is_not_bad(found_boxes: int, kind: str) -> None:
    """A detector's samples without an object, unless the bundle sees some there."""
    boxes = {"outputs": ["y"], "float": 0, "bundle": found_boxes, "recall": None, "ap50": None}
    quality = {"outputs": {"y": entry(sqnr_db=-5.0)}, "detections": boxes}
    (found,) = verdict.findings(quality)
    assert found["kind"] == kind and "-5.0 dB" in found["finding"]
    assert ("nothing to detect in the held-out samples" in found["finding"]) == (kind == "unsure")


@pytest.mark.parametrize(("share", "count"), [(0.9, 0), (0.89, 1)])
def test_unequal_values_are_a_finding(share: float, count: int) -> None:
    assert len(verdict.findings({"outputs": {"i": {"equal": share}}})) == count


@pytest.mark.parametrize(("ratio", "count"), [(1.05, 0), (2.8, 1)])
def test_a_language_model_far_from_its_float_model(ratio: float, count: int) -> None:
    figures = {"ratio": ratio, "ratio_error": 0.01, "bundle": 23.0 * ratio, "float": 23.0}
    manifest = {
        "quality": {"perplexity": figures},
        "prediction": {"place": "tpu"},
        "outputs": [{"name": "logits"}],
    }
    assert len(verdict.of_language(manifest)) == count
    # A few tokens may be that far off by chance.
    figures["ratio_error"] = ratio
    assert not verdict.of_language(manifest)


@pytest.mark.parametrize(
    ("few", "many", "counted"),
    [(2, 64, {"slice": "[:, 0:4]", "bundle": 2, "float": 256}), (64, 64, None)],
)
def test_few_values_are_counted(few: int, many: int, counted: dict[str, Any] | None) -> None:
    """4 channels of 64 values each, of which the bundle has `few` different ones in all."""
    want = np.arange(4 * many, dtype=np.float32).reshape(1, 4, many)
    got = want % few
    difference, values = Difference(Channels(1)), Values()
    difference.add(got, want)
    values.add(got, want)
    assert values.report(difference).get("distinct") == counted
