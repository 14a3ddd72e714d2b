"""Pictures in, predictions out: against pictures whose answer is seen by eye."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from compiler.runtime import Bundle, Runner, consistency
from compiler.runtime.pictures import PictureError, restored
from compiler.runtime.vision import Vision, VisionError, as_json
from tests import eyes


def manifest_of(bundle: Path, **changes: Any) -> Any:
    """The manifest, other fields in its vision part; those that are None are left out."""
    manifest: Any = copy.deepcopy(Bundle.open(bundle).manifest)
    for name, value in changes.items():
        if value is None:
            manifest["vision"].pop(name)
        else:
            manifest["vision"][name] = value
    return manifest


def test_a_detector_gives_boxes_in_pixels_of_the_picture(detector_bundle: Path) -> None:
    with Runner(Bundle.open(detector_bundle)) as runner:
        found = runner.look(eyes.street())
    assert [(one.label, one.index) for one in found] == [("red", 0), ("green", 1)]
    assert found[0].box == pytest.approx(eyes.RED_BOX, abs=0.01)
    assert found[1].box == pytest.approx(eyes.GREEN_BOX, abs=0.01)
    assert found[0].score > 0.9 and found[1].score == pytest.approx(0.8, abs=0.05)


def test_a_picture_may_be_a_path_or_bytes_and_is_turned_upright(
    detector_bundle: Path, tmp_path: Path
) -> None:
    """Written on its side, with the orientation that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = eyes.street().transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "street.png", exif=exif)
    with Runner(Bundle.open(detector_bundle)) as runner:
        want = runner.look(eyes.street())
        data = (tmp_path / "street.png").read_bytes()
        for source in (tmp_path / "street.png", str(tmp_path / "street.png"), data):
            assert runner.look(source) == want
        with pytest.raises(PictureError, match="not an image that can be read"):
            runner.look(b"no picture")


def test_a_classifier_gives_its_best_classes(classifier_bundle: Path) -> None:
    """Against onnxruntime on the model's own file, and a softmax by hand."""
    with Runner(Bundle.open(classifier_bundle)) as runner:
        found = runner.look(eyes.street())
        array = runner.vision.prepare(eyes.street()).array
    session = ort.InferenceSession(classifier_bundle.parent / "eyes.onnx")
    (logits,) = session.run(None, {"x": array})
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    # The third class has no name.
    assert [one.label for one in found] == ["red", "green", "2"]
    assert [one.score for one in found] == pytest.approx(shares.tolist(), abs=0.02)
    assert all(one.box is None for one in found)


def test_least_and_most(detector_bundle: Path, classifier_bundle: Path) -> None:
    with Runner(Bundle.open(detector_bundle)) as runner:
        assert len(runner.look(eyes.street(), least=0.85)) == 1
    with Runner(Bundle.open(classifier_bundle)) as runner:
        prepared = runner.vision.prepare(eyes.street())
        outputs = runner.run(runner.vision.inputs(prepared))
        assert len(runner.vision.read(outputs, prepared, most=1)) == 1
        assert len(runner.vision.read(outputs, prepared, least=0.3)) == 2


def test_frames_go_through_in_order_and_few_at_a_time(detector_bundle: Path) -> None:
    frames = []
    for index in range(12):
        pixels = np.zeros((eyes.SIDE, eyes.SIDE, 3), np.uint8)
        pixels[0 : eyes.CELL, (index % 4) * eyes.CELL :, 2] = 255
        frames.append(Image.fromarray(pixels))
    read = 0

    def camera() -> Iterator[Image.Image]:
        nonlocal read
        for frame in frames:
            read += 1
            yield frame

    with Runner(Bundle.open(detector_bundle)) as runner:
        for number, found in enumerate(runner.watch(camera())):
            assert len(found) == 4 - number % 4 and {one.label for one in found} == {"blue"}
            assert read <= number + runner.depth + 1


def test_what_lies_in_the_grey_around_a_picture_is_not_in_it(detector_bundle: Path) -> None:
    """The grey scores 114 / 255, more than the least."""
    with Runner(Bundle.open(detector_bundle)) as runner:
        assert len(runner.look(eyes.street(), least=0.3)) == 2


