"""`check` and the rules, against what the real compiler did where that is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.groundtruth import agreement, connected, stored, tables
from compiler.device.legality import LONE, verdicts
from compiler.ops import BUILTINS, document
from compiler.ops.rules import OpInfo, TensorInfo, judge
from compiler.targets import Target
from compiler.vendor import darwinn
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]
GROUNDTRUTH = ROOT.parent / "shared" / "groundtruth"
TARGET = Target.load()


def op(
    builtin: str, *shapes: tuple[int, ...], version: int = 1, dtype: str = "int8", **options: object
) -> OpInfo:
    *inputs, output = (TensorInfo(f"t{i}", shape, dtype) for i, shape in enumerate(shapes))
    return OpInfo(builtin, version, tuple(inputs), (output,), options)


def test_page_is_current() -> None:
    assert (ROOT / "docs" / "supported-ops.md").read_text() == document.page()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (op("LOGISTIC", (1, 8), (1, 8), version=3), "version 3"),
        (op("GATHER", (1, 8), (1, 8)), "no GATHER"),
        (op("LOGISTIC", (1, 8), (1, 8), dtype="float32"), "float32"),
        (op("LOGISTIC", (1, -1), (1, 8)), "static"),
        (op("LOGISTIC", (1, 0), (1, 0)), "not empty"),
        (op("LOGISTIC", (2, 2, 3, 4), (2, 2, 3, 4)), "innermost"),
        (op("MAX_POOL_2D", (1, 4, 4, 1), (1, 2, 2, 1), fusedActivationFunction=1), "activation 1"),
        (op("RESIZE_BILINEAR", (1, 1, 1, 8), (1, 4, 4, 8)), "one pixel"),
        (op("ADD", (1, 1, 2, 3, 4), (1, 1, 2, 3, 4)), "four dimensions"),
    ],
)
def test_rules_refuse(case: OpInfo, words: str) -> None:
    assert words in str(judge(case, BUILTINS, TARGET))


def test_rules_accept() -> None:
    assert judge(op("LOGISTIC", (1, 8, 8, 4), (1, 8, 8, 4), version=2), BUILTINS, TARGET) is None


def test_one_part_or_many() -> None:
    """What follows an operator on the CPU is mapped with many parts; a QUANTIZE alone never."""
    chain = [
        op("LOGISTIC", (1, 8), (1, 8)),
        op("GATHER", (1, 8), (1, 9)),
        op("LOGISTIC", (1, 9), (1, 9)),
        op("GATHER", (1, 9), (1, 7)),
        op("QUANTIZE", (1, 7), (1, 7)),
    ]
    ops = connected(chain)
    one = verdicts(ops, TARGET, "one")
    assert [reason is None for reason in one] == [True, False, False, False, False]
    many = verdicts(ops, TARGET, "many")
    assert [reason is None for reason in many] == [True, False, True, False, False]
    assert many[-1] == LONE


def test_subgraphs_of_the_command(small_bundle: Path, run_cli: Cli) -> None:
    segment = next((small_bundle / "segments").glob("*.tflite"))
    assert run_cli("check", segment, "--subgraphs", "many")[0] == 0
    code, _, err = run_cli("check", segment, "--subgraphs", "all")
    assert code == 2 and "choose from one, many" in err


def test_segments_that_we_write_would_map(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    np.savez(
        tmp_path / "c.npz",
        x=np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32),
    )
    assert (
        run_cli("build", small_model, "-o", tmp_path / "b", "--calibration", tmp_path / "c.npz")[0]
        == 0
    )
    for segment in (tmp_path / "b" / "segments").glob("*.tflite"):
        code, out, _ = run_cli("check", segment, "--json")
        assert (
            code == 0 and json.loads(out) and all(row["reason"] is None for row in json.loads(out))
        )
        assert "would map" in run_cli("check", segment)[1]


def test_check_of_what_is_no_tflite(tmp_path: Path, run_cli: Cli) -> None:
    for content in (b"", b"hello, hello, hello", b"\x00\x00\x00\x00TFL3" + bytes(100)):
        (tmp_path / "m.tflite").write_bytes(content)
        code, _, err = run_cli("check", tmp_path / "m.tflite")
        assert code == 2 and "not a TFLite model" in err
    assert run_cli("check", tmp_path / "none.tflite")[0] == 2


at_hand = pytest.mark.skipif(not GROUNDTRUTH.is_dir(), reason="needs ../shared/groundtruth")


@at_hand
def test_compiled_files_are_read(run_cli: Cli) -> None:
    """Cached and streamed parameters, and operators on the CPU, of every compiled model."""
    files = sorted(GROUNDTRUTH.glob("pairs/*/model_edgetpu.tflite"))
    known = {p["name"]: p for p in json.loads((GROUNDTRUTH / "pairs.json").read_text())}
    assert files
    for file in files:
        packages, on_cpu = darwinn.read(file)
        pair = known[file.parent.name]
        assert sum(p.cached for p in packages) == pair["cached_bytes"]
        assert sum(p.streamed for p in packages) == pair["streamed_bytes"]
        assert sum(on_cpu.values()) == pair["n_cpu"]
        assert all(e.instructions for p in packages for e in p.executables)
    code, out, _ = run_cli("inspect", files[0])
    assert code == 0 and "streamed at each run" in out
    code, out, _ = run_cli("inspect", files[0], "--json")
    assert code == 0 and json.loads(out)["packages"][0]["executables"]


def test_plain_files_are_not_compiled_ones(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    assert run_cli("build", small_model, "-o", tmp_path / "b")[0] == 0
    code, _, err = run_cli("inspect", tmp_path / "b" / "segments" / "01.tflite")
    assert code == 2 and "not compiled for the Edge TPU" in err


@at_hand
def test_agrees_with_the_real_compiler() -> None:
    agree, total, lines = agreement(GROUNDTRUTH)
    assert agree / total >= 0.998, lines


@at_hand
def test_agrees_with_the_tables_of_logs() -> None:
    agree, total, lines, without = tables(GROUNDTRUTH)
    assert total > 9000 and agree == total and lines == []
    assert [line for line in without if line.endswith("not drawn")] == []


@at_hand
def test_parameter_bytes_are_those_of_the_real_compiler() -> None:
    """Of every compiled model, to the byte."""
    rows = stored(GROUNDTRUTH)
    assert len(rows) >= 49
    different = [row for row in rows if row[1] != row[2]]
    assert not different
