"""Whatever ends a build - kill -9 at any stage, a full disk, a rival - never leaves a bundle that
is wrong."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, Pipeline, Runner
from tests.conftest import Cli, save, small_network

ROOT = Path(__file__).parent.parent
# Builds argv[1] into argv[2] and kills itself at the stage number argv[3], or at the end of it.
KILLED = """
import os, signal, sys
from pathlib import Path
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
stages = 0
def report(stage, steps):
    global stages
    stages += 1
    if stages == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return lambda: None
building.build(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions(force=True, seed=7), report)
print(stages)
"""


def build(model: Path, output: Path, stage: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(model), str(output), str(stage)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("stages")
    model = save(folder / "m.onnx", small_network())
    return int(build(model, folder / "b", 0).stdout)


@pytest.mark.slow
def test_killed_at_any_stage(stages: int, small_bundle: Path, tmp_path: Path, run_cli: Cli) -> None:
    assert stages > 6
    model, output = save(tmp_path / "m.onnx", small_network()), tmp_path / "b"
    shutil.copytree(small_bundle, output)
    before = (output / "manifest.json").read_bytes()
    for stage in range(1, stages + 1):
        assert build(model, output, stage).returncode == -signal.SIGKILL
        assert (output / "manifest.json").read_bytes() == before
        Bundle.open(output)
    assert run_cli("build", model, "-o", output, "--force")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "b",
        "m.onnx",
    ]  # what the killed ones left is swept
    assert Bundle.open(output).manifest["prediction"]["tpus"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 1000, 4000, 9000, 20_000])
def test_full_disk(room: int, small_bundle: Path, tmp_path: Path) -> None:
    """No file may grow beyond `room` bytes, which fails as a full disk does."""
    model, output = save(tmp_path / "m.onnx", small_network()), tmp_path / "b"
    shutil.copytree(small_bundle, output)
    before = (output / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "compiler", "build", str(model), "-o", str(output), "--force"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert ran.returncode == 2, ran.stderr
    assert "E-OUTPUT" in ran.stderr and "Traceback" not in ran.stderr
    assert (output / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "m.onnx"]


INTERRUPTED = """
import os, signal, sys
from compiler import cli
from compiler.driver import toolchain
def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    return {}
toolchain.convert_with_onnx_tf = interrupt
# Whoever runs the tests in the background may have had the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["compiler", "build", *sys.argv[1:], "--tpus", "2"]
cli.main()
"""


def test_interrupted_behind_the_planner(tmp_path: Path) -> None:
    """Ctrl-C ends in order and leaves nothing, also after OR-Tools, which would take the signal for
    itself."""
    model, output = save(tmp_path / "m.onnx", small_network()), tmp_path / "b"
    command = [sys.executable, "-c", INTERRUPTED, str(model), "-o", str(output)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 130, ran.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_two_builds_into_one_folder(tmp_path: Path) -> None:
    model, output = save(tmp_path / "m.onnx", small_network()), tmp_path / "b"
    command = [sys.executable, "-m", "compiler", "build", str(model), "-o", str(output), "--force"]
    rivals = [
        subprocess.Popen(
            [*command, "--seed", str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in range(3)
    ]
    codes = [(rival.communicate()[1], rival.returncode)[1] for rival in rivals]
    assert set(codes) <= {0, 2} and 0 in codes
    Bundle.open(output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "m.onnx"]


def test_places_that_cannot_be_written(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run_cli("build", small_model, "-o", tmp_path / "file" / "b")
    assert code == 2 and "E-OUTPUT" in err
    code, _, err = run_cli("build", small_model, "-o", Path("/proc/b"))
    assert code == 2 and "E-OUTPUT" in err


def test_nan_is_refused_where_int8_begins(tmp_path: Path, small_bundle: Path) -> None:
    """The first segment is on the host here, so NaN is met by its quantization; a TPU's own input
    refuses it."""
    from compiler.runtime.conversion import quantize

    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([0.0, np.nan], np.float32), 0.1, 3)
    assert quantize(np.array([np.inf, -np.inf], np.float32), 0.1, 3).tolist() == [127, -128]
    with Runner(Bundle.open(small_bundle), "cpu") as runner:
        x = np.zeros((1, 3, 16, 16), np.float32)
        want = Pipeline(Bundle.open(small_bundle)).run({"x": x})["y"]
        results = [
            r["y"] for r in runner.stream([{"x": x}, {"x": np.full_like(x, np.inf)}, {"x": x}])
        ]
        assert np.array_equal(results[0], want) and np.array_equal(results[2], want)
