"""How right a model is about labelled pictures: the share of right classes, or mean average
precision of boxes. The float model and the bundle are measured by the same steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compiler.checks.labelled import OPTION, Labelled
from compiler.checks.readings import LEAST_RANKED, NEAR, mean_average_precision
from compiler.errors import OptionError
from compiler.runtime.detections import Detections
from compiler.runtime.manifest import AccuracyEntry
from compiler.runtime.pictures import PictureError, Prepared
from compiler.runtime.vision import Prediction, Vision

# Of fewer classes, being among the five best says nothing.
_MANY = 2 * NEAR + 1

Run = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def accuracy(
    vision: Vision,
    pictures: Sequence[Labelled],
    run: Run,
    progress: Callable[[], None] = lambda: None,
) -> AccuracyEntry:
    """What `run` makes of pictures, read as `vision` does, against their labels.

    `progress` is called after each picture. Raises OptionError for a picture that cannot be read.
    """
    ranks: list[int] = []
    has_many = False
    found: list[Detections] = []
    truth: list[Detections] = []
    for picture in pictures:
        prepared = _prepared(vision, picture)
        outputs = run(vision.inputs(prepared))
        if picture.boxes is None:
            predictions = vision.read(outputs, prepared, most=_MANY)
            has_many = len(predictions) == _MANY
            ranks.append(_rank(predictions, int(picture.classes[0])))
        else:
            predictions = vision.read(outputs, prepared, least=LEAST_RANKED)
            found.append(_detections(predictions))
            truth.append(_objects(picture, prepared))
        progress()
    if truth:
        return {"map50": round(mean_average_precision(found, truth), 4)}
    entry: AccuracyEntry = {"top1": round(sum(rank == 0 for rank in ranks) / len(ranks), 4)}
    if has_many:
        entry["top5"] = round(sum(rank < NEAR for rank in ranks) / len(ranks), 4)
    return entry


def _prepared(vision: Vision, picture: Labelled) -> Prepared:
    try:
        return vision.prepare(picture.path)
    except PictureError as error:
        raise OptionError(f"{picture.path}: {error}", OPTION) from error


def _rank(predictions: Sequence[Prediction], number: int) -> int:
    """The place of a class among the best ones; behind them where it is none of these."""
    best = [prediction.index for prediction in predictions]
    return best.index(number) if number in best else len(best)


def _detections(predictions: Sequence[Prediction]) -> Detections:
    """Predictions with boxes, in pixels of the picture."""
    boxes = np.array([prediction.box for prediction in predictions], np.float64).reshape(-1, 4)
    scores = np.array([prediction.score for prediction in predictions], np.float64)
    classes = np.array([prediction.index for prediction in predictions], np.int64)
    return Detections(boxes, scores, classes)


def _objects(picture: Labelled, prepared: Prepared) -> Detections:
    """The labelled objects, likewise."""
    assert picture.boxes is not None
    height, width = prepared.size
    boxes = picture.boxes * [width, height, width, height]
    return Detections(boxes, np.ones(len(boxes)), picture.classes)
