"""Build time, memory, segments and accuracy of the nine networks of the onnx package, each in a
process of its own.

    python benchmarks/light_networks.py [NAME ...]

Weights are seeded He-normal, samples random pictures: 24 to calibrate on and 8 held out. Scores are
what the Edge TPU gives before the softmax. SQNR is of what varies over the samples; the plain one
counts means as signal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from compiler.view.units import figure
from fixtures import light

SAMPLES = 32


def measure(name: str, folder: Path) -> str:
    model = folder / "model.onnx"
    # In a process of its own: a child's peak memory starts at what its parent holds.
    subprocess.run(
        [sys.executable, "-m", "fixtures", "light", name, model],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    graph = onnx.load(light.source(name)).graph
    constants = {tensor.name for tensor in graph.initializer}
    (value,) = [given.name for given in graph.input if given.name not in constants]
    np.savez(folder / "c.npz", **{value: light.pictures(SAMPLES)})
    command = [
        sys.executable,
        "-m",
        "compiler",
        "build",
        model,
        "--calibration",
        folder / "c.npz",
        "-o",
        folder / "b",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        return f"| {name} | failed |"
    manifest = json.loads((folder / "b" / "manifest.json").read_text())
    tpu = [s for s in manifest["segments"] if s["device"] == "tpu"]
    quality = manifest["quality"]
    last = list(quality["segments"].values())[-1]
    scores = (last["cumulative_sqnr_db"], last["cumulative_plain_sqnr_db"])
    (output,) = quality["outputs"].values()
    size = model.stat().st_size / 2**20
    parameters = sum(s["parameter_bytes"] for s in tpu) / 2**20
    return (
        f"| {name} | {size:.0f} | {len(tpu)} | {parameters:.1f} "
        f"| {' | '.join(map(figure, scores))} "
        f"| {figure(output['sqnr_db'])} | {figure(output['plain_sqnr_db'])} "
        f"| {output['top1_agreement']:.0%} "
        f"| {seconds:.1f} | {usage.ru_maxrss / 1024:.0f} of {3 * size + 600:.0f} |"
    )


def main(names: list[str]) -> None:
    heads = ("scores dB", "plain", "output dB", "plain", "top-1", "build s", "peak MB, limit")
    print(f"| network | MB | TPU segments | MiB on TPU | {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in names or light.NAMES:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
