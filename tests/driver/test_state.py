"""Models with state: calibrated and verified in a closed loop, and kept from drifting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler.checks.difference import Difference
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Runner
from compiler.runtime.conversion import dequantize, quantize
from compiler.runtime.manifest import Manifest
from tests import streaming
from tests.conftest import Cli


def on_bundle(bundle: Bundle, name: str, frames: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of each step of a sequence."""
    with Runner(bundle, "cpu") as runner, runner.session() as session:
        steps = list(session.stream({name: frame} for frame in frames))
    return {output: np.stack([step[output] for step in steps]) for output in steps[0]}


def held_out(folder: Path, name: str) -> list[np.ndarray]:
    """Every fourth recording."""
    found = []
    for number in (3, 7):
        with np.load(folder / f"{number}.npz") as arrays:
            found.append(arrays[name])
    return found


def test_figures_are_those_of_a_closed_loop(detector: Bundle) -> None:
    """They are measured here again, by sessions against onnxruntime on the file."""
    manifest = detector.manifest
    assert manifest["state"] == [{"output": "hn", "input": "h", "initial": "zeros"}]
    quality = manifest["quality"]
    difference = Difference()
    differing = yes = 0
    for frames in held_out(detector.path.parent / "samples", "frame"):
        file = detector.path.with_suffix(".onnx")
        wanted = streaming.closed_loop(file, {"frame": frames}, {"hn": "h"})
        found = on_bundle(detector, "frame", frames)
        for got, want in zip(found["hn"], wanted["hn"], strict=True):
            difference.add(got, want)
        differing += int(((found["speech"] > 0.5) != (wanted["speech"] > 0.5)).sum())
        yes += int((wanted["speech"] > 0.5).sum())
    assert (quality["sequences"], quality["samples"]) == (2, 120)
    decisions = {"steps": 120, "yes": yes, "differing": differing}
    speech, state = quality["outputs"]["speech"], quality["outputs"]["hn"]
    assert "sqnr_db" in state and "decisions" in speech
    assert speech["decisions"] == decisions and 0 < yes < 120
    assert state["sqnr_db"] == pytest.approx(difference.sqnr_db, abs=0.05)


def test_a_recurrent_state_is_float(detector: Bundle, tmp_path: Path) -> None:
    """Layers stay on the Edge TPU; in int8 the state would lose ten decibels."""
    file = detector.path.with_suffix(".onnx")
    samples = detector.path.parent / "samples"
    options = BuildOptions(
        calibration=samples,
        without=frozenset({"keep_states"}),
        # It drifts, and would go to the host.
        partitioning=PartitionOptions(pins={"*": "tpu"}),
    )
    in_int8 = building.build(file, tmp_path / "b", options)
    sqnr = [state_sqnr(manifest) for manifest in (detector.manifest, in_int8)]
    assert sqnr[0] > 32 and sqnr[0] > sqnr[1] + 10
    assert "edgetpu.FullyConnected" in operators(detector.manifest, "tpu")


def state_sqnr(manifest: Manifest) -> float:
    entry = manifest["quality"]["outputs"]["hn"]
    assert "sqnr_db" in entry and entry["sqnr_db"] is not None
    return entry["sqnr_db"]


def operators(manifest: Manifest, device: str) -> set[str]:
    found = set()
    for segment in manifest["segments"]:
        if segment["device"] == device:
            found |= {operator["operator"] for operator in segment["operators"]}
    return found


def test_a_cache_keeps_its_int8(tmp_path: Path) -> None:
    """The frames of a cache leave an Edge TPU and go back in with one scale, so that what comes
    back is the same int8."""
    model = streaming.encoder(tmp_path / "encoder.onnx")
    samples = streaming.recordings(tmp_path / "samples", "x", (1, 8, 1, 4))
    manifest = building.build(model, tmp_path / "b", BuildOptions(calibration=samples))
    pairs = {entry["output"]: entry["input"] for entry in manifest["state"]}
    assert pairs == {"cache_out": "cache_in", "deep_cache_out": "deep_cache_in"}
    forms = {}
    for segment in manifest["segments"]:
        for tensor in [*segment["inputs"], *segment["outputs"]]:
            if tensor["name"] in {*pairs, *pairs.values()}:
                forms[tensor["name"]] = (tensor["dtype"], tensor["scale"], tensor["zero_point"])
    frames = streaming.recording(30, (1, 8, 1, 4), 11)
    found = on_bundle(Bundle.open(tmp_path / "b"), "x", frames)
    for output, name in pairs.items():
        assert forms[output] == forms[name] and forms[name][0] == "int8"
        scale = forms[name][1:]
        carried = quantize(found[output], *scale)
        np.testing.assert_array_equal(dequantize(carried, *scale), found[output])
    wanted = streaming.closed_loop(model, {"x": frames}, pairs)
    for name, array in wanted.items():
        noise = np.square(found[name] - array).sum()
        assert 10 * np.log10(np.square(array).sum() / noise) > 33


