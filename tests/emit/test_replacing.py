"""What `--force` may replace, what two builds do to each other, and what is left of those that are
killed."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks import kills
from compiler import files
from compiler.emit import bundle, compilation, contents
from compiler.errors import OutputError
from compiler.runtime import Bundle, RuntimeBundleError, folders
from compiler.runtime import bundle as runtime_bundle
from compiler.runtime.manifest import MANIFEST_VERSION
from compiler.targets import target
from compiler.vendor import edgetpu_compiler as toolchain
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]

TARGETS = Path(target.__file__).parent


@pytest.fixture
def output(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be replaced, alone in its folder."""
    place = tmp_path / "place" / "b"
    shutil.copytree(small_bundle, place)
    return place


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def changed(source: Path, folder: Path) -> Path:
    """A copy of a bundle with another manifest."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["file"] = "another.onnx"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def replaced(output: Path, source: Path, *sources: Path) -> bool:
    """Put a copy of `source` at `output`; whether it is a new folder."""
    before = output.stat().st_ino
    with bundle.folder(output, True, sources) as made:
        shutil.copytree(source, made, dirs_exist_ok=True)
    Bundle.open(output)
    return output.stat().st_ino != before


def test_a_bundle_is_replaced_and_keeps_its_permissions(output: Path, small_bundle: Path) -> None:
    output.chmod(0o750)
    assert replaced(output, small_bundle)
    assert output.stat().st_mode & 0o777 == 0o750
    assert [p.name for p in output.parent.iterdir()] == ["b"]


FOREIGN = (
    ("a browser extension", '{"manifest_version": 3, "name": "mine"}'),
    ("of our version, but not ours", f'{{"manifest_version": {MANIFEST_VERSION}, "segments": []}}'),
    ("no JSON", "CACHE MANIFEST"),
    ("a list", "[1, 2]"),
    ("deep", "[" * 100_000),
)


@pytest.mark.parametrize("text", [text for _, text in FOREIGN], ids=[name for name, _ in FOREIGN])
def test_other_folders_with_a_manifest_are_refused(
    text: str, small_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not a bundle"):
        replaced(folder, small_bundle)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["extension"]


@pytest.mark.parametrize("version", [1, MANIFEST_VERSION - 1, MANIFEST_VERSION + 1])
def test_bundles_of_older_versions_are_replaced(
    version: int, output: Path, small_bundle: Path
) -> None:
    """What all versions have in common since the first; what newer ones hold cannot be known."""
    manifest = json.loads((output / "manifest.json").read_text()) | {"manifest_version": version}
    del manifest["prediction"]
    for segment in manifest["segments"]:
        del segment["tpu"], segment["lowering"], segment["operators"]
    (output / "manifest.json").write_text(json.dumps(manifest))
    if version < MANIFEST_VERSION:
        assert replaced(output, small_bundle)
    else:
        wanted = rf"manifest version {version} was written by coral-bundle .*: update it"
        with pytest.raises(OutputError, match=wanted):
            replaced(output, small_bundle)


@pytest.mark.parametrize(
    "name", ["notes.txt", "segments/mine.onnx", ".hidden", "photos/cat.png", "empty/"]
)
def test_what_is_not_of_the_bundle_is_not_deleted(
    name: str, output: Path, small_bundle: Path
) -> None:
    if name.endswith("/"):
        (output / name).mkdir()
    else:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    with pytest.raises(OutputError, match="photos/" if "photos" in name else name):
        replaced(output, small_bundle)
    assert (output / name).exists()


def test_what_comes_while_we_build_is_not_deleted(output: Path, small_bundle: Path) -> None:
    with pytest.raises(OutputError, match=r"notes\.txt"), bundle.folder(output, True) as made:
        shutil.copytree(small_bundle, made, dirs_exist_ok=True)
        (output / "notes.txt").write_text("mine")
    assert (output / "notes.txt").read_text() == "mine"
    with (
        pytest.raises(OutputError, match="exists already"),
        bundle.folder(output.parent / "c", False) as made,
    ):
        (output.parent / "c").mkdir()
        (output.parent / "c" / "notes.txt").write_text("mine")
    assert (output.parent / "c" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in output.parent.iterdir()) == ["b", "c"]


def test_an_empty_folder_is_taken(tmp_path: Path, small_bundle: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o750)
    with bundle.folder(empty, False) as made:
        shutil.copytree(small_bundle, made, dirs_exist_ok=True)
    Bundle.open(empty)
    assert empty.stat().st_mode & 0o777 == 0o750


def test_force_is_only_promised_where_it_helps(output: Path) -> None:
    with pytest.raises(OutputError, match="exists already; the option force"):
        bundle.folder(output, False).__enter__()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt") as caught:
        bundle.folder(output, False).__enter__()
    assert "the option force" not in str(caught.value)


def test_a_link_to_segments_elsewhere_is_not_followed(
    output: Path, small_bundle: Path, tmp_path: Path
) -> None:
    shutil.move(output / "segments", tmp_path / "disk")
    (output / "segments").symlink_to(tmp_path / "disk")
    with pytest.raises(OutputError, match="segments/"):
        replaced(output, small_bundle)


def test_what_the_build_reads_is_not_deleted(
    output: Path,
    small_bundle: Path,
    small_model: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even where the bundle names it: its own segment as the model, its own tokenizer."""
    for source in (output / "segments" / "00.onnx", output):
        with pytest.raises(OutputError, match="the build reads"):
            replaced(output, small_bundle, source)
    model = output / "model.onnx"
    shutil.copy(small_model, model)
    for line in (
        ("build", model),
        ("build", small_model, "--calibration", model),
        ("build", small_model, "--tokenizer", model),
    ):
        code, _, err = run_cli(*line, "-o", output, "--force")
        assert code == 2 and "E-OUTPUT" in err and "model.onnx" in err
    model.unlink()
    own = output / "own.toml"
    for option, shipped in (("--target", "usb3.toml"), ("--host", "hosts/pi5.toml")):
        shutil.copy(TARGETS / shipped, own)
        code, _, err = run_cli("build", small_model, option, own, "-o", output, "--force")
        assert code == 2 and "E-OUTPUT" in err and "own.toml, which the build reads" in err
    own.unlink()
    monkeypatch.chdir(output / "segments")
    with pytest.raises(OutputError, match="current folder"):
        replaced(output, small_bundle)
    assert Bundle.open(output)


