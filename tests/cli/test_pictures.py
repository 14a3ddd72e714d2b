"""The command `run` on pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compiler.cli import common
from compiler.cli.pictures import pictures_at
from compiler.runtime import Bundle, Runner
from compiler.runtime.drawing import FORMATS
from tests import eyes
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    eyes.street().save(path)
    return path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames of a video, and what is none."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, colour in ((2, "blue"), (10, "lime"), (1, "red")):
        Image.new("RGB", (64, 64), colour).save(folder / f"frame{number}.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_boxes_of_a_picture(detector_bundle: Path, street: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("run", detector_bundle, street)
    assert code == 0
    title, red, green = out.splitlines()
    assert title == f"{street}: 128 x 64 pixels, 2 objects"
    assert red.endswith("red  from (32, 0) to (64, 32)") and red.split()[0] == "0.95"
    assert green.endswith("green  from (96, 32) to (128, 64)")


def test_classes_of_a_picture(classifier_bundle: Path, street: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("run", classifier_bundle, street)
    assert code == 0
    assert out.splitlines()[0] == f"{street}: 128 x 64 pixels"
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["red", "green", "2"]


def test_one_json_object_for_each_frame_in_order(
    detector_bundle: Path, frames: Path, run_cli: Cli
) -> None:
    code, out, _ = run_cli("run", detector_bundle, frames, "--json")
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [Path(one["file"]).name for one in found] == ["frame1.jpg", "frame2.jpg", "frame10.jpg"]
    labels = [{each["label"] for each in one["predictions"]} for one in found]
    assert labels == [{"red"}, {"blue"}, {"green"}]
    assert all((one["width"], one["height"], one["task"]) == (64, 64, "detect") for one in found)


def test_a_box_is_drawn_where_it_is(detector_bundle: Path, street: Path, run_cli: Cli) -> None:
    """Nothing else changes but the frame and the ground of the label."""
    drawn = street.with_name("drawn.png")
    code, out, _ = run_cli("run", detector_bundle, street, "--save", drawn, "--min-score", 0.9)
    assert code == 0 and f"Wrote {drawn}." in out
    before = np.asarray(eyes.street()).astype(int)
    after = np.asarray(Image.open(drawn)).astype(int)
    changed = np.abs(after - before).max(axis=2) > 0
    # The frame is two pixels wide; the label has no room above it, so it lies inside.
    assert changed[:33, 32:34].all() and changed[31, 32:65].all()
    assert not changed[34:].any() and not changed[:, :32].any()


def test_classes_are_written_into_the_corner(
    classifier_bundle: Path, street: Path, run_cli: Cli
) -> None:
    drawn = street.with_name("drawn.jpeg")
    assert run_cli("run", classifier_bundle, street, "--save", drawn)[0] == 0
    with Image.open(drawn) as image:
        assert image.format == "JPEG" and image.size == (128, 64)
        assert np.asarray(image)[:10, :10].max() > 100  # black before


def test_a_folder_is_drawn_into_a_folder(
    detector_bundle: Path, frames: Path, tmp_path: Path, run_cli: Cli
) -> None:
    place = tmp_path / "new" / "drawn"
    code, out, _ = run_cli("run", detector_bundle, frames, "--save", place, "--json")
    assert code == 0 and len(out.splitlines()) == 3  # JSON alone
    names = sorted(path.name for path in place.iterdir())
    assert names == ["frame1.jpg", "frame10.jpg", "frame2.jpg"]


def test_outputs_are_written_beside(
    detector_bundle: Path, frames: Path, tmp_path: Path, run_cli: Cli
) -> None:
    code, _, _ = run_cli("run", detector_bundle, frames, "--output", tmp_path / "y.npz")
    assert code == 0
    found = np.load(tmp_path / "y.npz")["y"]
    with Runner(Bundle.open(detector_bundle)) as runner:
        for array, file in zip(found, pictures_at(frames), strict=True):
            wanted = runner.run(runner.vision.inputs(runner.vision.prepare(file)))
            np.testing.assert_array_equal(array, wanted["y"][0])


def test_progress_and_lines_share_a_terminal_only_where_both_are_one(
    detector_bundle: Path, frames: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error is a terminal here, standard output is not: nothing of it may be lost."""
    monkeypatch.setattr(common.err, "_force_terminal", True)
    monkeypatch.setattr(type(common.err), "is_interactive", True, raising=False)
    common.err.is_interactive = True
    try:
        code, out, err = run_cli("run", detector_bundle, frames, "--json")
    finally:
        common.err.is_interactive = False
    assert code == 0 and len(out.splitlines()) == 3 and "running" in err


