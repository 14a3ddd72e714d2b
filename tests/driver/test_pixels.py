"""Builds that take pixels, against the user's file on onnxruntime with normalised floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import helper, numpy_helper
from PIL import Image

from compiler import BuildOptions, ImageOptions, Runner
from compiler.driver import build as building
from compiler.errors import CalibrationError, OptionError
from compiler.runtime import Bundle
from tests.conftest import Cli, save, small_network

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 20


def network(pads: int, layout: str = "NCHW") -> onnx.ModelProto:
    """Two convolutions, the first with stride 2, a mean over the image and a dense layer."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 4,
        "b1": rng.standard_normal(8).astype(np.float32) / 4,
        "w2": rng.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8,
        "w3": rng.standard_normal((16, 10)).astype(np.float32) / 4,
    }
    shape = (1, 3, SIZE, SIZE) if layout == "NCHW" else (1, SIZE, SIZE, 3)
    nodes = []
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2]))
    first = "x" if layout == "NCHW" else "image"
    nodes += [
        helper.make_node("Conv", [first, "w1", "b1"], ["c1"], pads=[pads] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(count: int, seed: int) -> np.ndarray:
    """Pictures [count, H, W, 3] of a few large fields, whose mean is not that of ImageNet."""
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 256, (count, 4, 4, 3))
    noise = rng.integers(-20, 21, (count, SIZE, SIZE, 3))
    whole = fields.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2) + noise
    return whole.clip(0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, pixels in enumerate(drawn(8, 0)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def built(path: Path, photos: Path | str, **options: Any) -> Bundle:
    image = options.pop("image", ImageOptions(mean=MEAN, std=STD))
    out = path.parent / "bundle"
    whole = BuildOptions(calibration=photos, image=image, force=True, **options)
    building.build(path, out, whole)
    return Bundle.open(out)


def signal_to_noise(path: Path, bundle: Bundle, image: ImageOptions | None = None) -> float:
    """In dB, of pictures that go into the bundle as pixels, and into the file as (pixel / 255 -
    mean) / std, which is computed here."""
    image = image or ImageOptions(MEAN, STD)
    mean, std = np.array(image.mean, np.float32), np.array(image.std, np.float32)
    (tensor,) = bundle.manifest["inputs"]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    file_shape = session.get_inputs()[0].shape
    error = signal = 0.0
    with Runner(bundle) as runner:
        for pixels in drawn(12, 1):
            floats = ((pixels.astype(np.float32) / 255 - mean) / std)[None]
            given = floats.transpose(0, 3, 1, 2) if file_shape[1] == 3 else floats
            (want,) = session.run(None, {"x": given})
            taken = pixels[None] if tensor["dtype"] != "float32" else floats
            if tensor["dtype"] == "int8":
                taken = (pixels.astype(np.int16) - 128).astype(np.int8)[None]
            assert tensor["shape"] is not None
            if tensor["shape"][1] == 3:
                taken = taken.transpose(0, 3, 1, 2)
            got = runner.run({"x": np.ascontiguousarray(taken)})["y"]
            error += float(((got - want) ** 2).sum())
            signal += float(((want - want.mean()) ** 2).sum())
    return 10 * float(np.log10(signal / error))


def interpreter(bundle: Bundle) -> Interpreter:
    (segment,) = [s for s in bundle.manifest["segments"] if s["device"] == "tpu"]
    found = Interpreter(str(bundle.path / segment["files"][0]["path"]))
    found.allocate_tensors()
    return found


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_pixels_go_in_and_nothing_runs_in_front(
    dtype: str, pads: int, photos: Path, tmp_path: Path
) -> None:
    path = save(tmp_path / "m.onnx", network(pads))
    bundle = built(path, photos, input=dtype)
    assert bundle.manifest["segments"][0]["device"] == "tpu"
    (tensor,) = bundle.manifest["inputs"]
    assert tensor == {"name": "x", "dtype": dtype, "shape": [1, SIZE, SIZE, 3], "layout": "NHWC"}
    picture = bundle.manifest["vision"]["picture"]
    assert picture["mean"] == ([0] if dtype == "uint8" else [128]) and picture["std"] == [1]
    # Zeros around the image are the mean colour, which is no pixel of one zero point for all.
    assert picture["normalised"] == ("layer" if pads else "convolution")
    (details,) = interpreter(bundle).get_input_details()
    assert details["dtype"] == np.dtype(dtype) and list(details["shape"]) == [1, SIZE, SIZE, 3]
    assert signal_to_noise(path, bundle) > 30
    assert bundle.manifest["quality"]["outputs"]["y"]["plain_sqnr_db"] > 30
    assert bundle.manifest["quality"]["baseline"] == "file"


@pytest.mark.parametrize(
    ("mean", "std", "quantization"),
    [
        ((0,), (1,), (1 / 255, 0)),
        ((100 / 255,), (0.5,), (2 / 255, 100)),
        ((0,), (1 / 255,), (1, 0)),
    ],
)
def test_a_mean_of_whole_pixels_needs_no_arithmetic(
    mean: tuple[float], std: tuple[float], quantization: Any, photos: Path, tmp_path: Path
) -> None:
    path = save(tmp_path / "m.onnx", network(1))
    image = ImageOptions(mean, std)
    bundle = built(path, photos, input="uint8", image=image)
    assert bundle.manifest["vision"]["picture"]["normalised"] == "scale"
    (details,) = interpreter(bundle).get_input_details()
    np.testing.assert_allclose(details["quantization"], quantization, rtol=1e-6)
    operators = [o["operator"] for s in bundle.manifest["segments"] for o in s["operators"]]
    # This convolution's own padding is the only thing between.
    assert operators[:3] == ["edgetpu.Dequantize", "Pad", "edgetpu.Conv2D"]
    measured = signal_to_noise(path, bundle, image)
    # Floats are quantized to the same int8 outside of the bundle.
    assert measured == pytest.approx(signal_to_noise(path, built(path, photos, image=image), image))


@pytest.mark.parametrize(
    ("file_layout", "layout", "shape"),
    [
        ("NCHW", "nhwc", [1, SIZE, SIZE, 3]),
        ("NCHW", "nchw", [1, 3, SIZE, SIZE]),
        ("NHWC", "nchw", [1, 3, SIZE, SIZE]),
        ("NHWC", None, [1, SIZE, SIZE, 3]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_layouts(
    dtype: str,
    file_layout: str,
    layout: str | None,
    shape: list[int],
    photos: Path,
    tmp_path: Path,
) -> None:
    path = save(tmp_path / "m.onnx", network(1, file_layout))
    bundle = built(path, photos, input=dtype, layout=layout)
    assert bundle.manifest["inputs"][0]["shape"] == shape
    if shape[3] == 3:
        first = bundle.manifest["segments"][0]
        assert first["device"] == "tpu"
        if dtype == "uint8":
            kinds = [operator["operator"] for operator in first["operators"]]
            assert kinds[:2] == ["edgetpu.Dequantize", "edgetpu.DepthwiseConv2D"]
    assert signal_to_noise(path, bundle) > 30


def test_floats_of_pictures_have_the_range_of_pixels(photos: Path, tmp_path: Path) -> None:
    """Whatever the samples hold: here they are dark. int8 is the pixel less 128."""
    for file in photos.iterdir():
        pixels = np.asarray(Image.open(file)) // 2
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    path = save(tmp_path / "m.onnx", network(1))
    bundle = built(path, photos, image=ImageOptions())
    (segment,) = [s for s in bundle.manifest["segments"] if s["device"] == "tpu"]
    tensor = segment["inputs"][0]
    assert tensor["scale"] == pytest.approx(1 / 255) and tensor["zero_point"] == -128


@pytest.mark.parametrize("form", ["pixels", "floats"])
def test_arrays_as_the_bundle_or_as_the_file_takes_them(form: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", network(1))
    pixels = drawn(8, 0)
    floats = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    arrays = {"pixels": pixels, "floats": floats.transpose(0, 3, 1, 2).astype(np.float32)}
    np.savez(tmp_path / "c.npz", x=arrays[form])
    bundle = built(path, tmp_path / "c.npz", input="uint8")
    assert signal_to_noise(path, bundle) > 30


def test_floats_that_are_no_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", network(1))
    floats = np.random.default_rng(0).normal(0, 5, (4, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=floats)
    with pytest.raises(CalibrationError, match=r"array 'x': its values would be pixels from -\d+"):
        built(path, tmp_path / "c.npz", input="uint8")


def test_no_samples_are_random_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", network(1))
    building.build(path, tmp_path / "b", BuildOptions(input="int8"))
    with Runner(Bundle.open(tmp_path / "b")) as runner:
        result = runner.run({"x": np.zeros((1, SIZE, SIZE, 3), np.int8)})["y"]
    assert result.shape == (1, 10)


def test_files_that_take_pixels_themselves(photos: Path, tmp_path: Path) -> None:
    """As TensorFlow's detectors: uint8 in NHWC, cast and normalised by the first nodes."""
    proto = network(0, "NHWC")
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    del proto.graph.node[0]
    front = [
        helper.make_node("Cast", ["x"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["m"]),
        helper.make_node("Sub", ["m", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["image"], perm=[0, 3, 1, 2]),
    ]
    nodes = [*front, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for name, number in (("factor", 2 / 255), ("one", 1)):
        tensor = numpy_helper.from_array(np.array(number, np.float32), name)
        proto.graph.initializer.append(tensor)
    path = save(tmp_path / "m.onnx", proto)
    bundle = built(path, photos, image=ImageOptions())
    kinds = [o["operator"] for s in bundle.manifest["segments"] for o in s["operators"]]
    assert kinds[:2] == ["edgetpu.Dequantize", "edgetpu.Conv2D"]
    assert bundle.manifest["quality"]["outputs"]["y"]["plain_sqnr_db"] > 30
    picture = bundle.manifest["vision"]["picture"]
    assert (picture["mean"], picture["std"], picture["layout"]) == ([0], [1], "NHWC")
    for options, message in (
        ({"input": "int8"}, "takes uint8"),
        ({"layout": "nchw"}, "takes uint8 in NHWC"),
        ({"image": ImageOptions(mean=(0.5,))}, "takes pixels as they are"),
    ):
        with pytest.raises(OptionError, match=message):
            built(path, photos, **{"image": ImageOptions(), **options})


def test_models_without_a_picture(tmp_path: Path) -> None:
    proto = small_network()
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value = 4
    with pytest.raises(OptionError, match=r"input uint8: .* it has 'x' \[1, 4, 16, 16\]"):
        building.read(save(tmp_path / "m.onnx", proto), BuildOptions(input="uint8"))
    with pytest.raises(OptionError, match="layout nhwc: pixels need a model"):
        building.read(tmp_path / "m.onnx", BuildOptions(layout="nhwc"))


def test_inspect_says_what_takes_the_mean(tmp_path: Path, run_cli: Cli) -> None:
    path = save(tmp_path / "m.onnx", network(0))
    numbers = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4")
    code, text, _ = run_cli("inspect", path, "--input", "uint8", *numbers)
    said = " ".join(text.split())
    assert code == 0 and "the first convolution holds their mean and std" in said
    code, text, _ = run_cli("plan", path, "--input", "uint8", *numbers, "--tpus", "1", "--json")
    assert code == 0 and '"host_segments": 0' in text
