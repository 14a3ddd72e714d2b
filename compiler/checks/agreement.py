"""Tells what can be read off a model's outputs: classes, text, decisions, masks, detections.

The kind of an output is told from its shape, its values and the layer that makes it. Where that
leaves a doubt nothing is said: agreement on something that is not there would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compiler.checks.channels import Channels
from compiler.checks.readings import (
    DECIDED,
    Arrays,
    Boxes,
    Classes,
    Decisions,
    Mask,
    Reading,
    Text,
    collapsed,
    frames,
)
from compiler.graph import Shape, is_constant
from compiler.ops import Moves, operator_of
from compiler.runtime.detections import Head, entry_of, head_of
from compiler.runtime.manifest import TaskEntry
from compiler.runtime.recognition import recognise

# Sizes of ImageNet's label sets: one score for each is a classifier, whatever it is called.
IMAGENET = {1000, 1001, 21841, 21842, 21843}
# Operators that give quantized values.
QUANTIZED = {"QuantizeLinear", "QLinearConv", "QLinearMatMul"}
CLASS_NAMES = ("logit", "prob", "class", "score", "label", "softmax")
# Models that read text have so many symbols (ten digits and a blank) and frames at least.
LEAST_SYMBOLS = 11
LEAST_FRAMES = 8
# A path of fewer different symbols reads nothing: all may be blanks but for an accident.
LEAST_READ = 3

# Rounding that probabilities may show: a negative one, one above 1, and a sum that is not 1.
_BELOW_ZERO = 1e-4
_ABOVE_ONE = 1e-3
_SUM_TOLERANCE = 1e-2


def readings(
    layers: Mapping[str, int],
    results: Sequence[Arrays],
    samples: Sequence[Arrays],
    told: TaskEntry | None = None,
    in_steps: bool = False,
) -> list[Reading]:
    """What can be read off the outputs of a float model, from what it gives for `samples`.

    `layers` is what `scored` finds in the model before any rewriting; scores that are no
    probabilities need it. `told` is what the file says of its outputs, which counts where values
    leave a doubt, as those of random samples do. `in_steps` says that samples are steps of
    sequences.
    """
    if not results:
        return []
    head = _detection_head(results, samples) or _told_head(results, samples, told)
    if head is not None:
        return [Boxes(head)]
    # Text is read from pictures and sound; a model of tokens gives classes for each.
    reads_numbers = all(map(_may_be_picture, samples[0].values()))
    picture = _picture_size(samples[0])
    found: list[Reading] = []
    for name in results[0]:
        arrays = [result[name] for result in results]
        if not _are_comparable(arrays):
            continue
        reading = _classes_or_text(name, arrays, layers.get(name), reads_numbers)
        if reading is not None:
            found.append(reading)
        elif _is_probability_map(arrays, picture):
            found.append(Mask(name))
        elif in_steps and _decides(arrays, samples[0]):
            found.append(Decisions(name))
    if found or told is None or told["task"] != "classify":
        return found
    scores = told["scores"]
    is_known = _are_comparable([result[scores] for result in results])
    return [Classes(scores, axis=1)] if is_known else []


def known_channels(read: Sequence[Reading]) -> dict[str, Channels]:
    """The channels of each output whose kind is known."""
    found: dict[str, Channels] = {}
    for reading in read:
        if isinstance(reading, Boxes):
            channels = Channels(reading.head.axis, reading.head.splits)
            found |= dict.fromkeys(reading.head.outputs, channels)
        elif isinstance(reading, Text):
            found[reading.output] = Channels(-1)
        elif isinstance(reading, Classes):
            found[reading.output] = Channels(reading.axis)
    return found


def task(read: Sequence[Reading], results: Sequence[Arrays]) -> TaskEntry:
    """What a model of pictures tells, for the part `vision` of its manifest.

    `read` is what `readings` finds in `results`. A classifier is one by a single output of a score
    for each class.
    """
    heads = [reading.head for reading in read if isinstance(reading, Boxes)]
    if heads:
        return {"task": "detect", "head": entry_of(heads[0])}
    scores = [reading for reading in read if isinstance(reading, Classes)]
    if len(scores) != 1 or len(read) != 1:
        return {"task": None}
    (name, axis) = (scores[0].output, scores[0].axis)
    arrays = [result[name] for result in results]
    if arrays[0].ndim != 2 or len(arrays[0]) != 1:
        return {"task": None}
    are_logits = not all(_are_probabilities_of_one(array, axis) for array in arrays)
    return {"task": "classify", "scores": name, "softmax": are_logits}


def scored(graph: ir.Graph) -> dict[str, int]:
    """How many outputs the linear layer has that makes an output of the graph, by its name."""
    found = {}
    for value in graph.outputs:
        count = _layer_outputs(value)
        if count is not None:
            found[str(value.name)] = count
    return found


def rounded(graph: ir.Graph) -> set[str]:
    """Names of the outputs whose integers are rounded floats, such as pixels and quantized values.

    They may be off by a step, as no index may.
    """
    return {str(value.name) for value in graph.outputs if _is_rounded(value)}


def class_axis(shape: Shape) -> int | None:
    """The axis that classes would be along: the only one wider than 1, else the last of up to
    three, the second of a picture's four."""
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    last = len(shape) - 1
    if len(wide) == 1:
        return wide[0]
    if len(wide) == 2 and len(shape) <= 3 and wide[-1] == last:
        return last
    if len(shape) == 4 and len(wide) == 3 and wide[0] == 1:
        return 1
    return None


