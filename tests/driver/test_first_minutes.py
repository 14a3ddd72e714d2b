"""What newcomers meet: wrong labels, means of pixels, and commands that follow a build."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli

EXPORTS = Path(__file__).parents[2] / "fixtures/exports/ultralytics"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        coarse.resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def test_names_have_to_be_as_many_as_classes(photos: Path, tmp_path: Path, run_cli: Cli) -> None:
    names = tmp_path / "names.txt"
    names.write_text("person\n")
    output = tmp_path / "b"
    arguments = ("--calibration", photos, "--labels", names, "-o", output)
    code, _, err = run_cli("build", EXPORTS / "yolov8.onnx", *arguments)
    assert code == 2
    assert f"--labels {names}: 1 names for 5 classes" in err
    assert not output.exists()


def test_a_mean_of_pixels_is_told(photos: Path, tmp_path: Path, run_cli: Cli) -> None:
    arguments = ("--calibration", photos, "--mean", "127.5", "-o", tmp_path / "b")
    code, _, err = run_cli("build", EXPORTS / "yolov8.onnx", *arguments)
    assert code == 2
    assert "--mean 127.5: images are taken as values from 0 to 1: give 0.5" in err


@pytest.mark.parametrize("name", ["yolov8", "yolo11"])
def test_exports_that_are_named_behind_a_build_work(
    name: str, photos: Path, tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """yolo11's attention is computed by the host, so that no file holds all of it."""
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "a b.bundle"
    arguments = ("--calibration", photos, "-o", output, "--place", "tpu")
    code, out, _ = run_cli("build", EXPORTS / f"{name}.onnx", *arguments)
    assert code == 0
    commands = re.findall(r"^  coral-bundle (.*?)(?:  .*)?$", out, re.MULTILINE)
    exports = [command for command in commands if command.startswith("export")]
    assert bool(exports) == (name == "yolov8")
    assert any("--zmq" in command for command in commands) != bool(exports)
    for command in exports:
        code, _, err = run_cli(*shlex.split(command))
        assert code == 0, err
    if not exports:
        code, _, err = run_cli("export", output, "--for", "frigate", "-o", tmp_path / "out")
        assert code == 2 and "serve --zmq" in err


def test_float_that_is_not_kept_changes_nothing(photos: Path, tmp_path: Path, run_cli: Cli) -> None:
    """A single segment has more than a tenth of the arithmetic: it is whole or not kept."""
    segments = []
    for number, more in enumerate([(), ("--keep-float", "10")]):
        output = tmp_path / f"{number}.bundle"
        arguments = ("--calibration", photos, "-o", output, *more)
        code, _, err = run_cli("build", EXPORTS / "yolov8.onnx", *arguments)
        assert code == 0
        assert ("nothing is kept" in err) == bool(more)
        manifest = json.loads((output / "manifest.json").read_text())
        segments.append([segment["files"][0]["sha256"] for segment in manifest["segments"]])
    assert segments[0] == segments[1]
