"""Segments that are loaded late: as they are run, or after a device was lost, while another bundle
may have taken the place of the one that was opened."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from compiler.emit import bundle as writing
from compiler.runtime import Bundle, DeviceError, Pipeline, Runner, RuntimeBundleError, Simulated
from compiler.runtime.lazy import LazySegments
from tests.conftest import Cli

SAMPLE = {"x": np.random.default_rng(7).standard_normal((1, 3, 16, 16)).astype(np.float32)}
REPLACED = "was replaced or removed since it was opened: open it again"


@pytest.fixture
def path(small_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "place" / "b"
    shutil.copytree(small_bundle, copy)
    return copy


def replace(path: Path, source: Path) -> None:
    """Put a copy of another bundle at `path`, as `build --force` does."""
    with writing.folder(path, True) as made:
        shutil.copytree(source, made, dirs_exist_ok=True)


def test_segments_that_are_loaded_as_they_run_compute_the_same(path: Path) -> None:
    bundle = Bundle.open(path)
    want = Pipeline(bundle).run(SAMPLE)["y"]
    lazy = Pipeline(bundle, limit=1)
    for _ in range(2):
        assert np.array_equal(lazy.run(SAMPLE)["y"], want)


@pytest.mark.parametrize("times", [1, 2])
def test_segments_of_another_bundle_are_not_run(path: Path, small_bundle: Path, times: int) -> None:
    """Nor when the second replacement has the inode number of the first folder."""
    lazy = Pipeline(Bundle.open(path), limit=1)
    lazy.run(SAMPLE)
    for _ in range(times):
        replace(path, small_bundle)
    with pytest.raises(RuntimeBundleError, match=f"{path}: {REPLACED}") as caught:
        for _ in range(2):  # the first segments may be open already
            lazy.run(SAMPLE)
    assert "\n" not in str(caught.value)
    Pipeline(Bundle.open(path), limit=1).run(SAMPLE)


def test_a_bundle_that_is_gone_is_said_to_be_gone(path: Path) -> None:
    lazy = Pipeline(Bundle.open(path), limit=1)
    shutil.rmtree(path)
    with pytest.raises(RuntimeBundleError, match=REPLACED):
        for _ in range(2):
            lazy.run(SAMPLE)


def test_what_is_loaded_runs_on(path: Path, small_bundle: Path) -> None:
    with Runner(Bundle.open(path), "sim:2") as runner:
        want = runner.run(SAMPLE)["y"]
        replace(path, small_bundle)
        assert np.array_equal(runner.run(SAMPLE)["y"], want)


def test_a_bundle_that_is_replaced_before_it_is_loaded(path: Path, small_bundle: Path) -> None:
    bundle = Bundle.open(path)
    replace(path, small_bundle)
    with pytest.raises(RuntimeBundleError, match=REPLACED):
        Runner(bundle, "cpu")


def test_a_lost_devices_segments_are_not_those_of_another_bundle(
    path: Path, small_bundle: Path
) -> None:
    lost = False

    def broken() -> None:
        if lost:
            raise DeviceError("sim:0: USB transfer error 5")

    with Runner(Bundle.open(path), [Simulated("sim:0", 0, broken)]) as runner:
        runner.run(SAMPLE)
        replace(path, small_bundle)
        lost = True
        with pytest.raises(RuntimeBundleError, match=REPLACED):
            runner.run(SAMPLE)


def test_a_segment_that_cannot_be_loaded_is_named_in_one_line(path: Path) -> None:
    """onnxruntime's errors are of classes of its own."""
    (path / "segments" / "00.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeBundleError, match=r"00\.onnx: cannot be loaded: ") as caught:
        Pipeline(Bundle.open(path, check=False))
    assert "\n" not in str(caught.value)


def test_the_command_names_a_bundle_that_was_replaced(
    path: Path,
    small_bundle: Path,
    tmp_path: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "x.npy", SAMPLE["x"])
    opened = Bundle.open

    def late(at: Path, check: bool = True) -> Bundle:
        bundle = opened(at, check)
        replace(path, small_bundle)
        return bundle

    monkeypatch.setattr(Bundle, "open", late)
    code, _, err = run_cli("run", path, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    assert code == 2 and "E-BUNDLE" in err and "since it was opened" in " ".join(err.split())


class Weights:
    """Stands for a segment that is loaded."""

    def __init__(self, index: int) -> None:
        self.index = index

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array + self.index for array in arrays]


class Disk:
    """Opens such segments and knows which of them are open."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.open: weakref.WeakSet[Weights] = weakref.WeakSet()

    def load(self, index: int) -> Weights:
        self.opened.append(index)
        weights = Weights(index)
        self.open.add(weights)
        return weights


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(20, 0), (29, 0), (30, 1), (40, 2)],  # two of the largest, 10 bytes each, must fit besides
)
def test_the_first_segments_stay_and_two_others_are_open_at_most(limit: int, kept: int) -> None:
    disk = Disk()
    segments = LazySegments(disk.load, [10] * 5, limit)
    for _ in range(3):
        for index in range(5):
            (result,) = segments.run(index, [np.zeros(1)])
            assert result == index
            gc.collect()
            assert len(disk.open) <= kept + 2
    assert all(disk.opened.count(index) == 1 for index in range(kept))
    assert all(disk.opened.count(index) >= 3 for index in range(kept, 5))


def test_a_segment_that_failed_to_open_is_tried_again() -> None:
    disk = Disk()
    damaged = {2}

    def load(index: int) -> Weights:
        if index in damaged:
            raise RuntimeBundleError("not now")
        return disk.load(index)

    segments = LazySegments(load, [10] * 3, 20)
    segments.run(0, [np.zeros(1)])
    segments.run(1, [np.zeros(1)])
    with pytest.raises(RuntimeBundleError, match="not now"):
        segments.run(2, [np.zeros(1)])
    damaged.clear()
    assert segments.run(2, [np.zeros(1)])[0] == 2