def _are_comparable(arrays: Sequence[np.ndarray]) -> bool:
    """Whether an output is finite floats of one shape in all samples."""
    first = arrays[0]
    if not isinstance(first, np.ndarray) or first.dtype.kind != "f" or not first.size:
        return False
    return all(array.shape == first.shape and np.isfinite(array).all() for array in arrays)


def _classes_or_text(
    name: str, arrays: Sequence[np.ndarray], layer_outputs: int | None, reads_numbers: bool
) -> Reading | None:
    """`layer_outputs` is how many scores a linear layer gives there, where one does."""
    axis = class_axis(arrays[0].shape)
    if axis is None:
        return None
    size = arrays[0].shape[axis]
    are_distributions = all(_is_distribution(array, axis) for array in arrays)
    if not are_distributions and layer_outputs != size:
        return None
    blank = _blank_symbol(arrays) if reads_numbers else None
    if blank is not None:
        return Text(name, blank)
    # Scores of a layer may be anything, an embedding or coordinates; the name has to say more.
    is_named = any(word in name.lower() for word in CLASS_NAMES) or size in IMAGENET
    if are_distributions or is_named:
        return Classes(name, axis)
    return None


def _is_distribution(array: np.ndarray, axis: int) -> bool:
    """Whether each row is probabilities that sum up to one, or their logarithms."""
    values = array.astype(np.float64)
    if values.max(initial=-1) <= 0:
        values = np.exp(values)
    if values.min(initial=0) < -_BELOW_ZERO or values.max(initial=0) > 1 + _ABOVE_ONE:
        return False
    sums = values.sum(axis=axis)
    return bool(np.abs(sums - 1).max(initial=0) < _SUM_TOLERANCE)


def _are_probabilities_of_one(array: np.ndarray, axis: int) -> bool:
    """Whether each row is probabilities that sum up to one; their logarithms are logits."""
    return bool(array.min(initial=0) >= -_BELOW_ZERO) and _is_distribution(array, axis)


def _blank_symbol(arrays: Sequence[np.ndarray]) -> int | None:
    """The blank of a model that reads text; None for other models.

    It is the first or the last symbol, and the one that the float model gives most often: in front
    of what it reads, behind it, and between equal letters.
    """
    shape = arrays[0].shape
    if len(shape) != 3 or min(shape[:2]) != 1:
        return None
    if shape[-1] < LEAST_SYMBOLS or max(shape[:2]) < LEAST_FRAMES:
        return None
    paths = [frames(array).argmax(axis=1) for array in arrays]
    counts = np.bincount(np.concatenate(paths), minlength=shape[-1])
    blank = int(counts.argmax())
    if blank not in (0, shape[-1] - 1):
        return None
    symbols: set[int] = set()
    for path in paths:
        symbols.update(collapsed(path, blank))
    if len(symbols) < LEAST_READ:
        return None
    return blank


