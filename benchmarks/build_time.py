"""Time and peak memory of `build` for ResNet-50 with 8 calibration samples, beside onnx2tf's int8
conversion.

    python benchmarks/build_time.py [ONNX2TF]

ONNX2TF is the `onnx2tf` command of an environment of its own (pip install onnx2tf==2.6.9, Python
3.12); without it only our side runs. Both get the same file and the same samples, one after the
other on the same machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES = 8
# The direct backend of 2.6.9 stops at this model (PADV2), so its TensorFlow one it is.
BACKEND = ("-tb", "tf_converter")


def measure(command: list[str], folder: Path) -> tuple[float, float, int]:
    """(seconds, peak MB, exit code) of a command."""
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def main(peer: str | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.onnx"
        # In a process of its own: a child's peak memory starts at what its parent holds.
        subprocess.run([sys.executable, "-m", "fixtures", "light", "resnet50", model], check=True)
        samples = (
            np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224)).astype(np.float32)
        )
        np.savez(folder / "ours.npz", **{"gpu_0/data_0": samples})
        np.save(folder / "theirs.npy", samples.transpose(0, 2, 3, 1))
        size = model.stat().st_size / 2**20
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
        ours = [
            sys.executable,
            "-m",
            "compiler",
            "build",
            "model.onnx",
            "--calibration",
            "ours.npz",
        ]
        commands = {"coral-bundle build": ours}
        if peer is not None:
            calibration = ["-cind", "gpu_0/data_0", "theirs.npy", "[[[[0,0,0]]]]", "[[[[1,1,1]]]]"]
            commands["onnx2tf -oiqt"] = [
                peer,
                "-i",
                "model.onnx",
                "-o",
                "theirs",
                *BACKEND,
                "-oiqt",
                *calibration,
            ]
        times = []
        print(
            f"ResNet-50, {size:.0f} MB, {SAMPLES} samples; "
            f"limit for memory 3 x model + 600 = {3 * size + 600:.0f} MB"
        )
        for label, command in commands.items():
            seconds, memory, code = measure(command, folder)
            times.append(seconds)
            print(f"{label:20} {seconds:7.1f} s {memory:7.0f} MB  exit {code}")
            if code:
                print((folder / "log.txt").read_text()[-2000:])
        if len(times) == 2:
            print(f"ratio {times[1] / times[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