def without_meaning(bundle: Path, folder: Path) -> Path:
    copy = folder / "copy.bundle"
    shutil.copytree(bundle, copy)
    eyes.add_vision(copy, {"picture": eyes.PICTURE, "task": None})
    return copy


def test_outputs_of_unknown_meaning(
    classifier_bundle: Path, street: Path, tmp_path: Path, run_cli: Cli
) -> None:
    bundle = without_meaning(classifier_bundle, tmp_path)
    code, out, err = run_cli("run", bundle, street)
    assert code == 0 and "does not say what its outputs mean" in err
    title, values = out.splitlines()
    assert title.endswith("128 x 64 pixels")
    assert values.startswith("  y [1, 3] float32: ") and "at [0, 0], " in values
    code, out, _ = run_cli("run", bundle, street, "--json")
    assert code == 0 and json.loads(out)["outputs"] == {"y": [1, 3]}
    code, _, err = run_cli("run", bundle, street, "--save", tmp_path / "z.png")
    assert code == 2 and "--save nothing can be drawn" in err


REFUSED: list[tuple[list[str], str]] = [
    ([], "give a picture, or arrays with --input and --output"),
    (["nowhere.png"], "nowhere.png: no such file or folder"),
    (["empty"], "empty: holds no pictures (.bmp, .jpeg, .jpg, .png, .webp)"),
    (["x.npz"], "x.npz: holds arrays: give it with --input"),
    (["torn.png"], "torn.png: not an image that can be read"),
    (["mixed"], "torn.png: not an image that can be read"),
    (["street.png", "--save", "drawn.gif"], "drawn.gif: name a file that ends in one of .png"),
    (["street.png", "--save", "street.png"], "street.png: is what this command reads"),
    (["mixed", "--save", "mixed"], "mixed: is what this command reads"),
    (["mixed", "--save", "x.npz"], "x.npz: is a file: name a folder"),
    (["street.png", "--input", "x.npz", "--output", "y.npz"], "--input takes arrays"),
    (["--input", "x.npz", "--output", "y.npz", "--json"], "--input takes arrays"),
    (["--input", "x.npz"], "--input needs --output FILE.npz"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    detector_bundle: Path,
    street: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = street.parent
    monkeypatch.chdir(folder)
    np.savez(folder / "x.npz", x=np.zeros((1, 3, 32, 32), np.float32))
    for name in ("empty", "mixed"):
        (folder / name).mkdir()
    (folder / "torn.png").write_bytes(street.read_bytes()[:80])
    shutil.copy(folder / "torn.png", folder / "mixed" / "torn.png")
    before = street.read_bytes()
    code, _, err = run_cli("run", detector_bundle, *arguments)
    assert code == 2 and message in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert street.read_bytes() == before and not (folder / "drawn.gif").exists()


def test_a_bundle_that_takes_no_pictures(small_bundle: Path, street: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("run", small_bundle, street)
    assert code == 2 and "does not say how pictures become its input" in err


def test_formats_to_draw_are_those_that_are_read() -> None:
    from compiler.runtime.pictures import SUFFIXES

    assert set(FORMATS) == SUFFIXES


def test_labels_of_strangers_do_not_command_the_terminal(
    classifier_bundle: Path, street: Path, tmp_path: Path, run_cli: Cli
) -> None:
    bundle = tmp_path / "copy.bundle"
    shutil.copytree(classifier_bundle, bundle)
    vision: dict[str, Any] = {**eyes.CLASSIFY, "labels": ["[red]\x1b[2J", "b", "c"]}
    eyes.add_vision(bundle, vision)
    code, out, _ = run_cli("run", bundle, street, "--save", tmp_path / "z.png")
    assert code == 0 and "\x1b" not in out and "[red]" in out


def test_tflite_says_nothing_of_itself(detector_bundle: Path, street: Path) -> None:
    """In a process of its own, as the line comes once in each."""
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "run", detector_bundle, street, "--devices", "cpu"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "red" in done.stdout and "XNNPACK" not in done.stderr


def test_a_broken_picture_of_a_folder_is_left_out_and_told(
    detector_bundle: Path, frames: Path, run_cli: Cli, tmp_path: Path
) -> None:
    whole = (frames / "frame2.jpg").read_bytes()
    (frames / "frame2.jpg").write_bytes(whole[: len(whole) // 2])
    code, out, err = run_cli("run", detector_bundle, frames, "--json", "--save", tmp_path / "drawn")
    assert code == 2
    seen = [Path(json.loads(line)["file"]).name for line in out.splitlines()]
    assert seen == ["frame1.jpg", "frame10.jpg"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == sorted(seen)
    assert "left out: " in err and "1 of 3 pictures cannot be read, 'frame2.jpg' first" in err