def test_links_stay(output: Path, small_bundle: Path) -> None:
    link = output.parent / "link"
    link.symlink_to("b")
    assert replaced(link, small_bundle)
    assert link.is_symlink() and output.is_dir() and not output.is_symlink()
    (output.parent / "dangling").symlink_to("nowhere")
    with (
        pytest.raises(OutputError, match="nowhere"),
        bundle.folder(output.parent / "dangling", True),
    ):
        pytest.fail("began")


NAMES = [
    "n" * 250,
    "n" * 255,
    "é" * 127,
    "a\n\x1b[31mred",
    "g[*]?{a}",
    "-o",
    ".hidden",
    "with space ",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_odd_names(name: str, small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    for force in (False, True):
        with bundle.folder(path, force) as made:
            shutil.copytree(small_bundle, made, dirs_exist_ok=True)
    Bundle.open(path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name", ["n" * 256, b"\xff.bundle".decode("utf-8", "surrogateescape"), "file/b"], ids=ascii
)
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError), bundle.folder(tmp_path / name, False):
        pytest.fail("began")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_parents_that_were_made_go_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), bundle.folder(tmp_path / "x" / "y" / "b", False):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_of_two_builds_to_one_place_the_second_is_refused(output: Path, small_bundle: Path) -> None:
    new = output.parent / "new"
    for path, force in ((output, True), (new, False)):
        with bundle.folder(path, force) as made:
            shutil.copytree(small_bundle, made, dirs_exist_ok=True)
            with pytest.raises(OutputError, match="another process"), bundle.folder(path, force):
                pytest.fail("began")
        Bundle.open(path)
    assert sorted(p.name for p in output.parent.iterdir()) == ["b", "new"]


LOOK = """
import sys
from pathlib import Path
from compiler.runtime import folders
folders.sweep()
try:
    folders.claim(Path(sys.argv[1]))
except folders.TakenError as error:
    print("taken")
"""