@pytest.mark.parametrize("scale", [1.0, 1 / eyes.SIDE])
def test_corners_are_pixels_or_shares(scale: float, detector_bundle: Path) -> None:
    head = {"kind": "corners", "boxes": "b", "scores": "s", "labels": None, "background": False}
    vision = Vision(manifest_of(detector_bundle, head=head))
    outputs = {
        "b": np.array([[8, 8, 16, 16]], np.float32) * scale,
        "s": np.array([[[0.1, 0.9, 0.2]]], np.float32),
    }
    (found,) = vision.read(outputs, vision.prepare(eyes.street()))
    assert found.label == "green" and found.box == pytest.approx(eyes.RED_BOX)


def test_bundles_that_cannot_look_say_why(small_bundle: Path, detector_bundle: Path) -> None:
    with pytest.raises(VisionError, match="does not say how pictures become its input"):
        Vision(Bundle.open(small_bundle).manifest)
    manifest = manifest_of(detector_bundle)
    manifest["inputs"].append({"name": "scale_factor", "dtype": "float32", "shape": [1, 2]})
    with pytest.raises(VisionError, match="takes input 'scale_factor' beside a picture"):
        Vision(manifest)
    vision = Vision(manifest_of(detector_bundle) | {"vision": unread()})
    with pytest.raises(VisionError, match="does not say what its outputs mean"):
        vision.read({}, vision.prepare(eyes.street()))
    vision = Vision(manifest_of(detector_bundle, head={**eyes.HEAD, "strides": [eyes.CELL]}))
    with pytest.raises(VisionError, match="not those of its head"):
        vision.read({"y": np.ones((1, 7, 5))}, vision.prepare(eyes.street()))


def unread() -> dict[str, Any]:
    return {"picture": eyes.PICTURE, "task": None}


PICTURES: Iterable[tuple[Mapping[str, Any], str]] = [
    ({"input": "z"}, "'z', which is no input"),
    ({"size": [16, 16]}, "pictures of [1, 3, 16, 16] are for 'x' [1, 3, 32, 32]"),
    ({"layout": "NHWC"}, "pictures of"),
    ({"colours": "L"}, "pictures of"),
    ({"resize": [100_000, 100_000]}, "more than 64,000,000 pixels"),
    ({"mean": [0.0, 0.0]}, "the mean of pictures has 2 numbers for 3 channels"),
    ({"std": [0.0]}, "the std of pictures is 0"),
]


@pytest.mark.parametrize(("changes", "complaint"), PICTURES)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: Mapping[str, Any], complaint: str, detector_bundle: Path
) -> None:
    manifest = manifest_of(detector_bundle, picture={**eyes.PICTURE, **changes})
    found = consistency.complaint(manifest)
    assert found is not None and complaint in found


def test_a_task_needs_what_it_reads(detector_bundle: Path) -> None:
    assert consistency.complaint(manifest_of(detector_bundle)) is None
    complaint = consistency.complaint(manifest_of(detector_bundle, head=None))
    assert complaint == "a detector has no head"
    complaint = consistency.complaint(
        manifest_of(detector_bundle, head={**eyes.HEAD, "output": "q"})
    )
    assert complaint == "its detect task reads 'q', which is no output"
    complaint = consistency.complaint(manifest_of(detector_bundle, task="classify"))
    assert complaint == "a classifier has no scores"


def test_a_prepared_picture_is_restored(detector_bundle: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (eyes.SIDE, eyes.SIDE, 3), np.uint8)
    vision = Vision(manifest_of(detector_bundle))
    entry: Any = eyes.PICTURE
    array = vision.prepare(Image.fromarray(pixels)).array
    np.testing.assert_array_equal(np.asarray(restored(array, entry)), pixels)


def test_json_of_a_picture(detector_bundle: Path) -> None:
    file = io.BytesIO()
    eyes.street().save(file, "PNG")
    with Runner(Bundle.open(detector_bundle)) as runner:
        found = as_json("detect", (64, 128), runner.look(file.getvalue()))
    assert (found["width"], found["height"]) == (128, 64)
    assert found["predictions"][0]["box"] == [32.0, 0.0, 64.0, 32.0]
    assert found["predictions"][0]["label"] == "red" and found["predictions"][0]["class"] == 0
