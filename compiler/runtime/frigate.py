"""Speaks the protocol of Frigate's ZMQ detector, so that Frigate sees a bundle as one detector,
whatever segments and Edge TPUs it runs on.

Frigate (frigate/detectors/plugins/zmq_ipc.py, commit 3184571) sends a header in JSON and the bytes
of a picture, and waits for a header and 20 rows of class, score, top, left, bottom and right. Sides
are shares of the picture, rows that stay are zeros, and the best come first, as Frigate stops at
the first that scores too low. Before its first picture it asks for its model, and sends the file
where that is missing: the bundle is the model, so none is.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compiler.runtime.runner import Runner
from compiler.runtime.vision import Prediction, VisionError

ROWS = 20
COLUMNS = 6
_HEADER = json.dumps({"shape": [ROWS, COLUMNS], "dtype": "float32"}).encode()
_READY = json.dumps({"model_available": True, "model_loaded": True}).encode()
_NOT_SAVED = json.dumps({"model_saved": False, "model_loaded": True}).encode()
# A complaint is told again after so long, so that a detector that fails does not go unnoticed.
_SECONDS_BETWEEN = 60.0
# Different complaints that are remembered; clients could make up any number.
_MOST_COMPLAINTS = 20

Tell = Callable[[str], None]


class RequestError(ValueError):
    """A request that is none of a detector's, with what to change in Frigate's configuration."""


class FrigateDetector:
    """Answers requests with a bundle that detects objects.

    What is wrong with a request, or with the bundle, goes to `tell`, each text once a minute; the
    answer is then that nothing was detected, as Frigate itself takes errors. Raises VisionError for
    other bundles.
    """

    def __init__(self, runner: Runner, tell: Tell) -> None:
        if runner.vision.task != "detect":
            raise VisionError("the bundle is no detector whose boxes are recognised")
        self._runner = runner
        self._tell = tell
        self._told: dict[str, float] = {}

    async def answer(self, frames: Sequence[bytes]) -> list[bytes]:
        """The frames of an answer to those of a request."""
        try:
            header = _header(frames)
            if header.get("model_request"):
                return [_READY]
            if header.get("model_data"):
                return [_NOT_SAVED]
            rows = await self._rows(picture_of(header, frames))
        except Exception as error:  # one request that fails must not end the detector
            self._complain(str(error))
            rows = np.zeros((ROWS, COLUMNS), np.float32)
        return [_HEADER, rows.tobytes()]

    async def _rows(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        vision = self._runner.vision
        prepared = await asyncio.to_thread(vision.prepare, Image.fromarray(pixels))
        outputs = await self._runner.run_async(self._runner.first_step(vision.inputs(prepared)))
        found = await asyncio.to_thread(vision.read, outputs, prepared)
        return rows_of(found, prepared.size)

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told.get(text, -_SECONDS_BETWEEN) < _SECONDS_BETWEEN:
            return
        if text not in self._told and len(self._told) == _MOST_COMPLAINTS:
            del self._told[min(self._told, key=self._told.__getitem__)]
        self._told[text] = now
        self._tell(text)


def _header(frames: Sequence[bytes]) -> dict[str, Any]:
    try:
        header = json.loads(frames[0])
    except (IndexError, ValueError, RecursionError) as error:
        raise RequestError("a request does not begin with a header in JSON") from error
    if not isinstance(header, dict):
        raise RequestError("a request does not begin with a header in JSON")
    return header


def picture_of(header: dict[str, Any], frames: Sequence[bytes]) -> np.ndarray:
    """The pixels [H, W, 3] of a request. Raises RequestError."""
    shape = header.get("shape")
    dtype = header.get("dtype")
    if dtype != "uint8":
        raise RequestError(f"a picture is {_short(dtype)}, not uint8: set input_dtype: int")
    is_shape = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not isinstance(shape, list) or not is_shape or len(shape) != 4 or shape[0] != 1:
        raise RequestError(f"a picture of shape {_short(shape)} is none of three colours")
    if len(frames) != 2 or len(frames[1]) != math.prod(shape):
        raise RequestError(f"a picture of shape {_short(shape)} comes with other bytes")
    pixels = np.frombuffer(frames[1], np.uint8).reshape(shape[1:])
    if shape[3] == 3:
        return pixels
    if shape[1] == 3:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))
    raise RequestError(
        f"a picture of shape {_short(shape)} is none of three colours: set input_pixel_format: rgb"
    )


def rows_of(found: Sequence[Prediction], size: tuple[int, int]) -> np.ndarray:
    """Objects in a picture of `size` (height, width) as Frigate reads them, best first."""
    height, width = size
    rows = np.zeros((ROWS, COLUMNS), np.float32)
    for row, prediction in zip(rows, found, strict=False):
        assert prediction.box is not None
        left, top, right, bottom = prediction.box
        sides = top / height, left / width, bottom / height, right / width
        row[:] = prediction.index, prediction.score, *sides
    return rows


def _short(value: object) -> str:
    return str(value)[:40]


async def listen(
    endpoint: str, detector: FrigateDetector, most_bytes: int, at_once: int, ready: Tell
) -> None:
    """Answer requests at a ZeroMQ endpoint until this is cancelled.

    Frames of more than `most_bytes` end their connection; `at_once` requests are answered at the
    same time, others wait. `ready` gets the endpoint once it listens. Raises OSError where it
    cannot.
    """
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    # A ROUTER answers many REQ sockets, each in its own time; a REP would take one at a time.
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    socket.setsockopt(zmq.LINGER, 0)
    free = asyncio.Semaphore(at_once)
    tasks: set[asyncio.Task[None]] = set()

    async def respond(envelope: list[bytes], frames: list[bytes]) -> None:
        try:
            await socket.send_multipart([*envelope, *await detector.answer(frames)])
        finally:
            free.release()

    try:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from error
        ready(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        while True:
            await free.acquire()
            client, *rest = await socket.recv_multipart()
            # A REQ socket puts an empty frame in front of what it sends, and wants it back.
            if not rest or rest[0]:
                free.release()
                continue
            task = asyncio.create_task(respond([client, b""], rest[1:]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        context.destroy(linger=0)
