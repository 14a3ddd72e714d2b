"""edgetpu_compiler, which a program of ours stands in for: its log, its ways to fail, and what
becomes of a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.emit import bundle as bundles
from compiler.emit import manifest as manifests
from compiler.runtime import Pipeline
from compiler.vendor import edgetpu_compiler as toolchain
from compiler.vendor.edgetpu_compiler import Compiled, Refused, Session, Tool, parse
from tests.conftest import Cli
from tests.device.test_legality import GROUNDTRUTH

LOGS = GROUNDTRUTH / "logs"
NAMES = {
    "onchip_used_text": "On-chip memory used for caching model parameters",
    "onchip_remaining_text": "On-chip memory remaining for caching model parameters",
    "onchip_available_text": "On-chip memory available for caching model parameters",
    "offchip_text": "Off-chip memory used for streaming uncached model parameters",
    "subgraphs": "Number of Edge TPU subgraphs",
    "total_ops": "Total number of operations",
    "ops_tpu": "Number of operations that will run on Edge TPU",
    "ops_cpu": "Number of operations that will run on CPU",
}


@pytest.mark.skipif(not LOGS.is_dir(), reason="needs ../shared/groundtruth")
def test_public_logs_are_read() -> None:
    """Versions 1, 2, 14, 15 and 16; one of them was typed off a screen, without some units."""
    for want in json.loads((LOGS.parent / "logs.json").read_text()):
        log = parse((LOGS / want["file"]).read_text("utf-8", "replace"))
        assert log.version == want["version"], want["file"]
        rows = [{"op": r.operator, "count": r.count, "status": r.status} for r in log.rows]
        assert rows == want["table"], want["file"]
        assert sum(r.count for r in log.rows if r.mapped) == want["mapped"]
        fields: dict[str, str] = {}
        for model in reversed(log.models):
            fields |= model
        for key, name in NAMES.items():
            if want["file"] != "123.log":
                assert fields.get(name) == (None if want[key] is None else str(want[key])), (
                    want["file"],
                    key,
                )


COMPLAINTS = (
    ("x\nInternal compiler error. Aborting! ", "Internal compiler error. Aborting!"),
    (
        "ERROR: Restored original execution plan after delegate application failure.\n"
        "Compilation failed: Compilation failed due to large activation tensors in model.",
        "Compilation failed: Compilation failed due to large activation tensors in model.",
    ),
    (
        "ERROR: Op builtin_code out of range: 150. "
        "Are you using old TFLite binary with newer model?",
        "ERROR: Op",
    ),
    (
        "Compilation timeout. This is usually caused by large activations.\nCompilation failed! ",
        "Compilation timeout.",
    ),
    ("Invalid model: F\nModel not quantized", "Invalid model: F"),
)


@pytest.mark.parametrize(("text", "complaint"), COMPLAINTS)
def test_complaints_are_found(text: str, complaint: str) -> None:
    """Wordings of versions 15 and 16 in public issues (google-coral/edgetpu 381, 512, 686)."""
    assert str(parse(text).complaint).startswith(complaint)


@pytest.fixture
def parts(small_bundle: Path) -> list[Path]:
    return (
        toolchain.groups([bundles.load(small_bundle).manifest["segments"]], small_bundle)[0]
        + (toolchain.groups([bundles.load(small_bundle).manifest["segments"]], small_bundle)[1])
    )


def test_a_group_shares_a_token_and_equal_files_are_compiled_once(
    edgetpu_compiler: Path, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    monkeypatch.setenv("STANDIN_CALLS", str(calls))
    twin = tmp_path / "twin.tflite"
    shutil.copyfile(parts[0], twin)
    with Session(Tool((str(edgetpu_compiler),))) as session:
        outcomes = session.compile([[*parts, twin]])
        assert all(isinstance(o, Compiled) for o in outcomes.values())
        assert outcomes[twin] == outcomes[parts[0]]
        session.compile([[*parts, twin]])
    assert calls.read_text().split() == ["2"]


def test_the_culprit_is_found_and_the_others_stay_together(
    edgetpu_compiler: Path, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "crash:FULLY_CONNECTED")
    with Session(Tool((str(edgetpu_compiler),))) as session:
        first, second = (session.compile([parts])[p] for p in parts)
    assert isinstance(first, Compiled)
    assert second == Refused("Internal compiler error. Aborting!")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("large:CONV_2D", "Compilation failed due to large activation tensors"),
        ("cpu:CONV_2D", "mapped nothing"),
        ("silent", "exit code -11"),
        ("timeout:CONV_2D", "no end after"),
    ],
)
def test_ways_to_fail(
    edgetpu_compiler: Path,
    parts: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    reason: str,
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", trouble)
    monkeypatch.setattr(toolchain, "_GRACE", 2)
    with Session(Tool((str(edgetpu_compiler),), timeout=1)) as session:
        outcome = session.compile([parts[:1]])[parts[0]]
    assert isinstance(outcome, Refused) and reason in outcome.reason


def test_files_that_do_not_compile_together_do_one_by_one(
    edgetpu_compiler: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "together")
    with Session(Tool((str(edgetpu_compiler),))) as session:
        assert all(isinstance(o, Compiled) for o in session.compile([parts]).values())


def built(run_cli: Cli, model: Path, output: Path, compiler: Path) -> tuple[dict[str, Any], str]:
    arguments = ("--edgetpu-compiler", compiler, "--place", "tpu")
    code, out, err = run_cli("build", model, "-o", output, *arguments)
    assert code == 0, err
    return bundles.load(output).manifest, " ".join(out.split())


def test_build_compiles(
    small_model: Path, tmp_path: Path, edgetpu_compiler: Path, run_cli: Cli
) -> None:
    manifest, out = built(run_cli, small_model, tmp_path / "b", edgetpu_compiler)
    tpu = [s for s in manifest["segments"] if s["device"] == "tpu"]
    assert [s["compiled"]["compiler"] for s in tpu] == ["16.0.384591198"] * 2
    assert all(s["compiled"]["cached_bytes"] > 0 == s["compiled"]["streamed_bytes"] for s in tpu)
    assert all(s["compiled"]["path"] == s["files"][1]["path"] for s in tpu)
    assert "edgetpu_compiler 16.0.384591198 took 2 of 2 segments" in out


@pytest.mark.slow
def test_a_refused_segment_is_cut_until_the_culprit_is_alone(
    small_model: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "crash:MEAN")
    whole, _ = built(run_cli, small_model, tmp_path / "a", Path("none"))
    manifest, out = built(run_cli, small_model, tmp_path / "b", edgetpu_compiler)
    left = [s for s in manifest["segments"] if s["device"] == "tpu" and s["compiled"] is None]
    assert len(manifest["segments"]) > len(whole["segments"])
    assert [[o["operator"] for o in s["operators"]] for s in left] == [["ReduceMean"]]
    assert "refuses its segment: Internal compiler error" in left[0]["operators"][0]["reason"]
    assert "Internal compiler error. Aborting!" in out
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    results = [Pipeline(bundles.load(tmp_path / name)).run(x)["y"] for name in ("a", "b")]
    assert np.array_equal(*results)  # int8 borders within one segment change nothing


@pytest.mark.slow
def test_what_is_not_as_planned_is_told(
    small_model: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "cpu:FULLY_CONNECTED")
    _, out = built(run_cli, small_model, tmp_path / "b", edgetpu_compiler)
    assert "1 FULLY_CONNECTED left on the CPU: More than one subgraph is not supported" in out
    monkeypatch.setenv("STANDIN_COMPILER", "stream")
    monkeypatch.setattr("compiler.view.compiled._UNPLANNED", 0)
    _, out = built(run_cli, small_model, tmp_path / "c", edgetpu_compiler)
    assert "at each run, planned were none" in out


@pytest.mark.slow
def test_compile_later_is_whole_at_any_time(
    small_bundle: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    monkeypatch.setenv("EDGETPU_COMPILER", str(edgetpu_compiler))
    code, out, _ = run_cli("compile", path)
    assert code == 0 and "took 2 of 2 segments" in out
    first = bundles.load(path).manifest
    monkeypatch.setenv("STANDIN_COMPILER", "stream")
    before = (path / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            manifests,
            "write",
            lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        code, _, err = run_cli("compile", path)
        assert code == 2 and "No space left" in err
    assert (path / "manifest.json").read_bytes() == before
    assert bundles.load(path).manifest == first
    assert files(path) == {e["path"] for s in first["segments"] for e in s["files"]}
    assert run_cli("compile", path)[0] == 0
    second = bundles.load(path).manifest
    assert second["segments"][1]["compiled"]["streamed_bytes"] > 0
    names = {e["path"] for s in second["segments"] for e in s["files"]}
    assert files(path) == names


def files(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in (path / "segments").iterdir()}


def test_a_container_is_called_with_its_folders(
    small_bundle: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A docker that writes down how it was called, and runs what comes behind the image."""
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n'
        f'while [ "$1" != edgetpu_compiler ]; do shift; done\nshift\nexec {edgetpu_compiler} "$@"\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    assert run_cli("compile", path, "--docker", "coral:16")[0] == 0
    called = (tmp_path / "called").read_text().splitlines()
    assert len(called) == 2
    assert all(
        call.startswith("run --rm --network none --user ") and " coral:16 " in call
        for call in called
    )


def test_compilers_that_are_not_there(
    small_bundle: Path, tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("EDGETPU_COMPILER", raising=False)
    code, _, err = run_cli("compile", small_bundle)
    assert code == 2 and "E-TOOLCHAIN" in err and "x86-64" in err
    code, _, err = run_cli("compile", small_bundle, "--edgetpu-compiler", tmp_path / "nothing")
    assert code == 2 and "no such program" in err
    code, _, err = run_cli("compile", small_bundle, "--docker", "image")
    assert code == 2 and "docker is not installed" in err
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho what is this\nexit 3\n")
    other.chmod(0o755)
    code, _, err = run_cli("compile", small_bundle, "--edgetpu-compiler", other)
    assert code == 2 and "exit code 3: what is this" in err
