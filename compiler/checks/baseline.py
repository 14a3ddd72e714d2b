"""What a bundle is compared with: the user's file, which onnxruntime reads and runs by itself.

Nothing of ours lies between, neither the raising of opsets nor wider types nor fixed shapes, so
that an error of the import shows. Where onnxruntime cannot run the file, the baseline is, in this
order

    fixed shapes   the file with the shapes that its inputs are built for
    imported       what the import makes of it; ONNX's own evaluator runs the file too where it can

The import has to agree with the first two. Only one of them is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from compiler import importer
from compiler.checks.distance import distance, nudge
from compiler.checks.evaluator import evaluated
from compiler.errors import CalibrationError, CompilerError, InternalError, ModelError, first_line
from compiler.graph import WIDENED
from compiler.graph.reference import Reference, open_session, session_options
from compiler.importer import cutting, onnxfile, pixels, values
from compiler.quantize.samples import Sample, Samples

# Kinds of baselines, as the manifest has them.
FILE = "file"
FIXED = "fixed shapes"
IMPORTED = "imported"

# Samples on which file and import are held against each other.
CHECKED = 4
# How far an output of the import may be from that of the file, as `distance` measures it. Both are
# float32 on the same kernels; only the order of additions may differ.
TOLERANCE = 1e-5
# Where both compute in float16 (a file with subgraphs is not widened), their outputs are rounded to
# steps of 2^-10 of a value, and sums in another order may be a step or two apart.
HALF_STEPS = 4 * float(np.finfo(np.float16).eps)
# The import computes in float32 what the file rounds to float16 after each operator.
HALF_TOLERANCE = 0.05
# Some models amplify rounding. How far it goes shows by inputs with this much relative noise, a few
# steps of float32 and one of float16; outputs may then be MOST times as far apart.
NUDGE = 1e-6
HALF_NUDGE = 1e-3
MOST = 10

# What onnxruntime puts in front of every message.
_ERROR_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
# Where a session that is opened from bytes finds external weights.
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"

# Opens the file in one of two ways; None where it gives nothing that is not there already.
Opener = Callable[[Path, ir.Model], ort.InferenceSession | None]


@dataclass(frozen=True)
class Baseline:
    """Results for each sample, of which model they are (`kind`), and why where it is not the file
    itself."""

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
    given = _as_in_file(samples, model)
    for kind, open_file in _OPENERS.items():
        try:
            results = _run_file(open_file(path, model), given, progress)
        except Exception as error:  # whatever onnxruntime raises, the next may run
            why = why or _ERROR_PREFIX.sub("", first_line(error))
            continue
        if results is None:
            continue
        note = _check_import(path, model, samples, results, open_file)
        if why:
            note = f"onnxruntime does not run the file as it is: {why}"
        return Baseline(kind, results, note)
    results = _run_imported(model, samples, progress)
    second_opinion = _second_opinion(path, model, given, results)
    note = f"onnxruntime does not run the file: {why}; {second_opinion}"
    return Baseline(IMPORTED, results, note)


def _second_opinion(path: Path, model: ir.Model, given: Samples, results: Sequence[Sample]) -> str:
    """What ONNX's own evaluator says of the first result; it runs whole files alone."""
    if cutting.of(model):
        return "ONNX's own evaluator was not asked, as it does not end files at other tensors"
    return evaluated(path, next(iter(given)), results[0], TOLERANCE)


def outputs(path: Path, model: ir.Model, sample: Sample) -> Sample:
    """What the file gives for one sample; nothing where onnxruntime does not run it."""
    for open_file in _OPENERS.values():
        try:
            given = pixels.as_in_file(model, sample) | values.of(model)
            results = _run_file(open_file(path, model), [given])
        except Exception:  # whatever onnxruntime raises, the next may run
            continue
        if results is not None:
            return results[0]
    return {}


def kind_of(path: Path, model: ir.Model, sample: Sample) -> str:
    """The kind of baseline that runs a sample."""
    for kind, open_file in _OPENERS.items():
        try:
            results = _run_file(
                open_file(path, model), _as_in_file(Samples([lambda: sample]), model)
            )
        except Exception:  # whatever onnxruntime raises, the next may run
            continue
        if results is not None:
            return kind
    return IMPORTED


