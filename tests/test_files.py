"""Outputs: whole or not at all, through links, and never in the place of a device."""

from __future__ import annotations

import io
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kills
from compiler import files
from compiler.device import measure
from compiler.errors import OutputError
from tests.conftest import Cli

ROOT = Path(__file__).parent.parent


def write(path: Path, data: bytes = b"new", *sources: Path) -> None:
    with files.output(path, sources) as file:
        file.write(data)


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_device(tmp_path: Path) -> Path:
    """A device node of the test's own that takes nothing, as /dev/full."""
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("rb").close()
    except OSError:
        pytest.skip("only root makes device nodes")
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 16, 16), np.float32))
    return tmp_path / "x.npz"


def test_replaced_as_a_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "y"
    write(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.chmod(0o640)
    with files.output(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


@pytest.mark.parametrize("before", [None, b"old"])
def test_what_fails_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "y"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(OutputError, match="cannot be written"), room(1000):
        write(path, bytes(5000))
    with pytest.raises(KeyError), files.output(path) as file:
        file.write(b"new")
        raise KeyError
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_kill_leaves_one_file_that_the_next_takes_away(tmp_path: Path) -> None:
    path = tmp_path / "y"

    def die() -> None:
        with files.output(path) as file:
            file.write(bytes(100_000))
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(2):
        assert kills.ended(kills.fork(die)) == -signal.SIGKILL
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    write(path)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "y"
    with files.output(path) as file:
        with pytest.raises(OutputError, match="another process"):
            write(path, b"second")
        file.write(b"first")
    assert path.read_bytes() == b"first"


def test_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, path = tmp_path / "link", tmp_path / "real" / "y"
    link.symlink_to(path)
    for data in (b"first", b"second"):
        write(link, data)
        assert link.is_symlink() and path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["n" * 250, "n" * 255, "a\n\x1b[31mred", "g[*]?", os.fsdecode(b"\xff")], ids=ascii
)
def test_odd_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["n" * 256, ".", "", "none/y", "file/y", "loop"], ids=ascii)
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "y"
    path.write_bytes(b"old")
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("root writes everything")
    with pytest.raises(OutputError, match="Permission denied"):
        write(path)
    assert path.read_bytes() == b"old"


def test_what_the_command_reads_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"input")
    (tmp_path / "link").symlink_to("x")
    for name in ("x", "link"):
        with pytest.raises(OutputError, match="reads"):
            write(tmp_path / name, b"new", tmp_path / "gone", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"input"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with files.output(pipe) as file:
        np.savez(file, y=np.arange(4))
    reader.join()
    assert np.load(io.BytesIO(found[0]))["y"].tolist() == [0, 1, 2, 3]
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_every_output_of_the_command_line(
    full_device: Path,
    samples: Path,
    small_bundle: Path,
    small_model: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device stays one and its error is a line; what was read stays; a full disk leaves nothing
    new."""
    monkeypatch.setattr(measure, "measure", lambda threads: "macs = 1\n")
    commands = (
        (("run", small_bundle, "-i", samples, "-o"), samples),
        (("inspect", small_bundle, "--html"), small_bundle / "manifest.json"),
        (("inspect", small_model, "--html"), small_model),
        (("inspect", small_model, "--dot"), small_model),
        (("inspect", small_model, "--netron"), small_model),
        (("measure", "-o"), None),
    )
    folder = full_device.parent
    for command, source in commands:
        names = sorted(p.name for p in folder.iterdir())
        code, _, err = run_cli(*command, full_device)
        assert code == 2 and "E-OUTPUT" in err and str(full_device) in err.replace("\n", ""), (
            command
        )
        assert stat.S_ISCHR(full_device.stat().st_mode)
        if source is not None:
            before = source.read_bytes()
            code, _, err = run_cli(*command, source)
            assert code == 2 and "reads" in err and source.read_bytes() == before, command
        with room(0):
            assert run_cli(*command, folder / "new")[0] == 2
        assert sorted(p.name for p in folder.iterdir()) == names, command
        assert run_cli(*command, folder / "new")[0] == 0
        for made in folder.glob("new*"):
            made.unlink()


def test_weights_beside_a_graph_are_not_those_of_another(
    small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    (tmp_path / "graph.onnx.data").write_bytes(b"of another model")
    code, _, err = run_cli("inspect", small_model, "--netron", tmp_path / "graph.onnx")
    assert code == 2 and "graph.onnx.data" in err.replace("\n", "")
    assert (tmp_path / "graph.onnx.data").read_bytes() == b"of another model"
    for _ in range(2):
        assert run_cli("inspect", small_model, "--netron", tmp_path / "other.onnx")[0] == 0


def test_standard_output_that_takes_nothing(small_bundle: Path) -> None:
    """What is buffered until the end, and what is not."""
    for options in (["--json"], []):
        line = [sys.executable, "-m", "compiler", "inspect", small_bundle, *options]
        with Path("/dev/full").open("wb") as full:
            ran = subprocess.run(
                line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert ran.returncode == 2 and ran.stderr.startswith("error E-OUTPUT: standard output"), (
            ran.stderr
        )
        assert len(ran.stderr.splitlines()) == 1


def test_names_cannot_break_or_colour_a_line(tmp_path: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("inspect", tmp_path / "a\n\x1b[31mred\udcff.onnx")
    assert code == 2 and len(err.strip().splitlines()) == 1 and "\x1b" not in err
    assert r"a\n\x1b[31mred\udcff.onnx" in err


def test_closed_standard_output(small_bundle: Path) -> None:
    line = [
        "sh",
        "-c",
        '"$@" >&-',
        "sh",
        sys.executable,
        "-m",
        "compiler",
        "inspect",
        small_bundle,
        "--json",
    ]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_standard_output(samples: Path, small_bundle: Path, tmp_path: Path) -> None:
    """Into a pipe and into a file: nothing else is printed between the bytes."""
    line = [
        sys.executable,
        "-m",
        "compiler",
        "run",
        small_bundle,
        "-i",
        samples,
        "-o",
        "/dev/stdout",
    ]
    piped = subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout
    assert np.load(io.BytesIO(piped))["y"].shape == (2, 10) and b"Wrote" not in piped
    with (tmp_path / "y.npz").open("wb") as file:
        subprocess.run(line, cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL, check=True)
    assert np.load(tmp_path / "y.npz")["y"].shape == (2, 10)