def loud(folder: Path) -> tuple[Path, Path]:
    """A detector with a click in one value of the frames that leaves int8 no room for the rest."""
    model = streaming.gru(folder / "loud.onnx")
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "w_f":
            weight = numpy_helper.to_array(tensor).copy()
            weight[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, "w_f"))
    onnx.save(proto, model)
    samples = folder / "samples"
    samples.mkdir()
    for number in range(8):
        frames = streaming.recording(60, (1, 16), number)
        frames[::7, 0, 0] = 2000
        np.savez(samples / f"{number}.npz", frame=frames)
    return model, samples


def test_what_drifts_stays_on_the_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, samples = loud(tmp_path)
    with caplog.at_level("INFO", "compiler"):
        manifest = building.build(model, tmp_path / "b", BuildOptions(calibration=samples))
    entry = manifest["quality"]["outputs"]["speech"]
    assert "decisions" in entry and entry["decisions"]["differing"] == 0
    assert "are decided otherwise than in float, more than 0.5%" in caplog.text
    assert manifest["prediction"]["host_float_ms"] > 0
    pinned = BuildOptions(
        calibration=samples, partitioning=PartitionOptions(pins={"Gemm_*": "tpu"})
    )
    manifest = building.build(model, tmp_path / "pinned", pinned)
    entry = manifest["quality"]["outputs"]["speech"]
    assert "decisions" in entry and entry["decisions"]["differing"] > 5
    assert operators(manifest, "tpu")
    assert any("are decided otherwise" in w["finding"] for w in manifest["quality"]["warnings"])


def test_one_recording_is_split_in_time(tmp_path: Path) -> None:
    """Its last quarter is held out, and goes on from the state that it has there."""
    model = streaming.gru(tmp_path / "m.onnx")
    frames = streaming.recording(80, (1, 16))
    np.savez(tmp_path / "x.npz", frame=frames)
    manifest = building.build(model, tmp_path / "b", BuildOptions(calibration=tmp_path / "x.npz"))
    quality = manifest["quality"]
    found = (quality["calibration_samples"], quality["samples"], quality["sequences"])
    assert found == (60, 20, 1) and state_sqnr(manifest) > 25


def test_names_of_the_users(tmp_path: Path, run_cli: Cli) -> None:
    text = (
        streaming.GRU.replace("hn", "after").replace(" h)", " before)").replace(" h,", " before,")
    )
    text = text.replace("(z, h)", "(z, before)").replace("(loud, h)", "(loud, before)")
    model = streaming.gru(tmp_path / "m.onnx", text)
    samples = streaming.recordings(tmp_path / "samples", "frame", (1, 16), 20)
    given = ["build", model, "--calibration", samples, "--output", tmp_path / "b"]
    code, _, err = run_cli(*given)
    assert code == 2 and "array 'before' is missing" in err
    code, _, err = run_cli(*given, "--state", "aftr=before")
    assert code == 2 and "no output 'aftr'; the closest are 'after'" in err
    assert err.strip().count("\n") < 2 and not (tmp_path / "b").exists()
    code, out, _ = run_cli(*given, "--state", "after=before")
    assert code == 0 and "in a closed loop" in out and "are decided otherwise" in out


def test_run_takes_sequences(detector: Bundle, tmp_path: Path, run_cli: Cli) -> None:
    frames = np.stack([streaming.recording(9, (16,), seed) for seed in range(3)])
    given = ["run", detector.path, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"]
    np.savez(tmp_path / "x.npz", frame=frames)
    code, out, _ = run_cli(*given)
    assert code == 0 and "speech: [3, 9, 1]" in out and "hn: [3, 1, 24]" in out
    with np.load(tmp_path / "y.npz") as found:
        for index, recording in enumerate(frames):
            wanted = on_bundle(detector, "frame", recording[:, None])
            np.testing.assert_array_equal(found["speech"][index], wanted["speech"][:, 0])
            np.testing.assert_array_equal(found["hn"][index], wanted["hn"][-1])
        state = found["hn"][0]
    # A sequence goes on from the state that another ended with.
    np.savez(tmp_path / "x.npz", frame=frames[0, :4], h=state)
    assert run_cli(*given)[0] == 0
    np.savez(tmp_path / "x.npz", frame=frames[0, :, :5])
    code, _, err = run_cli(*given)
    assert code == 2 and "the model takes [1, 16] at each step" in err
