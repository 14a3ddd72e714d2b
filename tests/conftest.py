"""Shared fixtures: a small model with every kind of segment, and the command line in process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler import cli
from compiler.driver import build as building
from compiler.driver import language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle
from tests import eyes, streaming


def save(path: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, path)
    return path


def small_network(batch: object = 1) -> onnx.ModelProto:
    """Conv, LRN (host), Conv, global pooling, Gemm, Softmax (host); named inputs and dimensions."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "b1": rng.standard_normal(8).astype(np.float32) / 5,
        "w2": rng.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8,
        "w3": rng.standard_normal((10, 16)).astype(np.float32) / 3,
        "b3": np.zeros(10, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        helper.make_node("LRN", ["c1"], ["l1"], name="normalise", size=3),
        helper.make_node("Conv", ["l1", "w2"], ["c2"], name="second", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="dense", transB=1),
        helper.make_node("Softmax", ["g"], ["y"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (batch, 3, 16, 16))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (batch, 10))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    return save(tmp_path / "small.onnx", small_network())


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network for two Edge TPUs: host, TPU, host, TPU, host. Copy it to change it."""
    folder = tmp_path_factory.mktemp("small")
    model = save(folder / "small.onnx", small_network())
    building.build(
        model,
        folder / "small.bundle",
        BuildOptions(partitioning=PartitionOptions(tpus=2, place="tpu")),
    )
    return folder / "small.bundle"


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A voice detector with state, calibrated on eight recordings; its file is beside it."""
    folder = tmp_path_factory.mktemp("detector")
    samples = streaming.recordings(folder / "samples", "frame", (1, 16))
    model = streaming.gru(folder / "detector.onnx")
    building.build(model, folder / "detector.bundle", BuildOptions(calibration=samples))
    return Bundle.open(folder / "detector.bundle")


@pytest.fixture(scope="session")
def edgetpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libedgetpu, built with the C compiler."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("library") / "libedgetpu.so.1"
    source = Path(__file__).parent / "standins" / "libedgetpu.c"
    subprocess.run([gcc, "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def edgetpu_compiler(tmp_path: Path) -> Path:
    """The stand-in for edgetpu_compiler, as a program."""
    path = tmp_path / "edgetpu_compiler"
    source = Path(__file__).parent / "standins" / "edgetpu_compiler.py"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {source} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def compiled_segment(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file as the stand-in for edgetpu_compiler writes it."""
    out = tmp_path_factory.mktemp("compiled")
    source = Path(__file__).parent / "standins" / "edgetpu_compiler.py"
    segment = small_bundle / "segments" / "01.tflite"
    subprocess.run(
        [sys.executable, source, "--out_dir", out, segment], check=True, capture_output=True
    )
    return (out / "01_edgetpu.tflite").read_bytes()


LANGUAGE = LanguageOptions(context=200, chunk=32, slots=3)


@pytest.fixture(scope="session")
def language_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small language model of the fixtures, all of it on the host. Copy it to change it."""
    path = tmp_path_factory.mktemp("language") / "language.bundle"
    source = Path(__file__).parent.parent / "fixtures" / "language.gguf"
    language.build(
        source, path, BuildOptions(partitioning=PartitionOptions(place="host"), language=LANGUAGE)
    )
    return path


# Fixtures that build a language model, which takes longer than most tests.
SLOW_FIXTURES = {"language_bundle", "tpu"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped because public data are not beside the repository."""
    skipped = terminalreporter.getreports("skipped")
    count = sum("../shared" in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests skipped: they need ../shared")


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process; gives (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["compiler", *map(str, arguments)])
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def detector_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of colours (tests/eyes.py). Copy it to change it."""
    return eyes.build(tmp_path_factory.mktemp("detector"), eyes.detector(), eyes.DETECT)


@pytest.fixture(scope="session")
def classifier_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of colours (tests/eyes.py). Copy it to change it."""
    return eyes.build(tmp_path_factory.mktemp("classifier"), eyes.classifier(), eyes.CLASSIFY)