@contextmanager
def running(path: Path, model: ir.Model, kind: str) -> Iterator[Callable[[Sample], Sample]]:
    """What runs samples of a model, one at a time, as the baseline of that `kind` did."""
    if kind == IMPORTED:
        with _reference(model) as reference:
            yield reference.run
        return
    session = _OPENERS[kind](path, model)

    def run(sample: Sample) -> Sample:
        (given,) = _as_in_file(Samples([lambda: sample]), model)
        results = _run_file(session, [given])
        assert results is not None
        return results[0]

    yield run


def tolerance(model: ir.Model) -> float:
    """How far an output of the file and of its import may be apart."""
    return HALF_TOLERANCE if _is_half(model) else TOLERANCE


def _is_half(model: ir.Model) -> bool:
    """Whether the file computed in float16, which the import widens."""
    return model.metadata_props.get(WIDENED) is not None


def _as_in_file(samples: Samples, model: ir.Model) -> Samples:
    """Samples for the file, which takes floats for pixels, and the inputs too whose values are
    fixed."""
    fixed = values.of(model)

    def completed(load: Callable[[], Sample]) -> Callable[[], Sample]:
        return lambda: pixels.as_in_file(model, load()) | fixed

    return Samples([completed(load) for load in samples.loaders], samples.random)


def _open_file(path: Path, model: ir.Model) -> ort.InferenceSession:
    """The file itself; where the user ended the model elsewhere, with these outputs instead of its
    own."""
    outputs = cutting.of(model)
    if not outputs:
        return open_session(path)
    proto = onnxfile.load(path, importer.SMALL)
    cutting.cut(proto, outputs)
    return _open_message(proto, path)


def _open_with_fixed_shapes(path: Path, model: ir.Model) -> ort.InferenceSession | None:
    """The file with the shapes of the imported inputs, None where it has these already."""
    proto = onnxfile.load(path, importer.SMALL)
    outputs = cutting.of(model)
    if outputs:
        cutting.cut(proto, outputs)
    shapes = pixels.file_shapes(model)
    has_changed = False
    for value in proto.graph.input:
        shape = shapes.get(value.name)
        if shape is not None and _declared_shape(value) != shape:
            has_changed = True
            _declare_shape(value, shape)
    return _open_message(proto, path) if has_changed else None


def _open_message(proto: onnx.ModelProto, path: Path) -> ort.InferenceSession:
    """A message made from the file `path`, which its weights are still in."""
    options = session_options()
    options.add_session_config_entry(_FOLDER_KEY, str(path.resolve().parent))
    return open_session(proto.SerializeToString(), options)


