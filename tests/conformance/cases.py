"""ONNX's own backend tests, and what becomes of one: built, run and compared with the outputs that
ONNX expects."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from compiler.checks.difference import Difference
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import CalibrationError, CompilerError
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Pipeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

# "constant" are the node tests with the values of all inputs but the first in the model, as weights
# are.
KINDS = ("node", "constant", "pytorch-converted", "pytorch-operator", "simple")
# How well graphs are cut is tested elsewhere: a short search is enough for what must be right of
# any cut.
BRIEF = PartitionOptions(seconds=0.1, place="tpu")
LEAST_DB = (
    20.0  # of outputs behind an int8 segment; those of the host are held to ONNX's own tolerances
)


@dataclass(frozen=True)
class Outcome:
    """`status` is "tpu" or "host" by where the arithmetic ran, "refused", "onnxruntime" where that
    gives something else than ONNX expects and we the same, or "wrong"; `detail` says why."""

    status: str
    detail: str = ""


@cache
def cases(kind: str) -> dict[str, Any]:
    if kind == "constant":
        found = [_with_constants(case) for case in cases("node").values()]
        return {case.name: case for case in found if case is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind=kind)}


def _with_constants(case: Any) -> Any:
    """A node test whose operands are constants, None where there are none."""
    arrays = case.data_sets[0][0] if case.data_sets else []
    inputs = [value.name for value in case.model.graph.input]
    if _arrays(inputs, arrays) is None or len(inputs) < 2:
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    del proto.graph.input[1:]
    tensors = [
        numpy_helper.from_array(np.asarray(a), n) for n, a in zip(inputs, arrays, strict=True)
    ]
    proto.graph.initializer.extend(tensors[1:])
    data_sets = [([arrays[0]], case.data_sets[0][1])]
    return dataclasses.replace(case, name=f"{case.name}_constant", model=proto, data_sets=data_sets)


def model(case: Any) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def data(case: Any) -> tuple[list[Any], list[Any]] | None:
    """The first (inputs, outputs) of a case; None where they are not all tensors."""
    if case.model is not None:
        return case.data_sets[0] if case.data_sets else None
    folder = Path(case.model_dir) / "test_data_set_0"

    def read(pattern: str) -> list[np.ndarray]:
        files = sorted(folder.glob(pattern), key=lambda p: int(p.stem.split("_")[-1]))
        return [numpy_helper.to_array(onnx.load_tensor(str(p))) for p in files]

    try:
        return read("input_*.pb"), read("output_*.pb")
    except Exception:
        return None


def outcome(case: Any, folder: Path) -> Outcome:
    """Build a case, with its own inputs as samples or else random ones, and run it."""
    proto, found = model(case), data(case)
    path, output = folder / "model.onnx", folder / "bundle"
    onnx.save(proto, path)
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in constants]
    inputs = None if found is None else _arrays(names, found[0])
    try:
        try:
            building.build(
                path,
                output,
                BuildOptions(calibration=_saved(inputs, folder), partitioning=BRIEF),
            )
        except CalibrationError:
            inputs = None
            building.build(path, output, BuildOptions(partitioning=BRIEF))
    except CompilerError as error:
        if error.exit_code != 2 or "\n" in str(error):
            raise
        return Outcome("refused", str(error))
    manifest = json.loads((output / "manifest.json").read_text())
    place = "tpu" if any(s["device"] == "tpu" for s in manifest["segments"]) else "host"
    if inputs is None or found is None:
        entries = manifest["quality"]["outputs"].items()
        figures = {n: e["plain_sqnr_db"] for n, e in entries if "plain_sqnr_db" in e}
        low = {n: db for n, db in figures.items() if db < LEAST_DB}
        return Outcome("wrong", f"on random inputs {low} dB") if low else Outcome(place)
    results = Pipeline(Bundle.open(output)).run(inputs)
    wrong = [
        _difference(place, case, results[o.name], want)
        for o, want in zip(proto.graph.output, found[1], strict=True)
    ]
    first = next((text for text in wrong if text), "")
    if not first:
        return Outcome(place)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run([o.name for o in proto.graph.output], inputs)
    same = all(
        not _difference(place, case, results[o.name], a)
        for o, a in zip(proto.graph.output, theirs, strict=True)
    )
    return Outcome("onnxruntime" if same else "wrong", first)


def _arrays(names: list[str], arrays: list[Any]) -> dict[str, np.ndarray] | None:
    if len(names) != len(arrays) or not all(isinstance(a, np.ndarray | np.generic) for a in arrays):
        return None
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}


def _saved(inputs: dict[str, np.ndarray] | None, folder: Path) -> Path | None:
    if not inputs:
        return None
    path = folder / "sample.npz"
    np.savez(path, **inputs)  # type: ignore[arg-type]
    return path


def _difference(place: str, case: Any, got: Any, want: Any) -> str:
    if not isinstance(got, np.ndarray) or not isinstance(want, np.ndarray | np.generic):
        return ""  # sequences: that they come is all that is compared
    want = np.asarray(want)
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, expected {list(want.shape)}"
    if got.dtype.kind != "f" or place == "host":
        with np.errstate(all="ignore"):
            close = got.dtype.kind not in "fiub" or np.allclose(
                got, want, case.rtol, case.atol, equal_nan=True
            )
        return "" if close else "differs from what ONNX expects"
    difference = Difference()
    difference.add(got, want)
    return "" if difference.plain_sqnr_db >= LEAST_DB else f"{difference.plain_sqnr_db} dB"
