"""Segments that several devices hold: requests take turns, results keep their order, and a lost
device costs nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.runtime import (
    Bundle,
    DeviceError,
    Pipeline,
    Runner,
    RuntimeBundleError,
    Simulated,
)
from tests.runtime.test_runner import inputs, same


def with_replicas(source: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle with other replicas."""
    shutil.copytree(source, path)
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    for segment in manifest["segments"]:
        if segment["tpu"] is not None:
            change(segment)
    file.write_text(json.dumps(manifest))
    return path


def twice(segment: dict[str, Any]) -> None:
    """The pipeline on two Edge TPUs a second time, on two others."""
    segment["replicas"] = [segment["tpu"] + 2]


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(with_replicas(small_bundle, tmp_path / "replicas.bundle", twice))


@pytest.fixture
def expected(small_bundle: Path) -> list[np.ndarray]:
    pipeline = Pipeline(Bundle.open(small_bundle))
    return [pipeline.run(sample)["y"] for sample in inputs(20)]


def counting(runs: Counter[int], number: int) -> Simulated:
    def note() -> None:
        runs[number] += 1

    return Simulated(f"sim:{number}", 0.0, note)


def test_requests_take_turns(bundle: Bundle, expected: list[np.ndarray]) -> None:
    runs: Counter[int] = Counter()
    planned = [segment["tpu"] for segment in bundle.manifest["segments"]]
    with Runner(bundle, [counting(runs, number) for number in range(4)]) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        for number in range(4):
            assert runs[number] == 10 * planned.count(number % 2)
        runs.clear()
        assert same([runner.run(sample) for sample in inputs(20)], expected)
        assert all(runs[number] == 10 * planned.count(number % 2) for number in range(4))


def test_replicas_work_side_by_side(bundle: Bundle, expected: list[np.ndarray]) -> None:
    """Each run on the first Edge TPU waits until the third one runs as well."""
    both = threading.Barrier(2, timeout=30)
    tpus = [Simulated(f"sim:{n}", 0.0, (lambda: None) if n % 2 else both.wait) for n in range(4)]
    with Runner(bundle, tpus) as runner:
        assert same(list(runner.stream(inputs(20))), expected)


@pytest.mark.parametrize("on_loss", ["move", "cpu"])
@pytest.mark.parametrize("lost", range(4))
def test_nothing_is_lost_with_a_device(
    bundle: Bundle, expected: list[np.ndarray], lost: int, on_loss: str
) -> None:
    runs: Counter[int] = Counter()

    def breaks() -> None:
        runs[lost] += 1
        if runs[lost] > 3:
            raise DeviceError("unplugged")

    tpus = [counting(runs, number) for number in range(4)]
    tpus[lost] = Simulated(f"sim:{lost}", 0.0, breaks)
    with Runner(bundle, tpus, on_loss=on_loss) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        assert any(f"sim:{lost} is lost" in notice for notice in runner.notices)


@pytest.mark.parametrize(("there", "notices"), [(1, 1), (2, 1), (3, 1), (4, 0), (5, 0)])
def test_fewer_devices_than_planned(
    bundle: Bundle, expected: list[np.ndarray], there: int, notices: int
) -> None:
    with Runner(bundle, [Simulated(f"sim:{n}", 0.0) for n in range(there)]) as runner:
        assert same(list(runner.stream(inputs(20))), expected)
        assert len(runner.notices) == notices
        assert all("planned for 4 Edge TPUs" in notice for notice in runner.notices)


def test_without_devices_the_cpu_runs_all(bundle: Bundle, expected: list[np.ndarray]) -> None:
    with Runner(bundle, "cpu") as runner:
        assert same(list(runner.stream(inputs(20))), expected)


@pytest.mark.parametrize("replicas", [[0], [2, 2], [-1], [], ["1"]])
def test_replicas_that_are_none_are_refused(
    small_bundle: Path, tmp_path: Path, replicas: list[Any]
) -> None:
    def change(segment: dict[str, Any]) -> None:
        segment["tpu"] = 0
        segment["replicas"] = replicas

    path = with_replicas(small_bundle, tmp_path / "bad.bundle", change)
    with pytest.raises(RuntimeBundleError):
        Bundle.open(path)


def test_the_host_has_no_replicas(small_bundle: Path, tmp_path: Path) -> None:
    path = with_replicas(small_bundle, tmp_path / "bad.bundle", lambda segment: None)
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["segments"][0]["replicas"] = [1]
    assert manifest["segments"][0]["tpu"] is None
    file.write_text(json.dumps(manifest))
    with pytest.raises(RuntimeBundleError, match="replicas"):
        Bundle.open(path)
