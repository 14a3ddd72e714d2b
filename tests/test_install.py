"""The wheel in fresh environments: what it carries, its command, and a device with the packages of
its extra only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler.runtime import Bundle, Pipeline
from tests import eyes
from tests.conftest import save, small_network

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
# Files that are no Python, and that the compiler or the runtime reads.
DATA = (
    "compiler/py.typed",
    "compiler/runtime/manifest.schema.json",
    "compiler/targets/usb3.toml",
    "compiler/targets/chips/edgetpu.toml",
    "compiler/targets/hosts/pi5.toml",
    "compiler/emit/report.html",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source, built from a copy, as building leaves files in the source."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.gguf", "exports")
    for name in ("compiler", "passes", "fixtures", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", made, source]
    subprocess.run(command, check=True)
    (path,) = made.glob("*.whl")
    return path


def environment(folder: Path, *requirements: str) -> Path:
    """The folder of programs of a fresh environment, where pip installed what is required."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    programs = folder / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", *requirements]
    subprocess.run(install, check=True)
    return programs


def run(
    program: Path, *arguments: object, folder: Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    line = [program, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=check, cwd=folder)


def test_the_wheel_carries_compiler_and_passes_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert folders == {"compiler", "passes"}
    assert set(DATA) <= set(names)


def test_the_wheel_builds_a_bundle(wheel: Path, tmp_path: Path) -> None:
    """With the packages of this environment, and nothing of the source beside the wheel."""
    programs = environment(tmp_path / "env", "--no-deps", str(wheel))
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    save(tmp_path / "small.onnx", small_network())

    where = run(
        programs / "python", "-c", "import compiler; print(compiler.__file__)", folder=tmp_path
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
    run(programs / "coral-bundle", "build", "small.onnx", folder=tmp_path)
    assert (tmp_path / "small.bundle" / "report.html").exists()


@pytest.mark.parametrize(
    ("extra", "interpreter"),
    [("device", "ai_edge_litert"), ("device-tflite-runtime", "tflite_runtime")],
)
def test_a_bundle_runs_with_the_device_extra_only(
    wheel: Path, small_bundle: Path, tmp_path: Path, extra: str, interpreter: str
) -> None:
    if extra != "device" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime is not built for this Python")
    programs = environment(tmp_path / "env", f"{wheel}[{extra}]")

    x = np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    ran = run(programs / "python", "-c", CODE, small_bundle, "x.npy", "y.npy", folder=tmp_path)
    used, *modules = ran.stdout.split()
    assert used.startswith(interpreter)
    assert not {"onnx", "onnx_ir", "onnxscript", "networkx", "tokenizers", "ortools"} & set(modules)
    pipeline = Pipeline(Bundle.open(small_bundle))
    want = np.concatenate([pipeline.run({"x": row[None]})["y"] for row in x])
    # The oldest interpreter rounds some products otherwise: a step of int8 before the softmax.
    tolerance = 0 if interpreter == "ai_edge_litert" else 0.02
    assert np.abs(np.load(tmp_path / "y.npy") - want).max() <= tolerance

    command = programs / "coral-bundle"
    assert run(command, "--version", folder=tmp_path).stdout.split()[-1][0].isdigit()
    run(command, "run", small_bundle, "-i", "x.npy", "-o", "out.npz", folder=tmp_path)
    without = run(programs / "python", "-c", "import fixtures", folder=tmp_path, check=False)
    assert without.returncode != 0  # the wheel has no fixtures
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 10)
    bench = run(command, "bench", small_bundle, "--runs", 3, "--json", folder=tmp_path)
    assert json.loads(bench.stdout)["runs"] == 3
    refusals = {
        "compiler": ("build", "model.onnx", "--target", "usb3"),
        "pictures": ("run", small_bundle, "x.npy"),
        "text": ("serve", small_bundle),
        "frigate": ("serve", small_bundle, "--zmq", "ipc://x"),
    }
    for missing, arguments in refusals.items():
        refused = run(command, *arguments, folder=tmp_path, check=False)
        assert refused.returncode == 2 and f"coral-bundle[{missing}]" in refused.stderr


def test_pictures_with_their_extras_only(
    wheel: Path, detector_bundle: Path, tmp_path: Path
) -> None:
    """`run` on a picture, and both servers, without the packages of language models."""
    programs = environment(tmp_path / "env", f"{wheel}[device,vision,frigate]")
    command = programs / "coral-bundle"
    eyes.street().save(tmp_path / "street.png")
    ran = run(command, "run", detector_bundle, "street.png", "--save", "drawn.png", folder=tmp_path)
    assert "red" in ran.stdout and (tmp_path / "drawn.png").exists()
    for arguments in (("--port", "0"), ("--zmq", f"ipc://{tmp_path}/socket")):
        with subprocess.Popen(
            [command, "serve", detector_bundle, *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Serving eyes")
            process.terminate()


def test_from_an_export_of_ultralytics_to_frigate(wheel: Path, tmp_path: Path) -> None:
    """In a bare environment, with no option beyond the pictures."""
    programs = environment(tmp_path / "env", f"{wheel}[compiler]")
    command = programs / "coral-bundle"
    shutil.copy(ROOT / "fixtures/exports/ultralytics/yolov8.onnx", tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(tmp_path / f"photos/{index}.jpg")

    built = run(command, "build", "yolov8.onnx", "--calibration", "photos", folder=tmp_path)
    assert "export yolov8.bundle --for frigate" in built.stdout
    run(command, "export", "yolov8.bundle", "--for", "frigate", "-o", "frigate", folder=tmp_path)
    labels = (tmp_path / "frigate/labelmap.txt").read_text().split()
    assert labels[1::2] == ["person", "bicycle", "car", "dog", "cat"]
    assert (tmp_path / "frigate/yolov8.tflite").is_file()
    seen = run(
        command, "run", "yolov8.bundle", "photos/0.jpg", "--save", "seen.png", folder=tmp_path
    )
    assert "object" in seen.stdout
    with Image.open(tmp_path / "seen.png") as drawn:
        assert drawn.size == (160, 120)
