"""The device side in fresh environments that have nothing else of this project: the packages of its
extras only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, Pipeline

ROOT = Path(__file__).parent.parent
CODE = """
import sys
import numpy as np
from compiler.runtime import Bundle, Runner
from compiler.runtime.tflite_segment import interpreter_module
x = np.load(sys.argv[2])
with Runner(Bundle.open(sys.argv[1])) as runner:
    results = list(runner.stream({"x": row[None]} for row in x))
np.save(sys.argv[3], np.concatenate([r["y"] for r in results]))
print(interpreter_module().__name__, *sorted({m.split(".")[0] for m in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "interpreter"),
    [("device", "ai_edge_litert"), ("device-tflite-runtime", "tflite_runtime")],
)
def test_a_bundle_runs_with_the_device_extra_only(
    small_bundle: Path, tmp_path: Path, extra: str, interpreter: str
) -> None:
    if extra != "device" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime is not built for this Python")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("compiler", "passes", "fixtures"):
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.gguf", "exports"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{source}[{extra}]"], check=True)

    x = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    ran = subprocess.run(
        [python, "-c", CODE, small_bundle, tmp_path / "x.npy", tmp_path / "y.npy"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    used, *modules = ran.stdout.split()
    assert used.startswith(interpreter)
    assert not {"onnx", "onnx_ir", "onnxscript", "networkx", "tokenizers", "ortools"} & set(modules)
    pipeline = Pipeline(Bundle.open(small_bundle))
    want = np.concatenate([pipeline.run({"x": row[None]})["y"] for row in x])
    # The oldest interpreter rounds some products otherwise: a step of int8 before the softmax.
    assert np.abs(np.load(tmp_path / "y.npy") - want).max() <= (
        0 if interpreter == "ai_edge_litert" else 0.02
    )

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [python, "-m", "compiler", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)

    program = [environment / "bin" / "coral-bundle", "--version"]
    version = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert version.stdout.startswith("coral-bundle ")
    without = subprocess.run(
        [python, "-c", "import fixtures"], capture_output=True, check=False, cwd=tmp_path
    )
    assert without.returncode != 0  # the wheel has no fixtures
    assert command("run", small_bundle, "-i", "x.npy", "-o", "out.npz").returncode == 0
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 10)
    assert json.loads(command("bench", small_bundle, "--runs", 3, "--json").stdout)["runs"] == 3
    refused = command("build", "model.onnx", "--target", "usb3")
    assert refused.returncode == 2 and "coral-bundle[compiler]" in refused.stderr
