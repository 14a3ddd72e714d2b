"""What a bundle is compared with: the user's file, which onnxruntime reads and runs by itself.

Nothing of ours lies between, neither the raising of opsets nor wider types nor fixed shapes, so
that an error of the import shows. Where onnxruntime cannot run the file, the baseline is, in this
order

    fixed shapes   the file with the shapes that its inputs are built for
    imported       what the import makes of it; ONNX's own evaluator runs the file beside it where it can

The import has to agree with the first two. Only one of them is in memory at a time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from compiler.errors import CalibrationError, CompilerError, InternalError, ModelError, first_line
from compiler.graph import WIDENED, shape_of
from compiler.graph.reference import Reference, session_options
from compiler.importer import load as importer
from compiler.importer import onnxfile, values
from compiler.quantize.samples import Sample, Samples

FILE, FIXED, IMPORTED = "file", "fixed shapes", "imported"

# Samples on which file and import are held against each other.
CHECKED = 4
# How far outputs may be apart: the norm of the difference, as a share of the norm; of integers, the
# share that differ.
TOLERANCE = 1e-5
# The import computes in float32 what the file rounds to float16 after each operator.
HALF_TOLERANCE = 0.05
# Some models blow rounding up: inputs that differ by this much, relatively, show how far it goes.
NUDGE, HALF_NUDGE, MOST = 1e-6, 1e-3, 10
# Seconds that ONNX's evaluator, which is no fast one, gets for one sample.
EVALUATOR_SECONDS = 120

_ERROR = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_EVALUATE = Path(__file__).parent / "evaluate.py"
_FOLDER = "session.model_external_initializers_file_folder_path"

Opened = Callable[[Path, ir.Model], ort.InferenceSession | None]


@dataclass(frozen=True)
class Baseline:
    """Results for each sample, of which model (`kind`), and, where it is not the file itself, why."""

    kind: str
    results: list[Sample]
    note: str = ""


def baseline(
    path: Path, model: ir.Model, samples: Samples, progress: Callable[[], None] = lambda: None
) -> Baseline:
    """Run the model in `path`, which was imported as `model`, on samples.

    Raises InternalError for an import that computes something else, ModelError where onnxruntime
    runs neither, CalibrationError where a sample makes the model fail.
    """
    why = ""
    samples = _complete(samples, model)
    for kind, opened in ((FILE, _file), (FIXED, _fixed)):
        try:
            results = _results(opened(path, model), samples, progress)
        except Exception as error:  # whatever onnxruntime raises, the next may run
            why = why or _ERROR.sub("", first_line(error))
            continue
        if results is None:
            continue
        note = _check_import(path, model, samples, results, opened)
        if why:
            note = f"onnxruntime does not run the file as it is: {why}"
        return Baseline(kind, results, note)
    results = _imported(model, samples, progress)
    found = evaluated(path, next(iter(samples)), results[0])
    return Baseline(IMPORTED, results, f"onnxruntime does not run the file: {why}; {found}")


def outputs(path: Path, model: ir.Model, sample: Sample) -> Sample:
    """What the file gives for one sample; nothing where onnxruntime does not run it."""
    for opened in (_file, _fixed):
        try:
            results = _results(opened(path, model), [sample | values.of(model)], lambda: None)
        except Exception:
            continue
        if results is not None:
            return results[0]
    return {}


def tolerance(model: ir.Model) -> float:
    """How far an output of the file and of its import may be apart."""
    return HALF_TOLERANCE if _is_half(model) else TOLERANCE


def distance(got: Any, want: Any) -> float:
    """How far an output is from what it should be, as a share; infinite where type or shape differ.

    Both may be sequences. What is infinite or not a number has to be so in both.
    """
    if isinstance(want, list):
        if not isinstance(got, list) or len(got) != len(want):
            return np.inf
        return max(
            (distance(one, other) for one, other in zip(got, want, strict=True)), default=0.0
        )
    if not isinstance(want, np.ndarray | np.generic) or not isinstance(
        got, np.ndarray | np.generic
    ):
        return 0.0  # maps, which bundles do not give
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return np.inf
    if want.dtype.kind != "f":
        return float(np.mean(got != want)) if want.size else 0.0
    finite = np.isfinite(want)
    if (
        not np.array_equal(got[~finite], want[~finite], equal_nan=True)
        or not np.isfinite(got[finite]).all()
    ):
        return np.inf
    got, want = got[finite].astype(np.float64), want[finite].astype(np.float64)
    size = float(np.linalg.norm(want))
    apart = float(np.linalg.norm(got - want))
    return apart / size if size else np.sqrt(apart)


def _complete(samples: Samples, model: ir.Model) -> Samples:
    """Samples for the file, which takes the inputs too whose values are fixed."""
    fixed = values.of(model)
    if not fixed:
        return samples
    return Samples([lambda load=load: load() | fixed for load in samples.loaders], samples.random)  # type: ignore[misc]


def _file(path: Path, model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])


def _fixed(path: Path, model: ir.Model) -> ort.InferenceSession | None:
    """The file with the shapes of the imported inputs, None where it has these already."""
    proto = onnxfile.load(path, importer.SMALL)
    shapes = {str(v.name): shape_of(v) for v in model.graph.inputs}
    changed = False
    for value in proto.graph.input:
        if value.name not in shapes:
            continue
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if tensor.HasField("shape") and tuple(dims) == shapes[value.name]:
            continue
        changed = True
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for size in shapes[value.name]:
            tensor.shape.dim.add(dim_value=size)
    if not changed:
        return None
    options = session_options()
    options.add_session_config_entry(_FOLDER, str(path.resolve().parent))
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _results(
    session: ort.InferenceSession | None, samples: Iterable[Sample], progress: Callable[[], None]
) -> list[Sample] | None:
    if session is None:
        return None
    results = []
    for sample in samples:
        results.append(_run(session, sample))
        progress()
    return results


def _run(session: ort.InferenceSession, sample: Sample) -> Sample:
    names = [output.name for output in session.get_outputs()]
    feeds = {i.name: sample[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _imported(model: ir.Model, samples: Samples, progress: Callable[[], None]) -> list[Sample]:
    results = []
    try:
        reference = Reference(model)
    except CompilerError:
        raise
    except Exception as error:
        raise ModelError(
            f"onnxruntime cannot run the model: {first_line(error)}{_branches(model, error)}"
        ) from error
    with reference:
        for sample in samples:
            try:
                results.append(reference.run(sample))
            except Exception as error:
                hint = "; give samples with --calibration" if samples.random else ""
                raise CalibrationError(
                    f"the float model fails on a sample: {first_line(error)}{hint}"
                ) from error
            progress()
    return results


def _branches(model: ir.Model, error: Exception) -> str:
    """What to do about an If one of whose branches does not go with the shapes of the inputs."""
    deciding = values.deciding(model) if "Op (If)" in str(error) else []
    if not deciding:
        return ""
    wanted = " ".join(f"--value {name}=..." for name in deciding)
    return f"; if the other branch is the one that you need, add {wanted}"


def _check_import(
    path: Path, model: ir.Model, samples: Samples, wanted: Sequence[Sample], opened: Opened
) -> str:
    """Raises InternalError where the import gives other results than the file.

    Returns what there is to say of a file in float16, the import of which computes in float32.
    """
    few, half = list(islice(samples, CHECKED)), _is_half(model)
    over = _over(model, few, wanted, half)
    if not over:
        return ""
    rng = np.random.default_rng(0)
    nudged = _results(
        opened(path, model),
        [nudge(s, rng, HALF_NUDGE if half else NUDGE) for s in few],
        lambda: None,
    )
    assert nudged is not None
    noise = _largest(nudged, wanted, half)
    over = {name: off for name, off in over.items() if off > MOST * noise[name]}
    if not over:
        return ""
    name = max(over, key=lambda name: over[name])
    how = "another type or shape" if np.isinf(over[name]) else f"{over[name]:.1%} off"
    if half and not np.isinf(over[name]):
        shapes = {str(v.name): shape_of(v) for v in model.graph.inputs}
        texts = {name: ",".join(map(str, array.flat)) for name, array in values.of(model).items()}
        if not _over(importer.load(path, None, shapes, texts, widen=False), few, wanted, half):
            return f"the file's float16 takes output '{name}' far from what float32 gives, {how}"
    raise InternalError(
        "import", f"output '{name}' is not what onnxruntime gives for the file as it is ({how})"
    )


def _over(
    model: ir.Model, few: Sequence[Sample], wanted: Sequence[Sample], half: bool
) -> dict[str, float]:
    """The outputs of a model that are farther from what is wanted than rounding explains, and how
    far."""
    with Reference(model) as reference:
        found = [reference.run(sample) for sample in few]
    limit = HALF_TOLERANCE if half else TOLERANCE
    return {name: off for name, off in _largest(found, wanted, half).items() if off > limit}


def _largest(found: Iterable[Sample], wanted: Iterable[Sample], half: bool) -> dict[str, float]:
    """The largest distance of each output over samples."""
    largest: dict[str, float] = {}
    for got, want in zip(found, wanted, strict=False):
        for name, array in want.items():
            off = distance(*_in_range(got[name], array)) if half else distance(got[name], array)
            largest[name] = max(largest.get(name, 0.0), off)
    return largest


def _in_range(got: Any, want: Any) -> tuple[Any, Any]:
    """Without what float16 could not hold on the way."""
    if not isinstance(want, np.ndarray) or want.dtype.kind != "f" or np.shape(got) != want.shape:
        return got, want
    finite = np.isfinite(want)
    return np.where(finite, got, got.dtype.type(0)), np.where(finite, want, want.dtype.type(0))


def nudge(sample: Mapping[str, np.ndarray], rng: np.random.Generator, by: float) -> Sample:
    """A sample whose floats have relative noise."""

    def noisy(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        return np.asarray(array * (1 + by * rng.standard_normal(array.shape)), array.dtype)

    return {name: noisy(array) for name, array in sample.items()}


def _is_half(model: ir.Model) -> bool:
    """Whether the file computed in float16, which the import widens."""
    return model.metadata_props.get(WIDENED) is not None


def evaluated(path: Path, sample: Sample, wanted: Sample) -> str:
    """What ONNX's own evaluator gives for a file, in words: it agrees with `wanted`, or not, or
    cannot run it."""
    with tempfile.TemporaryDirectory(prefix="evaluator-") as folder:
        np.savez(Path(folder) / "inputs.npz", **sample)  # type: ignore[arg-type]
        command = [sys.executable, str(_EVALUATE), str(path.resolve()), folder]
        try:
            ran = subprocess.run(
                command, capture_output=True, timeout=EVALUATOR_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"ONNX's evaluator took more than {EVALUATOR_SECONDS} s for a sample"
        if ran.returncode:
            return "ONNX's evaluator does not run it either"
        with np.load(Path(folder) / "outputs.npz", allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    apart = {name: distance(wanted[name], array) for name, array in found.items() if name in wanted}
    worst = max(apart, key=lambda name: apart[name], default=None)
    if worst is None:
        return "ONNX's evaluator gives no tensors to compare"
    if apart[worst] <= TOLERANCE:
        return "ONNX's evaluator agrees with the import"
    how = "of another type or shape" if np.isinf(apart[worst]) else f"{apart[worst]:.1%} off"
    return f"ONNX's evaluator does NOT agree with the import: output '{worst}' is {how}"
