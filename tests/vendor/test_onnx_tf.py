"""The second lowering: its driver against a stand-in, and the real onnx-tf if it is installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, Pipeline
from compiler.vendor import onnx_tf
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]
REAL = os.environ.get(onnx_tf.VARIABLE) or (
    str(onnx_tf.home() / "bin" / "python") if onnx_tf.home().is_dir() else None
)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "c.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((16, 3, 16, 16)).astype(np.float32))
    return path


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that takes the place of the sidecar's Python."""
    path = tmp_path / "python"
    script = ROOT / "tests" / "standins" / "onnx_tf.py"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {script} "$2"\n')
    path.chmod(0o755)
    monkeypatch.setenv(onnx_tf.VARIABLE, str(path))
    return path


def sqnr(bundle: Path) -> float:
    quality = json.loads((bundle / "manifest.json").read_text())["quality"]
    return float(quality["outputs"]["y"]["plain_sqnr_db"])


@pytest.mark.slow
def test_segments_of_other_scales_fit_together(
    sidecar: Path, small_model: Path, samples: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """The stand-in calibrates on samples that are larger, so that no border has the scale of its
    neighbour."""
    options = ("--calibration", samples, "--cut", "second")
    plain = ("--without", "correct_biases")  # which the stand-in does not do
    assert run_cli("build", small_model, "-o", tmp_path / "a", *options, *plain)[0] == 0
    code, _, err = run_cli(
        "build", small_model, "-o", tmp_path / "b", *options, "--lowering", "onnx-tf"
    )
    assert code == 0, err
    direct, other = (Bundle.open(tmp_path / name).manifest["segments"] for name in ("a", "b"))
    assert {s["lowering"] for s in other if s["device"] == "tpu"} == {"onnx-tf"}
    assert {s["lowering"] for s in direct} == {"direct"}
    made = {t["name"]: t["scale"] for s in other for t in s["outputs"] if "scale" in t}
    read = [
        (t["name"], t["scale"])
        for s in other
        for t in s["inputs"]
        if "scale" in t and t["name"] in made
    ]
    assert any(scale != made[name] for name, scale in read)
    assert sqnr(tmp_path / "b") > sqnr(tmp_path / "a") - 6 > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("fail", "is not implemented"),
        ("float", "not all of what it made is int8"),
        ("hang", "no end"),
    ],
)
def test_what_it_fails_on_is_said_and_may_be_written_directly(
    sidecar: Path,
    small_model: Path,
    samples: Path,
    tmp_path: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    why: str,
) -> None:
    monkeypatch.setenv("STANDIN_ONNX_TF", trouble)
    monkeypatch.setattr(onnx_tf, "TIMEOUT", 3 if trouble == "hang" else 60)
    command = ("build", small_model, "-o", tmp_path / "b", "--calibration", samples)
    command = (*command, "--place", "tpu", "--lowering")
    code, _, err = run_cli(*command, "onnx-tf")
    assert (
        code == 2
        and "2 of 2 segments, first on 1" in err
        and why in err
        and not (tmp_path / "b").exists()
    )
    code, _, _ = run_cli(*command, "onnx-tf,direct")
    assert code == 0
    assert {s["lowering"] for s in Bundle.open(tmp_path / "b").manifest["segments"]} == {"direct"}


def test_what_is_not_installed_is_said(
    small_model: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(onnx_tf.VARIABLE, "/nowhere/python")
    code, _, err = run_cli("build", small_model, "--lowering", "onnx-tf")
    assert code == 2 and "toolchain install onnx-tf" in err
    code, _, err = run_cli("build", small_model, "--lowering", "tf")
    assert code == 2 and "onnx-tf,direct" in err


def test_install_refuses_other_pythons(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3 13\n")
    other.chmod(0o755)
    code, _, err = run_cli("toolchain", "install", "onnx-tf", "--python", other)
    assert code == 2 and "needs Python 3.11" in err
    code, _, err = run_cli("toolchain", "install", "tensorflow")
    assert code == 2 and "toolchain install onnx-tf" in err


@pytest.mark.skipif(REAL is None, reason="onnx-tf is not installed: `toolchain install onnx-tf`")
def test_the_real_one(small_model: Path, samples: Path, tmp_path: Path, run_cli: Cli) -> None:
    command = (
        "build",
        small_model,
        "-o",
        tmp_path / "b",
        "--calibration",
        samples,
        "--lowering",
        "onnx-tf",
    )
    assert run_cli(*command)[0] == 0
    assert sqnr(tmp_path / "b") > 30
    x = {"x": np.load(samples)["x"][:1]}
    assert Pipeline(Bundle.open(tmp_path / "b")).run(x)["y"].shape == (1, 10)


def test_the_lock_file_pins_everything_with_hashes() -> None:
    lines = (onnx_tf.SIDECARS / "onnx-tf.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in line and "--hash=sha256:" in line for line in pins)
    assert {"onnx-tf", "onnx", "tensorflow-cpu"} <= {line.split("==")[0] for line in pins}
