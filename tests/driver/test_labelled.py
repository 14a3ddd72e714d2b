"""Labelled pictures of colours, for networks whose answers can be told by eye; and tasks that the
metadata of Ultralytics tell, on random samples, where values do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.runtime.detections import cells
from compiler.runtime.manifest import Manifest
from tests.conftest import Cli, save

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "fixtures" / "exports" / "ultralytics"
SIDE = 32
STRIDES = (8, 16, 32)
NAMES = ["red", "green", "blue"]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
DETECTOR = """<ir_version: 8, opset_import: ["" : 17]>
detector (float[1,3,32,32] x) => (float[1,7,21] y) {
    c = Conv (x, same)
    p8 = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (c)
    p16 = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (c)
    p32 = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (c)
    s8 = Reshape (p8, flat)  s16 = Reshape (p16, flat)  s32 = Reshape (p32, flat)
    scores = Concat <axis = 2> (s8, s16, s32)
    y = Concat <axis = 1> (boxes, scores)
}"""
CLASSIFIER = """<ir_version: 8, opset_import: ["" : 17]>
classifier (float[1,3,32,32] x) => (float[1,3] y) {
    c = Conv (x, same)  p = GlobalAveragePool (c)  f = Flatten (p)  t = Mul (f, ten)
    y = Softmax <axis = 1> (t)
}"""


def network(task: str) -> onnx.ModelProto:
    """As Ultralytics exports them: boxes of all cells, whose scores are the mean of each colour in
    the cell; or the softmax of the colours in the picture."""
    model = onnx.parser.parse_model(DETECTOR if task == "detect" else CLASSIFIER)
    weights: dict[str, Any] = {"same": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}
    if task == "detect":
        middles, widths = cells((SIDE, SIDE), STRIDES, 0.5)
        boxes = np.concatenate([middles, widths, widths], axis=1).T[None]
        weights |= {"boxes": boxes.astype(np.float32), "flat": np.array([1, 3, -1])}
    else:
        weights["ten"] = np.float32(10)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    properties = {
        "stride": "32",
        "task": task,
        "batch": "1",
        "imgsz": f"[{SIDE}, {SIDE}]",
        "names": str(dict(enumerate(NAMES))),
    }
    onnx.helper.set_model_props(model, properties)
    return model


def build(tmp_path: Path, task: str, **given: Any) -> Manifest:
    path = save(tmp_path / "m.onnx", network(task))
    options = BuildOptions(labelled=tmp_path / "labelled", **given)
    return building.build(path, tmp_path / "m.bundle", options)


def square(colour: tuple[int, int, int]) -> Image.Image:
    """128 x 64 black pixels, with a square from (32, 0) to (64, 32): letterboxed to 32 x 32, it is
    a cell of 8 x 8."""
    image = Image.new("RGB", (128, 64))
    image.paste(colour, (32, 0, 64, 32))
    return image


@pytest.mark.parametrize("taken", ["float32", "uint8"])
def test_average_precision_against_labels(taken: str, tmp_path: Path) -> None:
    """Two of three reds are labelled where they are, the second best is not: the area below
    precision over recall is 1/3 + 1/3 * 2/3. The green is right, and blue is in no label."""
    folder = tmp_path / "labelled"
    folder.mkdir()
    right = "0.375 0.25 0.25 0.5"
    for name, red, where in (
        ("a", 255, right),
        ("b", 215, "0.8125 0.6875 0.125 0.25"),
        ("c", 175, right),
    ):
        square((red, 0, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"0 {where}\n")
    square((0, 204, 0)).save(folder / "d.png")
    (folder / "d.txt").write_text(f"1 {right}\n")
    square((0, 0, 0)).save(folder / "e.png")
    manifest = build(tmp_path, "detect", input=taken)
    expected = round((1 / 3 + 1 / 3 * 2 / 3 + 1) / 2, 4)
    assert manifest["vision"]["task"] == "detect"
    assert manifest["quality"]["labelled"] == {
        "pictures": 5,
        "labels": 4,
        "float": {"map50": expected},
        "bundle": {"map50": expected},
    }


def test_classes_against_labels(tmp_path: Path) -> None:
    for name, colour in (*COLOURS.items(), ("blue", (255, 0, 0))):
        own = tmp_path / "labelled" / name
        own.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), colour).save(own / f"{colour[0]}.png")
    manifest = build(tmp_path, "classify")
    vision = manifest["vision"]
    assert (vision["task"], vision["softmax"]) == ("classify", False)
    labelled = manifest["quality"]["labelled"]
    assert labelled["pictures"] == 4
    assert labelled["float"] == labelled["bundle"] == {"top1": 0.75}


def test_both_figures_are_printed(tmp_path: Path, run_cli: Cli) -> None:
    path = save(tmp_path / "m.onnx", network("classify"))
    folder = tmp_path / "labelled"
    (folder / "green").mkdir(parents=True)
    Image.new("RGB", (32, 32), COLOURS["green"]).save(folder / "green" / "a.png")
    code, out, _ = run_cli("build", path, "--labelled", folder)
    assert code == 0
    text = "By labels, 1 picture: top-1 1.000 of the bundle, 1.000 of the float model."
    assert text in " ".join(out.split())


@pytest.mark.parametrize(
    ("folder", "complaint"),
    [
        ("missing", "no such folder"),
        ("purple", "no class is called 'green-ish'; the closest are green"),
        ("broken", "not an image that can be read"),
    ],
)
def test_a_bad_folder_is_told_in_one_line(
    folder: str, complaint: str, tmp_path: Path, run_cli: Cli
) -> None:
    path = save(tmp_path / "m.onnx", network("classify"))
    (tmp_path / "purple" / "green-ish").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "purple" / "green-ish" / "a.png")
    (tmp_path / "broken" / "red").mkdir(parents=True)
    (tmp_path / "broken" / "red" / "a.png").write_bytes(b"no picture")
    output = tmp_path / "m.bundle"
    code, _, err = run_cli("build", path, "-o", output, "--labelled", tmp_path / folder)
    assert code == 2 and not output.exists()
    (line,) = [line for line in err.splitlines() if "E-OPTION" in line]
    assert "--labelled" in line and complaint in " ".join(err.split())


def test_models_whose_outputs_are_unknown_are_refused(tmp_path: Path, run_cli: Cli) -> None:
    model = network("detect")
    model.ClearField("metadata_props")
    path = save(tmp_path / "m.onnx", model)
    code, _, err = run_cli("build", path, "--labelled", tmp_path)
    assert code == 2 and "was not recognised" in " ".join(err.split())


@pytest.mark.parametrize("name", ["yolov8", "yolo11"])
def test_metadata_tell_the_head_of_an_export_on_random_samples(name: str, tmp_path: Path) -> None:
    path = EXPORTS / f"{name}.onnx"
    manifest = building.build(path, tmp_path / "m.bundle", BuildOptions())
    assert manifest["vision"]["task"] == "detect"
    assert manifest["vision"]["head"] == {
        "kind": "yolo",
        "output": "output0",
        "rows": False,
        "objectness": False,
        "strides": [],
    }
    detections = manifest["quality"]["detections"]
    assert detections["outputs"] == ["output0"]


def test_metadata_of_another_task_or_shape_tell_no_head(tmp_path: Path) -> None:
    """Poses have key points behind the scores; a file may say one thing and hold another."""
    for number, changed in enumerate(({"task": "pose"}, {"names": "{0: 'red', 1: 'green'}"})):
        model = network("detect")
        told = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**told, **changed})
        path = save(tmp_path / f"{number}.onnx", model)
        manifest = building.build(path, tmp_path / f"{number}.bundle", BuildOptions())
        assert manifest["vision"]["task"] is None
        assert "detections" not in manifest["quality"]
