"""Frigate's ZMQ detector, asked as its plugin asks (frigate/detectors/plugins/zmq_ipc.py, commit
3184571, and an older one, 240f998, which asks for no model)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from compiler.runtime import Bundle, Runner, frigate
from compiler.runtime.frigate import FrigateDetector
from compiler.runtime.vision import VisionError
from tests import eyes
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]
SHARES = [0.0, 0.25, 0.5, 0.5]  # of the red square: top, left, bottom, right


def frame(dtype: Any = np.uint8) -> np.ndarray:
    """What Frigate cuts out of a camera's picture: [1, H, W, 3]."""
    return np.asarray(eyes.street())[None].astype(dtype)


def request(tensor: np.ndarray) -> list[bytes]:
    header = {"shape": list(tensor.shape), "dtype": tensor.dtype.name, "model_type": "yologeneric"}
    return [json.dumps(header).encode(), tensor.tobytes(order="C")]


def decoded(frames: list[bytes]) -> np.ndarray:
    """As the plugin decodes an answer of two frames."""
    header = json.loads(frames[0].decode())
    return np.frombuffer(frames[1], np.dtype(header["dtype"])).reshape(tuple(header["shape"]))


class Asked:
    """A detector in this process, and what it complains of."""

    def __init__(self, runner: Runner) -> None:
        self.complaints: list[str] = []
        self.detector = FrigateDetector(runner, self.complaints.append)

    def __call__(self, *frames: bytes) -> list[bytes]:
        return asyncio.run(self.detector.answer(frames))


@pytest.fixture(scope="module")
def runner(detector_bundle: Path) -> Iterator[Runner]:
    # Two simulated Edge TPUs: its segments run in a pipeline.
    with Runner(Bundle.open(detector_bundle), "sim:2") as opened:
        yield opened


def test_rows_are_class_score_and_shares_best_first(runner: Runner) -> None:
    asked = Asked(runner)
    rows = decoded(asked(*request(frame())))
    assert rows.shape == (20, 6) and rows.dtype == np.float32
    assert rows[:2, 0].tolist() == [0, 1] and rows[0, 1] > rows[1, 1] > 0.7
    assert rows[0, 2:] == pytest.approx(SHARES, abs=1e-3)
    assert not rows[2:].any() and not asked.complaints
    # input_tensor: nchw
    nchw = np.ascontiguousarray(frame().transpose(0, 3, 1, 2))
    assert (decoded(asked(*request(nchw))) == rows).all()


def test_the_model_is_there_already(runner: Runner) -> None:
    asked = Asked(runner)
    (answer,) = asked(json.dumps({"model_request": True, "model_name": "yolo.onnx"}).encode())
    assert json.loads(answer) == {"model_available": True, "model_loaded": True}
    header = json.dumps({"model_data": True, "model_name": "yolo.onnx"}).encode()
    (answer,) = asked(header, b"model")
    assert json.loads(answer)["model_saved"] is False


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (request(frame(np.float32)), "a picture is float32, not uint8: set input_dtype: int"),
        (request(frame()[:, :, :, :1]), "set input_pixel_format: rgb"),
        (request(frame()[0]), "is none of three colours"),
        ([request(frame())[0], b"few"], "comes with other bytes"),
        ([request(frame())[0]], "comes with other bytes"),
        ([b'{"shape": [1, 1e99, 1, 3], "dtype": "uint8"}', b""], "is none of three colours"),
        ([b'{"shape": [1, -4, -4, 3], "dtype": "uint8"}', b"0" * 48], "none of three colours"),
        ([b"{", b""], "does not begin with a header"),
        ([b"[]", b""], "does not begin with a header"),
        ([], "does not begin with a header"),
    ],
)
def test_a_bad_request_finds_nothing_and_is_told_once(
    frames: list[bytes], complaint: str, runner: Runner
) -> None:
    asked = Asked(runner)
    for _ in range(2):
        assert not decoded(asked(*frames)).any()
    (told,) = asked.complaints
    assert complaint in told


def test_a_bundle_that_fails_is_told_every_minute(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise RuntimeError("TPU 0 was lost")

    now = 0.0
    monkeypatch.setattr(runner, "run_async", failing)
    monkeypatch.setattr(frigate.time, "monotonic", lambda: now)
    asked = Asked(runner)
    for seconds in (0.0, 1.0, 59.0, 61.0, 62.0):
        now = seconds
        assert not decoded(asked(*request(frame()))).any()
    assert asked.complaints == ["TPU 0 was lost"] * 2


def test_strangers_cannot_fill_the_memory_with_complaints(runner: Runner) -> None:
    asked = Asked(runner)
    for size in range(1, 60):
        header = {"shape": [1, size, 1, 1], "dtype": "uint8"}
        asked(json.dumps(header).encode(), bytes(size))
    assert len(asked.detector._told) == 20


def test_other_bundles_are_no_detectors(classifier_bundle: Path) -> None:
    with Runner(Bundle.open(classifier_bundle)) as runner, pytest.raises(VisionError):
        FrigateDetector(runner, print)


@pytest.fixture
def endpoint(detector_bundle: Path, tmp_path: Path) -> Iterator[str]:
    """`serve --zmq` in a process of its own."""
    place = f"ipc://{tmp_path}/detector"
    command = [sys.executable, "-m", "compiler", "serve", str(detector_bundle), "--zmq", place]
    with subprocess.Popen(
        [*command, "--devices", "sim:2", "--max-body", "100000"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert "for Frigate" in process.stdout.readline()
        yield place
        process.terminate()


def asks(endpoint: str) -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


def test_several_cameras_are_served(endpoint: str) -> None:
    sockets = [asks(endpoint) for _ in range(6)]
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.connect(endpoint)
    stranger.send_multipart([b"no REQ socket", b""])
    too_large = asks(endpoint)
    too_large.send(bytes(200_000))
    for socket in sockets:
        socket.send_multipart(request(frame()))
    for socket in sockets:
        rows = decoded(socket.recv_multipart())
        assert rows[0, 2:] == pytest.approx(SHARES, abs=1e-3)
    for socket in (*sockets, stranger, too_large):
        socket.close()


def test_what_cannot_be_served_is_one_line(
    detector_bundle: Path, classifier_bundle: Path, run_cli: Cli
) -> None:
    code, _, err = run_cli("serve", detector_bundle, "--zmq", "ipc:///no/such/folder")
    assert code == 2 and "--zmq ipc:///no/such/folder: cannot be listened on" in err
    code, _, err = run_cli("serve", classifier_bundle, "--zmq", "tcp://*:*")
    assert code == 2 and "no detector whose boxes are recognised" in err
    assert "other machines may reach it" in err
