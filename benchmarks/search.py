"""What the search for a quality goal gains and costs: builds by default, without a goal, and plain.

    python -m benchmarks.search [--networks NAME,...] [--folder FOLDER]

Of the networks of benchmarks.trained, and of two that int8 breaks: a norm with its variance as
E[x^2] - E[x]^2, and a classifier that standardises raw features inside. Plain leaves out the steps
that serve trained networks. In dB the worst output counts; `expected` is what the simulation gave
on calibration samples, `held out` what the bundle gives on others. Time is predicted for a Pi 5
with an Edge TPU on USB 3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks import trained
from benchmarks.peers import Case, apart
from compiler.checks import goals

BUILDS = {
    "search": (),
    "no goal": ("--quality", "none"),
    "plain": ("--quality", "none", *(f"--without={step}" for step in trained.PLAIN)),
}
ROW = "| {:22} | {:8} | {:>9} | {:>9} | {:22} | {:>7} | {:>6} |"


@dataclass(frozen=True)
class Build:
    """What a build gave: figures of held-out samples, predicted time, and how long it took."""

    manifest: dict[str, Any]
    seconds: float

    def row(self, network: str, kind: str) -> str:
        quality = self.manifest["quality"]
        held_out = goals.Goal("sqnr", 0).measured(quality)
        figures = []
        for name, figure in goals.FIGURES.items():
            value = figure.read(quality)
            if name not in ("sqnr", "cosine", "kl", "map50", "recall") and value is not None:
                figures.append(f"{name} {value:.4g}")
        expected = quality.get("expected_sqnr_db")
        return ROW.format(
            network,
            kind,
            "" if expected is None else f"{expected:.1f}",
            "" if held_out is None else f"{held_out:.1f}",
            ", ".join(figures),
            f"{self.manifest['prediction']['latency_ms']:.2f}",
            f"{self.seconds:.0f}",
        )


def build(folder: Path, arguments: Sequence[str]) -> Build | str:
    """The bundle of the model in `folder`, or the line that says why there is none."""
    command = [sys.executable, "-m", "compiler", "build", "model.onnx", "--calibration"]
    command += ["calibration.npz", "-o", "b", "--force", "--edgetpu-compiler", "none", *arguments]
    began = time.perf_counter()
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        return ran.stderr.strip().splitlines()[-1]
    manifest = json.loads((folder / "b" / "manifest.json").read_text())
    return Build(manifest, time.perf_counter() - began)


def norm(folder: Path) -> None:
    """Two layers with norms between, of tokens that differ in size."""
    rng = np.random.default_rng(0)
    width, tokens = 256, 128
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(op_type: str, *inputs: str | np.ndarray, **attributes: int) -> str:
        names = []
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
                continue
            names.append(f"constant{len(constants)}")
            constants.append(numpy_helper.from_array(value, names[-1]))
        output = f"{op_type}{len(nodes)}"
        nodes.append(helper.make_node(op_type, names, [output], name=output, **attributes))
        return output

    last = np.array([-1])
    x = "x"
    for _ in range(2):
        weights = rng.normal(size=(width, width)) / 16
        x = add("Relu", add("MatMul", x, weights.astype(np.float32)))
        mean = add("ReduceMean", x, last, keepdims=1)
        # Divided by one less than there are, so that no rule recognises the norm.
        total = add("ReduceSum", add("Mul", x, x), last, keepdims=1)
        squares = add("Mul", total, np.float32(1 / (width - 1)))
        variance = add("Sub", squares, add("Mul", mean, mean))
        variance = add("Add", add("Max", np.float32(0), variance), np.float32(1e-6))
        scale = add("Reciprocal", add("Sqrt", variance))
        x = add("Mul", add("Sub", x, mean), scale)
    add("MatMul", x, (rng.normal(size=(width, 16)) / 16).astype(np.float32))
    _write(folder, nodes, constants, (1, tokens, width), (1, tokens, 16))
    size = np.exp(rng.normal(size=(32, 1, tokens, 1)))
    _samples(folder, rng.normal(size=(32, 1, tokens, width)) * size)


def table(folder: Path) -> None:
    """A classifier of features of sizes far apart, trained here by gradient descent."""
    rng = np.random.default_rng(0)
    features, hidden, classes = 12, 128, 4
    sizes = 10.0 ** rng.uniform(-2, 4, features)
    means = 3 * sizes * rng.normal(size=features)
    drawn = rng.normal(size=(6000, features))
    rule = np.tanh(drawn @ rng.normal(size=(features, 16)))
    truth = (rule @ rng.normal(size=(16, classes))).argmax(axis=1)
    layers = [
        rng.normal(size=(features, hidden)) * np.sqrt(2 / features),
        rng.normal(size=(hidden, classes)) * np.sqrt(1 / hidden),
    ]
    for _ in range(4000):
        chosen = rng.integers(0, 5000, 128)
        inside = np.maximum(drawn[chosen] @ layers[0], 0)
        scores = inside @ layers[1]
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        likely[np.arange(128), truth[chosen]] -= 1
        first = drawn[chosen].T @ ((likely @ layers[1].T) * (inside > 0))
        layers[1] -= 0.05 / 128 * inside.T @ likely
        layers[0] -= 0.05 / 128 * first
    arrays = [means, sizes, *layers]
    names = ["means", "sizes", "first", "second"]
    constants = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for array, name in zip(arrays, names, strict=True)
    ]
    nodes = [
        helper.make_node("Sub", ["x", "means"], ["centred"], name="centre"),
        helper.make_node("Div", ["centred", "sizes"], ["standard"], name="scale"),
        helper.make_node("MatMul", ["standard", "first"], ["inside"], name="first"),
        helper.make_node("Relu", ["inside"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "second"], ["scores"], name="second"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax"),
    ]
    _write(folder, nodes, constants, (1, features), (1, classes))
    _samples(folder, (drawn[5000:5800] * sizes + means)[:, None])


def _write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    taken: tuple[int, ...],
    given: tuple[int, ...],
) -> None:
    output = nodes[-1].output[0]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, taken)]
    outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, given)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")


def _samples(folder: Path, samples: np.ndarray) -> None:
    np.savez(folder / "calibration.npz", x=samples.astype(np.float32))


def network(name: str, packages: Path, folder: Path) -> None:
    """A trained network; what benchmarks.trained holds out is every fourth sample here."""
    made: Case = apart(trained.case, name, packages, folder)
    arrays = np.load(folder / "calibration.npz")
    (key,) = arrays.files
    mixed: list[np.ndarray] = []
    tests = iter(made.test)
    for index, sample in enumerate(arrays[key]):
        mixed.append(sample[None])
        if index % 3 == 2:
            mixed.append(next(tests)[key])
    np.savez(folder / "calibration.npz", **{key: np.concatenate(mixed)[:, None]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(["norm", "table", *trained.NETWORKS]))
    home = Path.home() / ".cache" / "coral-bundle" / "trained"
    parser.add_argument("--folder", type=Path, default=home)
    options = parser.parse_args()
    print(ROW.format("network", "build", "expected", "held out", "read off", "ms", "s"))
    print("|---|---|---|---|---|---|---|")
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            if name in ("norm", "table"):
                {"norm": norm, "table": table}[name](folder)
            else:
                network(name, options.folder, folder)
            for kind, arguments in BUILDS.items():
                found = build(folder, arguments)
                line = found if isinstance(found, str) else found.row(name, kind)
                print(line, flush=True)


if __name__ == "__main__":
    main()
