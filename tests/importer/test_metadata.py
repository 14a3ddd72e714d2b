"""What Ultralytics and Hugging Face tell beside the graph, written here as their exporters do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from compiler import importer
from compiler.driver import build as building
from compiler.driver import picture
from compiler.driver.options import BuildOptions, ImageOptions
from compiler.errors import ModelError
from compiler.graph import shape_of
from compiler.importer import metadata
from tests.conftest import Cli, save, small_network

# As Ultralytics 8 writes them: every value is Python's text of it.
ULTRALYTICS = {
    "stride": "32",
    "task": "detect",
    "batch": "1",
    "imgsz": "[32, 48]",
    "names": "{0: 'person', 1: \"driver's seat\"}",
}
# As transformers writes them.
PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
CONFIG = {"id2label": {"0": "cat", "1": "dog"}}


def dynamic(properties: dict[str, str] | None = None, axes: tuple[object, ...] = ()) -> Any:
    proto = small_network()
    shape = axes or ("batch", 3, "height", "width")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=True):
        dim.Clear()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = int(str(size))
    onnx.helper.set_model_props(proto, properties or {})
    return proto


def test_ultralytics_tells_sizes_and_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", dynamic(ULTRALYTICS))
    model = building.read(path, BuildOptions())
    assert shape_of(model.graph.inputs[0]) == (1, 3, 32, 48)
    entry = picture.of(model)
    assert entry is not None and entry["fit"] == "letterbox" and entry["size"] == [32, 48]
    assert entry["mean"] == [0] and entry["std"] == [255]
    assert picture.labels_of(model, BuildOptions()) == ["person", "driver's seat"]


def test_options_win_over_metadata(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", dynamic(ULTRALYTICS))
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    image = ImageOptions(mean=(0.5,), fit="crop", colours="BGR")
    options = BuildOptions(dims={"height": 64}, image=image, labels=labels)
    model = building.read(path, options)
    assert shape_of(model.graph.inputs[0]) == (1, 3, 64, 48)
    entry = picture.of(model)
    assert entry is not None and (entry["fit"], entry["colours"]) == ("crop", "BGR")
    assert entry["mean"] == [127.5] and entry["std"] == [255]
    assert picture.labels_of(model, options) == ["one", "two"]


@pytest.mark.parametrize("folder", [".", "onnx"])
def test_hugging_face_tells_sizes_normalisation_and_labels(folder: str, tmp_path: Path) -> None:
    """Exports often lie in a folder `onnx` beside the configuration."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / folder).mkdir(exist_ok=True)
    axes = ("batch_size", "num_channels", "height", "width")
    path = save(tmp_path / folder / "m.onnx", dynamic(axes=axes))
    model = building.read(path, BuildOptions())
    assert shape_of(model.graph.inputs[0]) == (1, 3, 32, 32)
    entry = picture.of(model)
    assert entry is not None and entry["fit"] == "crop" and entry.get("resize") == [40, 40]
    np.testing.assert_allclose(entry["mean"], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(entry["std"], [58.395, 57.12, 57.375])
    assert picture.labels_of(model, BuildOptions()) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("changes", "size", "resize", "fit"),
    [
        ({"size": {"height": 32, "width": 48}, "do_center_crop": False}, (32, 48), None, "stretch"),
        ({"size": 32, "do_center_crop": False}, (32, 32), None, "stretch"),
        ({"size": 40, "crop_size": 32}, (32, 32), (40, 40), "crop"),
        (
            {"size": {"shortest_edge": 224}, "do_center_crop": False, "crop_pct": 0.875},
            (224, 224),
            (256, 256),
            "crop",
        ),
        (
            {"size": {"shortest_edge": 800, "longest_edge": 1333}, "do_center_crop": False},
            None,
            None,
            "stretch",
        ),
    ],
)
def test_forms_of_sizes(
    changes: dict[str, Any],
    size: tuple[int, int] | None,
    resize: tuple[int, int] | None,
    fit: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changes}))
    model = importer.load(save(tmp_path / "m.onnx", small_network()))
    facts = metadata.of(model)
    assert (facts.size, facts.resize, facts.fit) == (size, resize, fit)


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, (0,) * 3, (255,) * 3),
        ({"do_rescale": False}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, (127.5,) * 3, (127.5,) * 3),
        ({"image_std": [0, 0, 0]}, None, None),
    ],
)
def test_forms_of_normalisation(
    changes: dict[str, Any], mean: Any, std: Any, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changes}))
    facts = metadata.of(importer.load(save(tmp_path / "m.onnx", small_network())))
    assert (facts.mean is None) == (mean is None)
    if mean is not None:
        np.testing.assert_allclose(facts.mean, mean)  # type: ignore[arg-type]
        np.testing.assert_allclose(facts.std, std)  # type: ignore[arg-type]