_OPENERS: dict[str, Opener] = {FILE: _open_file, FIXED: _open_with_fixed_shapes}


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def _declare_shape(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    tensor.shape.SetInParent()  # so that a number has a shape too, without dimensions
    for size in shape:
        tensor.shape.dim.add(dim_value=size)


def _run_file(
    session: ort.InferenceSession | None,
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> list[Sample] | None:
    """What a session gives for each sample.

    Callers keep no session: it leaves the memory here, before the next one is opened.
    """
    if session is None:
        return None
    names = [output.name for output in session.get_outputs()]
    inputs = [value.name for value in session.get_inputs()]
    results = []
    for sample in samples:
        feeds = {name: sample[name] for name in inputs}
        results.append(dict(zip(names, session.run(names, feeds), strict=True)))
        progress()
    return results


def _run_imported(model: ir.Model, samples: Samples, progress: Callable[[], None]) -> list[Sample]:
    results = []
    with _reference(model) as reference:
        for sample in samples:
            try:
                results.append(reference.run(sample))
            except Exception as error:
                raise failure(samples.random, error) from error
            progress()
    return results


def _reference(model: ir.Model) -> Reference:
    """The imported model in onnxruntime. Raises ModelError where that cannot load it."""
    try:
        return Reference(model)
    except CompilerError:
        raise
    except Exception as error:
        why = f"{first_line(error)}{_branch_advice(model, error)}"
        raise ModelError(f"onnxruntime cannot run the model: {why}") from error


def failure(is_random: bool, error: Exception) -> CalibrationError:
    """Of a model that onnxruntime loads and that then fails: which of the two is to blame cannot be
    told."""
    where = "random data" if is_random else "a sample"
    advice = "give samples to calibrate on" if is_random else "check the samples"
    return CalibrationError(
        f"the float model fails on {where}: {first_line(error)}; if values like these cannot be "
        f"its input, {advice}; else the model itself is broken"
    )


def _branch_advice(model: ir.Model, error: Exception) -> str:
    """What to do about an If one of whose branches does not go with the shapes of the inputs."""
    if "Op (If)" not in str(error):
        return ""
    deciding = values.deciding(model)
    if not deciding:
        return ""
    wanted = " ".join(f"--value {name}=..." for name in deciding)
    return f"; if the other branch is the one that you need, add {wanted}"


def _check_import(
    path: Path, model: ir.Model, samples: Samples, wanted: Sequence[Sample], open_file: Opener
) -> str:
    """Raises InternalError where the import gives other results than the file.

    Returns what there is to say of a file in float16, the import of which computes in float32.
    """
    few = list(islice(samples, CHECKED))
    given = [pixels.as_in_file(model, sample) | values.of(model) for sample in few]
    is_half = _is_half(model)
    suspects = _too_far(model, few, wanted, is_half)
    if suspects:
        amplified = _amplified_rounding(path, model, given, wanted, open_file)
        suspects = {name: off for name, off in suspects.items() if off > MOST * amplified[name]}
    if not suspects:
        return ""
    name = max(suspects, key=lambda name: suspects[name])
    is_other_form = np.isinf(suspects[name])
    how = "another type or shape" if is_other_form else f"{suspects[name]:.1%} off"
    if is_half and not is_other_form:
        # Where the same import without wider types agrees, float16 itself makes the difference.
        unwidened = _imported_in_half(path, model)
        if not _too_far(unwidened, given, wanted, is_half):
            return f"the file's float16 takes output '{name}' far from what float32 gives, {how}"
    raise InternalError(
        "import", f"output '{name}' is not what onnxruntime gives for the file as it is ({how})"
    )


def _imported_in_half(path: Path, model: ir.Model) -> ir.Model:
    shapes = pixels.file_shapes(model)
    fixed = values.texts_of(model)
    reading = importer.Reading(cutting.of(model), widen=False)
    return importer.load(path, None, shapes, fixed, reading)


def _amplified_rounding(
    path: Path, model: ir.Model, few: Sequence[Sample], wanted: Sequence[Sample], open_file: Opener
) -> dict[str, float]:
    """How far each output of the file moves when its inputs move by about their rounding."""
    is_half = _is_half(model)
    rng = np.random.default_rng(0)
    by = HALF_NUDGE if is_half else NUDGE
    nudged = _run_file(open_file(path, model), [nudge(sample, rng, by) for sample in few])
    assert nudged is not None
    return _largest_distances(nudged, wanted, is_half)


def _too_far(
    model: ir.Model, few: Sequence[Sample], wanted: Sequence[Sample], is_half: bool
) -> dict[str, float]:
    """The outputs of a model that are farther from what is wanted than the tolerance, and how
    far."""
    with Reference(model) as reference:
        found = [reference.run(sample) for sample in few]
    distances = _largest_distances(found, wanted, is_half)
    suspects = {}
    for name, off in distances.items():
        limit = HALF_TOLERANCE if is_half else TOLERANCE
        if _is_float16(wanted[0][name]):
            limit = max(limit, HALF_STEPS)
        if off > limit:
            suspects[name] = off
    return suspects


def _is_float16(result: Any) -> bool:
    return isinstance(result, np.ndarray | np.generic) and result.dtype == np.float16


def _largest_distances(
    found: Iterable[Sample], wanted: Iterable[Sample], is_half: bool
) -> dict[str, float]:
    """The largest distance of each output over samples; `found` may be of the first few only."""
    largest: dict[str, float] = {}
    for got, want in zip(found, wanted, strict=False):
        for name, array in want.items():
            pair = (got[name], array)
            if is_half:
                pair = _in_range(*pair)
            largest[name] = max(largest.get(name, 0.0), distance(*pair))
    return largest


def _in_range(got: Any, want: Any) -> tuple[Any, Any]:
    """Zero in both where the file's float16 overflowed on the way."""
    if not isinstance(want, np.ndarray) or want.dtype.kind != "f" or np.shape(got) != want.shape:
        return got, want
    is_finite = np.isfinite(want)
    return np.where(is_finite, got, got.dtype.type(0)), np.where(
        is_finite, want, want.dtype.type(0)
    )
