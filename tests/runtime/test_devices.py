"""Edge TPUs behind libedgetpu's interface, which a library of ours stands in for: found, opened,
run, lost, closed."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, DeviceError, EdgeTpu, Pipeline, Runner, devices, fleet
from tests.conftest import Cli

SAMPLE = {"x": np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)}


@pytest.fixture
def library(edgetpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(devices, "library_name", lambda: str(edgetpu_library))
    monkeypatch.setenv("STANDIN_DEVICES", "usb,pci,usb")
    monkeypatch.delenv("STANDIN_LOST", raising=False)
    loaded = ctypes.CDLL(str(edgetpu_library))
    loaded.standin_options.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def compiled(small_bundle: Path, edgetpu_compiler: Path, tmp_path: Path, run_cli: Cli) -> Path:
    path = tmp_path / "compiled.bundle"
    shutil.copytree(small_bundle, path)
    assert run_cli("compile", path, "--edgetpu-compiler", edgetpu_compiler)[0] == 0
    return path


def test_devices_are_found_and_named(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [d.name for d in devices.edge_tpus()] == ["pci:0", "usb:0", "usb:1"]
    assert [d.name for d in fleet.parse("usb:1,pci:0")] == ["usb:1", "pci:0"]
    monkeypatch.setenv("STANDIN_DEVICES", "")
    assert fleet.parse("auto") == []
    with pytest.raises(
        devices.DeviceChoiceError, match="'usb:0' is not there; libedgetpu finds none"
    ):
        fleet.parse("usb:0")


def test_without_the_library_there_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "library_name", lambda: "libnowhere.so.1")
    assert fleet.parse("auto") == []
    with pytest.raises(devices.DeviceChoiceError, match="libnowhere"):
        fleet.parse("usb:0")


def test_segments_run_on_the_delegate(library: ctypes.CDLL, compiled: Path) -> None:
    with Runner(Bundle.open(compiled), "auto") as runner:
        assert runner.notices == []
        assert [runner.pipeline.device(i).name for i in range(5)] == [
            "cpu",
            "pci:0",
            "cpu",
            "usb:0",
            "cpu",
        ]
        assert library.standin_live() == 2
        values = runner.pipeline.check_inputs(SAMPLE)
        runner.pipeline.advance(0, values)
        (tensor,) = runner.pipeline.segments[1]["inputs"]
        taken = values[tensor["name"]]
        results = runner.pipeline.run_segment(1, {tensor["name"]: taken})
        ((name, array),) = results.items()
        assert name == runner.pipeline.segments[1]["outputs"][0]["name"]
        assert taken.dtype == np.int8
        assert np.array_equal(
            array.reshape(-1), np.resize(taken.reshape(-1), array.size) + np.int8(1)
        )
        assert runner.run(SAMPLE)["y"].shape == (1, 10)
        assert all(r["y"].shape == (1, 10) for r in runner.stream([SAMPLE] * 5))
    del runner
    gc.collect()
    assert library.standin_live() == 0


def test_options_reach_the_delegate(library: ctypes.CDLL, compiled: Path) -> None:
    tpu = EdgeTpu("usb:1", options={"Performance": "High"})
    with Runner(Bundle.open(compiled), [tpu]) as runner:
        assert library.standin_options() == b"device=usb:1;Performance=High;"
        assert "planned for 2 Edge TPUs, 1 there" in runner.notices[0]


def test_what_the_library_says_is_told(library: ctypes.CDLL, compiled: Path) -> None:
    bundle = Bundle.open(compiled)
    segment = bundle.manifest["segments"][1]
    with pytest.raises(
        DeviceError,
        match=r"usb:7: cannot be opened for 01.*_edgetpu.tflite: .*Failed to open usb:7",
    ):
        EdgeTpu("usb:7").open(bundle.path, segment)
    assert library.standin_live() == 0


def test_an_unplugged_device_is_replaced(
    library: ctypes.CDLL, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runner(Bundle.open(compiled), "pci:0,usb:0") as runner:
        want = runner.run(SAMPLE)["y"]
        stream = runner.stream(SAMPLE for _ in range(12))
        got = [next(stream)["y"] for _ in range(4)]
        monkeypatch.setenv("STANDIN_DEVICES", "usb")
        got += [result["y"] for result in stream]
        assert len(got) == 12 and all(np.array_equal(y, want) for y in got)
        assert "pci:0 is lost, usb:0 take over" in runner.notices[-1]
        assert runner.pipeline.device(1).name == "usb:0"


def test_when_none_is_left_the_cpu_runs_the_plain_segments(
    library: ctypes.CDLL, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(compiled)
    with Runner(bundle, "usb:0") as runner:
        runner.run(SAMPLE)
        monkeypatch.setenv("STANDIN_LOST", "usb:0")
        assert np.array_equal(runner.run(SAMPLE)["y"], Pipeline(bundle).run(SAMPLE)["y"])
        assert "usb:0: " in runner.notices[-1] and "USB transfer error 5" in runner.notices[-1]
        gc.collect()
        assert library.standin_live() == 0
    gc.collect()
    assert library.standin_live() == 0


def test_uncompiled_segments_stay_on_the_cpu(library: ctypes.CDLL, small_bundle: Path) -> None:
    with Runner(Bundle.open(small_bundle), "auto") as runner:
        assert {runner.pipeline.device(i).name for i in range(5)} == {"cpu"}
        assert runner.notices == [
            "2 segments are not compiled and run on the CPU: `compile` the bundle"
        ]


def test_run_and_bench_commands(
    library: ctypes.CDLL, compiled: Path, tmp_path: Path, run_cli: Cli
) -> None:
    np.savez(tmp_path / "x.npz", x=np.concatenate([SAMPLE["x"]] * 6))
    code, out, err = run_cli(
        "run", compiled, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--devices", "usb:1"
    )
    assert code == 0 and "planned for 2 Edge TPUs" in err.replace("\n", " ")
    assert np.load(tmp_path / "y.npz")["y"].shape == (6, 10)
    code, out, _ = run_cli("bench", compiled, "--runs", 5, "--json")
    figures = json.loads(out)
    assert code == 0 and [s["device"] for s in figures["segments"]] == [
        "cpu",
        "pci:0",
        "cpu",
        "usb:0",
        "cpu",
    ]
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
    assert sum(s["ms"] for s in figures["segments"]) < 3 * figures["latency_ms"]["p90"]
    code, out, _ = run_cli("bench", compiled, "--runs", 5, "--devices", "cpu")
    assert code == 0 and "results/s" in out and "predicted" in out
    assert (
        run_cli(
            "run", compiled, "-i", tmp_path / "x.npz", "-o", tmp_path / "z", "--devices", "usb:9"
        )[0]
        == 2
    )
    code, _, err = run_cli(
        "run", compiled, "-i", tmp_path / "x.npz", "-o", tmp_path / "z", "--on-loss", "pray"
    )
    assert code == 2 and "move, cpu, stop" in err