def test_channels_that_a_preprocessor_turns_around(tmp_path: Path) -> None:
    """As MobileViT's, which knows no mean."""
    kept = {key: value for key, value in PREPROCESSOR.items() if "normal" not in key}
    del kept["image_mean"], kept["image_std"]
    text = json.dumps({**kept, "do_flip_channel_order": True})
    (tmp_path / "preprocessor_config.json").write_text(text)
    entry = picture.of(building.read(save(tmp_path / "m.onnx", small_network()), BuildOptions()))
    assert entry is not None and entry["colours"] == "BGR"
    assert set(entry["mean"]) == {0} and set(entry["std"]) == {255}


@pytest.mark.parametrize(
    "properties",
    [
        {**ULTRALYTICS, "imgsz": "[" * 10_000},
        {**ULTRALYTICS, "imgsz": "[-1, 1e99]"},
        {**ULTRALYTICS, "imgsz": "__import__('os')"},
        {**ULTRALYTICS, "imgsz": "[640, 640, 640]", "names": "{'a': 1}"},
        {},
    ],
)
def test_what_does_not_read_as_expected_is_left_out(
    properties: dict[str, str], tmp_path: Path
) -> None:
    path = save(tmp_path / "m.onnx", dynamic(properties))
    with pytest.raises(ModelError, match="--dim height="):
        building.read(path, BuildOptions())


def test_hostile_files_beside_the_model(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", small_network())
    for text in (
        "[" * 100_000,
        "[1]",
        '{"id2label": [1], "image_mean": "x", "size": {"height": 1e9}}',
    ):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "preprocessor_config.json").write_text(text)
        facts = metadata.of(importer.load(path))
        assert not facts.labels and facts.size is None and facts.mean in (None, (0.0,))


def test_samples_tell_shapes(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", dynamic())
    for array in (np.zeros((5, 3, 24, 32)), np.zeros((5, 1, 3, 24, 32)), np.zeros((5, 24, 32, 3))):
        np.savez(tmp_path / "c.npz", x=array.astype(np.float32))
        model = building.read(path, BuildOptions(calibration=tmp_path / "c.npz"))
        assert shape_of(model.graph.inputs[0]) == (1, 3, 24, 32)
    np.savez(tmp_path / "c.npz", x=np.zeros((5, 4, 24, 32), np.float32))
    with pytest.raises(ModelError, match="some dimensions are not fixed"):
        building.read(path, BuildOptions(calibration=tmp_path / "c.npz"))


def test_pictures_come_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    options = BuildOptions(calibration=tmp_path / "photos")
    path = save(tmp_path / "m.onnx", dynamic(axes=("n", 3, 16, 16)))
    assert shape_of(building.read(path, options).graph.inputs[0]) == (1, 3, 16, 16)
    # Beside what the file says.
    path = save(tmp_path / "m.onnx", dynamic(ULTRALYTICS))
    assert shape_of(building.read(path, options).graph.inputs[0]) == (1, 3, 32, 48)


def test_what_is_taken_is_said(tmp_path: Path, run_cli: Cli) -> None:
    path = save(tmp_path / "m.onnx", dynamic(ULTRALYTICS))
    code, _, err = run_cli("inspect", path)
    assert code == 0
    assert "taken from the file (Ultralytics): imgsz 32 x 48, 2 names, fit letterbox" in err


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\n dog \n\n", ["cat", "dog"]),
        ("0  cat\n2: dog\n", ["cat", "", "dog"]),
        ("7up\n3 musketeers\n", ["7up", "3 musketeers"]),
    ],
)
def test_files_of_labels(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert picture.read_labels(tmp_path / "labels.txt") == names