def _is_probability_map(arrays: Sequence[np.ndarray], picture: tuple[int, int] | None) -> bool:
    """Whether an output has a probability for each pixel of the picture that goes in."""
    if picture is None or arrays[0].shape not in ((1, 1, *picture), (1, *picture, 1)):
        return False
    return all(array.min() >= 0 and array.max() <= 1 for array in arrays)


def _decides(arrays: Sequence[np.ndarray], sample: Arrays) -> bool:
    """Whether an output is one probability, or one for each row of an input, on both sides of one
    half."""
    size = arrays[0].size
    rows = {array.shape[0] for array in sample.values() if array.ndim}
    if size != 1 and (size != arrays[0].shape[0] or size not in rows):
        return False
    values = np.concatenate([array.reshape(-1) for array in arrays])
    return bool(0 <= values.min() <= DECIDED < values.max() <= 1)


def _picture_size(sample: Arrays) -> tuple[int, int] | None:
    """(height, width) of the only input that is a picture, NCHW or NHWC."""
    shapes = [a.shape for a in sample.values() if a.ndim == 4 and _may_be_picture(a)]
    if len(shapes) != 1:
        return None
    _, second, third, last = shapes[0]
    if second in (1, 3):
        return third, last
    if last in (1, 3):
        return second, third
    return None


def _may_be_picture(array: np.ndarray) -> bool:
    """Whether an array holds floats or pixels of 8 bits; tokens have more bits."""
    return array.dtype.kind == "f" or array.dtype in (np.uint8, np.int8)


def _detection_head(results: Sequence[Arrays], samples: Sequence[Arrays]) -> Head | None:
    size = _picture_size(samples[0])
    if size is None:
        return None
    for result in results:
        are_arrays = all(isinstance(array, np.ndarray) for array in result.values())
        if result.keys() != results[0].keys() or not are_arrays:
            return None
    return recognise(results, size)


def _told_head(
    results: Sequence[Arrays], samples: Sequence[Arrays], told: TaskEntry | None
) -> Head | None:
    """The head that the file tells of; None where the outputs hold what no box has."""
    size = _picture_size(samples[0])
    if told is None or told["task"] != "detect" or size is None:
        return None
    head = head_of(told["head"], size)
    for name in head.outputs:
        if not _are_comparable([result[name] for result in results]):
            return None
    return head


def _layer_outputs(value: ir.Value) -> int | None:
    """Outputs of the linear layer that makes a value, shape changes and a bias aside."""
    node = value.producer()
    while node is not None and _keeps_scores(node):
        node = _moved_from(node)
    return operator_of(node).output_channels(node) if node is not None else None


def _is_rounded(value: ir.Value) -> bool:
    """Whether a value is made of floats by rounding, changes of its shape aside."""
    node = value.producer()
    while node is not None:
        if node.op_type in QUANTIZED or _casts_to_integers(node):
            return True
        if operator_of(node).moves < Moves.ELEMENTS:
            return False
        node = _moved_from(node)
    return False


def _casts_to_integers(node: ir.Node) -> bool:
    """Whether a node is a Cast of floats to integers; truth values are none."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    target = node.outputs[0].dtype
    if source is None or source.dtype is None or target is None:
        return False
    return source.dtype.is_floating_point() and target.is_integer()


def _keeps_scores(node: ir.Node) -> bool:
    """Whether there are as many scores behind a node as in front of it."""
    return operator_of(node).moves >= Moves.ELEMENTS or _adds_constant(node)


def _moved_from(node: ir.Node) -> ir.Node | None:
    """What makes the first input of a node that is not a constant."""
    for value in node.inputs:
        if value is not None and not is_constant(value):
            return value.producer()
    return None


def _adds_constant(node: ir.Node) -> bool:
    return node.op_type == "Add" and sum(is_constant(value) for value in node.inputs) == 1
