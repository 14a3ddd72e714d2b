"""The commands as a user gives them: results, bad input, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper

from compiler.targets import Target
from fixtures import light
from tests.conftest import Cli, save, small_network


def samples(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 16, 16)).astype(np.float32)


def test_build_inspect_run(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    calibration = samples(tmp_path / "c.npz", x=images(8))
    bundle = tmp_path / "out.bundle"
    arguments = ("-o", bundle, "--calibration", calibration, "--place", "tpu")
    code, out, _ = run_cli("build", small_model, *arguments, "--check-passes")
    assert code == 0 and "LOCAL_RESPONSE_NORMALIZATION" in out and "random" not in out
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [s["device"] for s in manifest["segments"]] == ["host", "tpu", "host", "tpu", "host"]
    assert manifest["quality"]["outputs"]["y"]["plain_sqnr_db"] > 25
    assert manifest["quality"]["samples"] == 2

    code, out, _ = run_cli("inspect", bundle, "--json")
    assert code == 0 and json.loads(out) == manifest

    code, _, _ = run_cli("run", bundle, "--input", calibration, "--output", tmp_path / "y.npz")
    result = np.load(tmp_path / "y.npz")["y"]
    assert code == 0 and result.shape == (8, 10)
    assert np.allclose(result.sum(axis=1), 1, atol=1e-5)


def test_build_without_calibration_is_loud(small_model: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("build", small_model)
    assert code == 0
    assert "accuracy will be meaningless" in err and "random data" in out
    assert small_model.with_suffix(".bundle").is_dir()


def test_inspect_of_a_model_is_a_dry_run(small_model: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("inspect", small_model, "--json")
    plan = json.loads(out)
    assert code == 0 and "quality" not in plan and "files" not in plan["segments"][0]
    reasons = {
        o["node"]: o["reason"]
        for s in plan["segments"]
        if s["device"] == "host"
        for o in s["operators"]
    }
    assert "LOCAL_RESPONSE_NORMALIZATION" in reasons["normalise"]
    assert list(small_model.parent.iterdir()) == [small_model]


def test_rebuild_is_identical(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    built = []
    for name in ("a", "b"):
        assert run_cli("build", small_model, "-o", tmp_path / name)[0] == 0
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        built.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in files])
    assert built[0] == built[1]


def test_existing_bundle_is_kept_without_force(
    small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    bundle = tmp_path / "b"
    assert run_cli("build", small_model, "-o", bundle)[0] == 0
    before = (bundle / "manifest.json").read_bytes()
    code, _, err = run_cli("build", small_model, "-o", bundle, "--seed", 1)
    assert code == 2 and "the option force replaces it" in " ".join(err.split())
    code, _, err = run_cli("build", small_model, "-o", bundle, "--force", "--min-sqnr", 150)
    assert code == 2 and "--min-sqnr" in err and "segment" in err
    assert (bundle / "manifest.json").read_bytes() == before
    assert run_cli("build", small_model, "-o", bundle, "--force", "--observer", "mse")[0] == 0
    assert (bundle / "manifest.json").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "small.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_build_leaves_nothing(
    number: int, tmp_path: Path, small_model: Path, run_cli: Cli
) -> None:
    """After SIGTERM at once; after SIGKILL when the next build of that bundle starts."""
    model = light.generate("resnet50", tmp_path / "big.onnx")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "compiler", "build", model, "-o", output]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / ".out.building" / "bundle").exists():
        time.sleep(0.01)
    process.send_signal(number)
    process.wait()
    assert not output.exists()
    if number == signal.SIGKILL:
        assert run_cli("build", small_model, "-o", output)[0] == 0
    assert not list(tmp_path.glob(".out*"))


def test_force_replaces_bundles_only(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    other = tmp_path / "documents"
    other.mkdir()
    (other / "letter").write_text("dear")
    code, _, err = run_cli("build", small_model, "-o", other, "--force")
    assert code == 2 and "not a bundle" in err and (other / "letter").read_text() == "dear"


def test_dynamic_dimensions(tmp_path: Path, run_cli: Cli) -> None:
    model = save(tmp_path / "m.onnx", small_network("batch"))
    code, _, err = run_cli("inspect", model)
    assert code == 2 and "--dim batch=1" in err
    assert run_cli("inspect", model, "--dim", "batch=1")[0] == 0
    assert run_cli("inspect", model, "--shape", "x=1,3,16,16")[0] == 0
    code, _, err = run_cli("inspect", model, "--dim", "size=1")
    assert code == 2 and "'batch'" in err
    code, _, err = run_cli("inspect", model, "--shape", "z=1")
    assert code == 2 and "'x'" in err


def truncated(path: Path) -> Path:
    save(path, small_network())
    path.write_bytes(path.read_bytes()[:-700])
    return path


def not_onnx(path: Path) -> Path:
    path.write_text("this is a letter, not a model\n" * 5)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def undefined_tensor(path: Path) -> Path:
    proto = small_network()
    proto.graph.node[3].input[0] = "nowhere"
    return save(path, proto)


def outside(path: Path) -> Path:
    proto = small_network()
    external_data_helper.set_external_data(
        proto.graph.initializer[0], "../secret.bin", offset=0, length=864
    )
    proto.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    (path.parent.parent / "secret.bin").write_bytes(bytes(864))
    return path


def short_external(path: Path) -> Path:
    proto = small_network()
    external_data_helper.set_external_data(
        proto.graph.initializer[0], "weights.bin", offset=0, length=864
    )
    proto.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    (path.parent / "weights.bin").write_bytes(bytes(100))
    return path


def nan_weights(path: Path) -> Path:
    proto = small_network()
    array = onnx.numpy_helper.to_array(proto.graph.initializer[2]).copy()
    array[0, 0, 0, 0] = np.nan
    proto.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    return save(path, proto)


def wrong_type(path: Path) -> Path:
    proto = small_network()
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", 1.5))
    return save(path, proto)


def new_opset(path: Path) -> Path:
    proto = small_network()
    proto.opset_import[0].version = 99
    return save(path, proto)


BAD_MODELS: list[tuple[Callable[[Path], Path], str]] = [
    (truncated, "truncated"),
    (not_onnx, "not an ONNX"),
    (empty, "not an ONNX model"),
    (lambda path: path, "no such file"),
    (undefined_tensor, "'nowhere'"),
    (outside, "outside the model's folder"),
    (short_external, "shorter than the model says"),
    (nan_weights, "'w2'"),
    (wrong_type, "not a valid ONNX model"),
    (new_opset, "opset 99"),
]


@pytest.mark.parametrize(("make", "words"), BAD_MODELS, ids=[words for _, words in BAD_MODELS])
def test_bad_models(make: Callable[[Path], Path], words: str, tmp_path: Path, run_cli: Cli) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    code, out, err = run_cli("build", make(folder / "bad.onnx"), "-o", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and words in lines[0] and out == ""
    assert "Traceback" not in err and not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, target: object) -> Path:
    path.symlink_to(str(target))
    return path


NO_FILES: list[tuple[Callable[[Path], Path], str]] = [
    (folder, "a folder, not a regular file"),
    (pipe, "not a regular file"),
    (lambda path: link(path, "/dev/zero"), "not a regular file"),
    (lambda path: link(path, path), "a link that leads to no file"),
    (lambda path: path, "no such file"),
]


@pytest.mark.parametrize(("make", "words"), NO_FILES)
def test_what_is_no_file(
    make: Callable[[Path], Path], words: str, tmp_path: Path, run_cli: Cli
) -> None:
    code, _, err = run_cli("build", make(tmp_path / "bad.onnx"), "-o", tmp_path / "out")
    assert code == 2 and f"bad.onnx: {words}; give" in err


@pytest.mark.parametrize("option", ["target", "host"])
def test_deep_toml(option: str, small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 20_000)
    code, _, err = run_cli("plan", small_model, f"--{option}", deep)
    assert code == 2 and f"--{option}" in err and "cannot be read as TOML" in err


@pytest.mark.parametrize(
    ("tpus", "words"), [("5..1", "a range goes up, such as 1..5"), ("1..99999999999", "write a")]
)
def test_ranges_of_tpus(tpus: str, words: str, small_model: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("plan", small_model, "--tpus", tpus)
    assert code == 2 and words in err


def test_a_pattern_for_observers_that_matches_nothing(
    small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    build = ("build", small_model, "-o", tmp_path / "out", "--observer")
    code, _, err = run_cli(*build, "nomatch*=mse")
    assert code == 2 and "--observer nomatch*=mse: no activation has this name" in err
    assert not (tmp_path / "out").exists()
    assert run_cli(*build, "second*=mse")[0] == 0


@pytest.mark.parametrize(("is_random", "words"), [(True, "give samples"), (False, "check the")])
def test_a_model_that_fails_on_samples(
    is_random: bool, words: str, tmp_path: Path, run_cli: Cli
) -> None:
    """Whether its indices or the samples are wrong cannot be told."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4] x) => (float[1,4] y)
    <float[4] table = {1,2,3,4}, float far = {100000}> {
        m = Mul (x, far) i = Cast <to = 7> (m) y = Gather (table, i)
    }"""
    model = save(tmp_path / "m.onnx", onnx.parser.parse_model(text))
    command: list[object] = ["build", model, "-o", tmp_path / "out"]
    if not is_random:
        given = np.ones((4, 1, 4), np.float32)
        command += ["--calibration", samples(tmp_path / "c.npz", x=given)]
    code, _, err = run_cli(*command)
    assert code == 2 and "E-CALIBRATION" in err
    assert words in err and "else the model itself is broken" in err


BAD_CALIBRATION: list[tuple[dict[str, np.ndarray], str]] = [
    ({"z": images(2)}, "'z' is no input"),
    ({}, "'x' is missing"),
    ({"x": images(2)[:, :, :5]}, "the model takes [1, 3, 16, 16]"),
    ({"x": images(2).astype(np.int32)}, "the model takes float32"),
    ({"x": images(2) * np.float32(np.nan)}, "NaN"),
    ({"x": images(0)}, "no samples"),
]


@pytest.mark.parametrize(
    ("arrays", "words"), BAD_CALIBRATION, ids=[words for _, words in BAD_CALIBRATION]
)
def test_bad_calibration(
    arrays: dict[str, np.ndarray], words: str, small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    calibration = samples(tmp_path / "c.npz", **arrays)
    code, _, err = run_cli(
        "build", small_model, "-o", tmp_path / "out", "--calibration", calibration
    )
    assert code == 2 and words in err and "E-CALIBRATION" in err and not (tmp_path / "out").exists()


def test_unreadable_calibration(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "c.npz").write_bytes(b"PK not really")
    for path, words in (
        (tmp_path / "c.npz", "is no .npy or .npz file"),
        (tmp_path / "none", "no such file"),
    ):
        code, _, err = run_cli("build", small_model, "-o", tmp_path / "out", "--calibration", path)
        assert code == 2 and words in err


def test_output_that_cannot_be_written(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_cli("build", small_model, "-o", tmp_path / "file" / "bundle")
    assert code == 2 and "cannot be written" in err


def test_edited_bundle(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    bundle = tmp_path / "b"
    assert run_cli("build", small_model, "-o", bundle)[0] == 0
    source = samples(tmp_path / "x.npz", x=images(1))
    segment = bundle / "segments" / "01.tflite"
    original = segment.read_bytes()
    segment.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    code, _, err = run_cli("run", bundle, "-i", source, "-o", tmp_path / "y.npz")
    assert (
        code == 2 and "01.tflite" in err and "changed" in err and not (tmp_path / "y.npz").exists()
    )
    segment.unlink()
    assert "missing" in run_cli("inspect", bundle)[2]
    (bundle / "manifest.json").write_text("{}")
    assert run_cli("inspect", bundle)[0] == 2
    assert "no manifest.json" in run_cli("inspect", tmp_path)[2]


def test_bad_run_input(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    bundle = tmp_path / "b"
    assert run_cli("build", small_model, "-o", bundle)[0] == 0
    for arrays, words in (
        ({"q": images(1)}, "'q' is no input"),
        ({"x": images(1)[..., :3]}, "[1, 3, 16, 16]"),
    ):
        source = samples(tmp_path / "x.npz", **arrays)
        code, _, err = run_cli("run", bundle, "-i", source, "-o", tmp_path / "y.npz")
        assert code == 2 and words in err


@pytest.mark.parametrize(
    "options",
    [
        ("--dim", "batch"),
        ("--shape", "x=1,a"),
        ("--observer", "average"),
        ("--mean", "a,b"),
        ("--size", "7"),
        ("--target", "gpu"),
    ],
)
def test_bad_options(options: tuple[str, str], small_model: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("build", small_model, *options)
    assert code == 2 and options[0] in err and "Traceback" not in err


def test_image_calibration(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(
            folder / f"{index}.png"
        )
    arguments = (
        "--calibration",
        folder,
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25",
        "--size",
        "20,24",
    )
    code, _, _ = run_cli("build", small_model, "-o", tmp_path / "b", *arguments)
    assert code == 0
    assert (
        run_cli(
            "build", small_model, "-o", tmp_path / "c", "--calibration", folder, "--size", "8,8"
        )[0]
        == 2
    )
    (folder / "broken.png").write_bytes(b"no image")
    code, _, err = run_cli("build", small_model, "-o", tmp_path / "c", "--calibration", folder)
    assert code == 2 and "broken.png" in err


def test_plan_compares_numbers_of_tpus(small_model: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("plan", small_model, "--tpus", "1..3", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["tpus"] for row in rows] == [1, 2, 3]
    assert all(row["latency_ms"] > 0 and row["error_percent"] is None for row in rows)
    code, out, _ = run_cli("plan", small_model, "--tpus", "2,1")
    assert code == 0 and "results/s" in out and "on pi5 is not measured" in " ".join(out.split())
    code, out, _ = run_cli("plan", small_model, "--tpus", "1", "--host", "pi4")
    assert code == 0 and f"{Target.load('usb3', 'pi4').error_percent}%" in " ".join(out.split())
    assert list(small_model.parent.iterdir()) == [small_model]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("plan", "--tpus", "0"), "--tpus 0"),
        (("plan", "--tpus", "1..x"), "--tpus 1..x"),
        (("plan", "--objective", "speed"), "--objective speed"),
        (("inspect", "--place", "gpu"), "--place gpu"),
        (("inspect", "--pin", "first"), "--pin first"),
        (("inspect", "--pin", "nothing=host"), "--pin nothing=host"),
        (("inspect", "--pin", "normalise=tpu"), "LOCAL_RESPONSE_NORMALIZATION"),
        (("inspect", "--cut", "nothing"), "--cut nothing"),
        (("inspect", "--host", "pi9"), "--host pi9"),
    ],
)
def test_wishes_that_cannot_be_met(
    arguments: tuple[str, ...], named: str, small_model: Path, run_cli: Cli
) -> None:
    code, _, err = run_cli(arguments[0], small_model, *arguments[1:])
    assert code == 2 and named in err.replace("\n", " ") and "Traceback" not in err


def devices(out: str) -> dict[str, tuple[str, int | None]]:
    return {
        o["node"]: (s["device"], s["tpu"])
        for s in json.loads(out)["segments"]
        for o in s["operators"]
    }


def test_pins_cuts_and_places(small_model: Path, run_cli: Cli) -> None:
    placed = devices(run_cli("inspect", small_model, "--json")[1])
    assert placed["second"] == ("tpu", 0) and placed["normalise"] == ("host", None)
    placed = devices(
        run_cli("inspect", small_model, "--json", "--pin", "sec*=host", "--pin", "dense=tpu")[1]
    )
    assert placed["second"] == ("host", None) and placed["dense"] == ("tpu", 0)
    placed = devices(run_cli("inspect", small_model, "--json", "--tpus", "2", "--cut", "second")[1])
    assert placed["second"] == ("tpu", 0) and placed["dense"] == ("tpu", 1)
    placed = devices(run_cli("inspect", small_model, "--json", "--place", "host")[1])
    assert {device for device, _ in placed.values()} == {"host"}
    out = run_cli("inspect", small_model, "--json", "--place", "auto")[1]
    # So small that the way costs more: the segment that costs least stays.
    on_tpu = [segment for segment in json.loads(out)["segments"] if segment["device"] == "tpu"]
    assert len(on_tpu) == 1 and "predicted:" in out
    shown = " ".join(run_cli("inspect", small_model)[1].split())
    assert "x the pi5 alone (" in shown and "`--place host` makes that plan." in shown


def test_bundles_for_several_tpus_run(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    bundle = tmp_path / "b"
    assert run_cli("build", small_model, "-o", bundle, "--tpus", "2", "--cut", "second")[0] == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {s["tpu"] for s in manifest["segments"]} == {None, 0, 1}
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    assert run_cli("run", bundle, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz")[0] == 0


def test_measure_writes_what_host_takes(tmp_path: Path, small_model: Path, run_cli: Cli) -> None:
    path = tmp_path / "this.toml"
    code, out, _ = run_cli("measure", "-o", path)
    assert code == 0 and "macs" in out
    assert run_cli("inspect", small_model, "--host", path)[0] == 0
    assert run_cli("measure", "-o", tmp_path / "no" / "this.toml")[0] == 2


def test_pages_and_graphs(tmp_path: Path, small_model: Path, run_cli: Cli) -> None:
    page, dot, graph = tmp_path / "p.html", tmp_path / "g.dot", tmp_path / "g.onnx"
    assert run_cli("inspect", small_model, "--html", page, "--dot", dot, "--netron", graph)[0] == 0
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    data = text.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["segments"]
    assert dot.read_text().count("subgraph cluster_") == len(json.loads(data)["segments"])
    onnx.checker.check_model(onnx.load(graph))
    assert run_cli("build", small_model)[0] == 0
    bundle = small_model.with_suffix(".bundle")
    assert (bundle / "report.html").is_file()
    assert run_cli("inspect", bundle, "--html", page)[0] == 0
    assert run_cli("inspect", bundle, "--dot", dot)[0] == 2
    assert run_cli("inspect", bundle, "--tpus", "2")[0] == 2
    assert run_cli("inspect", small_model, "--html", tmp_path / "no" / "p.html")[0] == 2