def test_containers_leave_each_others_builds_alone(output: Path, temporary: Path) -> None:
    """In another PID namespace our id is nobody's, or somebody else's."""
    apart = ["unshare", "--pid", "--fork"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs a PID namespace of its own")
    environment = os.environ | {"TMPDIR": str(temporary)}
    with bundle.folder(output, True) as made, files.temporary("reference") as folder:
        command = [*apart, sys.executable, "-c", LOOK, output]
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == "taken"
        assert made.is_dir() and folder.path.is_dir()


def test_the_next_build_removes_what_killed_ones_left(
    output: Path, small_bundle: Path, temporary: Path
) -> None:
    def die() -> None:
        with bundle.folder(output, True) as made, files.temporary("reference") as folder:
            for path in (made, folder.path):
                (path / "weights.bin").write_bytes(bytes(1000))
            os.kill(os.getpid(), signal.SIGKILL)

    assert kills.ended(kills.fork(die)) == -signal.SIGKILL
    assert len(kills.left(output)) == 2
    (temporary / "of-others").mkdir()
    stranger = temporary / f"{folders.PREFIX}file"
    stranger.touch()
    assert replaced(output, small_bundle)
    stranger.unlink()
    assert kills.left(output) == [] and (temporary / "of-others").exists()


def test_a_foreign_folder_in_the_way_is_not_emptied(
    output: Path, small_bundle: Path, tmp_path: Path
) -> None:
    building = folders.beside(output, folders.BUILDING)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter").write_text("dear")
    building.symlink_to(tmp_path / "documents")
    with pytest.raises(OutputError, match="in the way"):
        replaced(output, small_bundle)
    building.unlink()
    shutil.copytree(tmp_path / "documents", building)
    with pytest.raises(OutputError, match="in the way"):
        replaced(output, small_bundle)
    assert (building / "letter").exists() and (tmp_path / "documents" / "letter").exists()


def test_file_systems_without_locks(
    output: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds go on, but none takes what may be another's."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert replaced(output, small_bundle)
    with files.temporary("reference") as folder:
        folders.sweep()
        assert folder.path.is_dir()
    with files.output(output.parent / "y.npz") as file:
        file.write(b"y")
    with bundle.folder(output, True), pytest.raises(OutputError, match="remove it if none does"):
        replaced(output, small_bundle)
    assert sorted(p.name for p in output.parent.iterdir()) == ["b", "y.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_kills_at_any_call(
    exchange: bool,
    small_bundle: Path,
    output: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill in front of every third call of a replacement that first sweeps: the old or the new
    bundle stands."""
    bundles = small_bundle, changed(small_bundle, tmp_path / "other")
    last = kills.calls(bundles, output, exchange)
    assert last > 40
    outcome = kills.replacements(bundles, output, [*range(1, last, 3), last - 1], exchange)
    assert outcome.lost == [] and outcome.missed == 0
    assert set(outcome.found) == {"old", "new"}
    assert replaced(output, small_bundle)
    assert kills.left(output) == []


def test_a_bundle_that_is_replaced_as_it_is_read(
    output: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader gets the new one, and no word of changed files."""
    new = changed(small_bundle, tmp_path / "new")
    segment = Bundle.open(new).files()[0]
    (new / segment["path"]).write_bytes(bytes(segment["bytes"]))
    text = (new / "manifest.json").read_text()
    digest = runtime_bundle.sha256(new / segment["path"])
    (new / "manifest.json").write_text(text.replace(segment["sha256"], digest))
    digests = runtime_bundle.sha256

    def replacing(path: Path) -> str:
        monkeypatch.setattr(runtime_bundle, "sha256", digests)
        with bundle.folder(output, True) as made:
            shutil.copytree(new, made, dirs_exist_ok=True)
        return digests(path)

    monkeypatch.setattr(runtime_bundle, "sha256", replacing)
    assert Bundle.open(output).manifest["model"]["file"] == "another.onnx"


def test_without_exchange_the_old_bundle_is_found(
    output: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> None:
    """Killed between the two renames: by a reader, and by the next build, even one that fails."""
    building = folders.beside(output, folders.BUILDING)

    def set_aside() -> None:
        building.mkdir()
        (building / folders.LOCK).touch()
        os.rename(output, building / folders.OLD)

    set_aside()
    Bundle.open(output)
    shutil.rmtree(building)
    set_aside()
    assert run_cli("inspect", output)[0] == 0
    shutil.rmtree(building)
    set_aside()
    with pytest.raises(OutputError, match="exists already"), bundle.folder(output, False):
        pytest.fail("began")
    Bundle.open(output)
    shutil.rmtree(building)
    set_aside()
    monkeypatch.setattr(
        os,
        "rename",
        lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")),
    )
    with pytest.raises(RuntimeBundleError, match="Read-only"):
        Bundle.open(output)


def test_a_replacement_that_fails_leaves_the_old_bundle(
    output: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(one: Path, other: Path) -> bool:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(folders, "exchange", busy)
    with pytest.raises(OutputError, match="busy"):
        replaced(output, small_bundle)
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    rename, calls = os.rename, []

    def second_fails(one: Path, other: Path) -> None:
        calls.append(one)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OutputError, match="Input/output"):
        replaced(output, small_bundle)
    Bundle.open(output)
    assert [p.name for p in output.parent.iterdir()] == ["b"]


def test_a_bundle_in_a_layer_of_an_image_stays(
    output: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """overlayfs renames no folder of a lower layer."""

    def crosses(one: Path, other: Path) -> bool:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(folders, "exchange", crosses)
    with pytest.raises(OutputError, match="layer"):
        replaced(output, small_bundle)
    Bundle.open(output)
    assert [p.name for p in output.parent.iterdir()] == ["b"]


def test_compile_keeps_what_is_not_the_bundles(
    output: Path, edgetpu_compiler: Path, run_cli: Cli
) -> None:
    (output / "notes.txt").write_text("mine")
    left = (
        output / "segments" / "01-01234567_edgetpu.tflite.tmp"
    )  # of a compilation that was killed
    left.write_text("half")
    line = ("compile", output, "--edgetpu-compiler", edgetpu_compiler)
    with bundle.changing(output):
        code, _, err = run_cli(*line)
        assert code == 2 and "another process" in err
    assert run_cli(*line)[0] == 0
    assert (output / "notes.txt").read_text() == "mine" and not left.exists()
    first = Bundle.open(output).files()
    assert run_cli(*line)[0] == 0
    assert Bundle.open(output).files() == first
    assert contents.strangers(output, contents.manifest_of(output)) == ["notes.txt"]


def test_compile_killed_at_any_call(
    output: Path,
    edgetpu_compiler: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bundle is whole each time, with or without what was compiled; the next compilation leaves
    nothing else."""
    groups = toolchain.groups([Bundle.open(output).manifest["segments"]], output)
    with toolchain.Session(toolchain.Tool((str(edgetpu_compiler),))) as session:
        for file, outcome in session.compile(groups).items():
            assert isinstance(outcome, toolchain.Compiled)
            shutil.copyfile(outcome.file, tmp_path / file.name)

    def compiled(
        _: object, groups: list[list[Path]], *__: object
    ) -> dict[Path, toolchain.Compiled]:
        files_of_all = itertools.chain.from_iterable(groups)
        return {
            file: toolchain.Compiled(tmp_path / file.name, "16.0", 1, 0, ())
            for file in files_of_all
        }

    monkeypatch.setattr(toolchain.Session, "compile", compiled)

    def work() -> None:
        compilation.compile_bundle(output, toolchain.Tool(("none",)), lambda *_: lambda: None)

    original = tmp_path / "original"
    shutil.copytree(output, original)
    seen, code, moment = set(), -signal.SIGKILL, 1
    while code == -signal.SIGKILL:
        code = kills.ended(kills.fork(work, moment))
        seen.add(any(len(s["files"]) > 1 for s in Bundle.open(output).manifest["segments"]))
        shutil.rmtree(output)
        shutil.copytree(original, output)
        moment += 5
    assert code == 0 and moment > 50 and seen == {False, True}
    assert kills.ended(kills.fork(work, moment // 2)) == -signal.SIGKILL
    assert kills.ended(kills.fork(work)) == 0
    assert kills.left(output) == []
    assert contents.strangers(output, contents.manifest_of(output)) == []


def test_compile_without_room_changes_nothing(
    output: Path, edgetpu_compiler: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "sync", full)
    code, _, err = run_cli("compile", output, "--edgetpu-compiler", edgetpu_compiler)
    assert code == 2 and "No space left" in err and "Traceback" not in err
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before
    assert [p.name for p in output.parent.iterdir()] == ["b"]
