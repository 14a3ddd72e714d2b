"""/v1/vision/..., asked as DeepStack's clients ask, and by clients that behave badly.

Conventions: Frigate's plugin (frigate/detectors/plugins/deepstack.py, commit 03222bf), the client
of Home Assistant's integration (robmarkcole/deepstack-python, commit 3a156f1), and the server
itself (johnolafenwa/DeepStack, server/server.go, commit eb465e7).
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from compiler.cli.serve import PICTURE_BYTES, _bind
from compiler.runtime import Bundle, Runner
from compiler.runtime.pictures import MOST_PIXELS
from compiler.runtime.server import Limits, VisionServer, Web, application
from compiler.runtime.server.endpoints import BODY_TYPES, CLASSIFY, DEEPSTACK, DETECT, endpoints
from compiler.runtime.server.forms import MOST_FIELD_BYTES, MOST_PARTS, read_form
from tests import eyes
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]
PNG = {"Content-Type": "image/png"}
KEY = "se-cret"


def picture(image: Image.Image | None = None, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    (image or eyes.street()).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def runner(detector_bundle: Path) -> Iterator[Runner]:
    with Runner(Bundle.open(detector_bundle), "sim:2") as opened:
        yield opened


def client(runner: Runner, key: str | None = None, **limits: Any) -> TestClient:
    server = VisionServer(Web("eyes", key, Limits(**limits)), runner)
    # Without the context manager the application is never shut down, and the runner stays open.
    return TestClient(application(server), base_url="http://localhost")


def as_requests_sends(fields: dict[str, str], files: dict[str, bytes]) -> tuple[bytes, str]:
    """A form as the library `requests` writes it: bytes get the field's name as name of a file."""
    parts = []
    for name, value in fields.items():
        head = f'Content-Disposition: form-data; name="{name}"'
        parts.append(f"--lIne\r\n{head}\r\n\r\n{value}\r\n".encode())
    for name, data in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}"'
        parts.append(f"--lIne\r\n{head}\r\n\r\n".encode() + data + b"\r\n")
    return b"".join(parts) + b"--lIne--\r\n", "multipart/form-data; boundary=lIne"


def ask(http: TestClient, fields: dict[str, str], files: dict[str, bytes]) -> httpx.Response:
    body, content_type = as_requests_sends(fields, files)
    return http.post(DEEPSTACK, content=body, headers={"Content-Type": content_type})


def test_frigates_plugin_reads_the_answer(runner: Runner) -> None:
    """Frigate sends a JPEG with an empty key, and reads until a confidence is below 0.4 or a label
    is unknown."""
    answer = ask(client(runner), {"api_key": ""}, {"image": picture(form="JPEG")}).json()
    width, height = eyes.street().size
    detections = np.zeros((20, 6), np.float32)
    for row, detection in zip(detections, answer["predictions"], strict=False):
        assert detection["confidence"] >= 0.4
        row[:] = [
            eyes.LABELS.index(detection["label"]),
            float(detection["confidence"]),
            detection["y_min"] / height,
            detection["x_min"] / width,
            detection["y_max"] / height,
            detection["x_max"] / width,
        ]
    assert detections[0, 2:].tolist() == [0, 0.25, 0.5, 0.5]
    assert detections[1, 2:].tolist() == [0.5, 0.75, 1, 1]
    assert not detections[2:].any()
    assert answer["success"] is True and 0 < answer["duration"] < 60


def test_home_assistants_client_reads_the_answer(runner: Runner) -> None:
    form = {"api_key": "", "min_confidence": "0.9"}
    answer = ask(client(runner), form, {"image": picture()})
    assert answer.status_code == 200
    (found,) = answer.json()["predictions"]
    assert found["label"] == "red" and round(float(found["confidence"]) * 100, 1) > 90
    sides = [found[side] for side in ("x_min", "y_min", "x_max", "y_max")]
    assert sides == [32, 0, 64, 32] and all(type(side) is int for side in sides)


def test_a_form_as_other_libraries_write_it(runner: Runner) -> None:
    """httpx names a type and another file."""
    answer = client(runner).post(
        DEEPSTACK,
        data={"min_confidence": "0.4"},
        files={"image": ("cam.png", picture(), "image/png")},
    )
    assert len(answer.json()["predictions"]) == 2


@pytest.mark.parametrize(
    ("fields", "files", "error"),
    [
        ({}, {}, "No valid image file found"),
        ({}, {"picture": b"x"}, "No valid image file found"),
        ({"min_confidence": "much"}, {"image": b"x"}, "Invalid value for min_confidence"),
        (
            {"min_confidence": "1.5"},
            {"image": b"x"},
            "min_confidence cannot be greater than 1",
        ),
        ({"min_confidence": "nan"}, {"image": b"x"}, "min_confidence must be from 0 to 1"),
        ({}, {"image": b"x"}, "not an image that can be read (PNG or JPEG or BMP or WEBP)"),
        ({}, {"image": picture()[:60]}, "not an image that can be read"),
    ],
)
def test_errors_are_deepstacks(
    fields: dict[str, str], files: dict[str, bytes], error: str, runner: Runner
) -> None:
    answer = ask(client(runner), fields, files)
    body = answer.json()
    assert answer.status_code == 400 and body["success"] is False
    assert body["error"].startswith(error) and body["duration"] == 0


def test_the_key_is_in_the_form_or_the_header(runner: Runner) -> None:
    http = client(runner, KEY)
    image = {"image": picture()}
    for fields in ({}, {"api_key": ""}, {"api_key": "wrong"}, {"api_key": KEY + "x"}):
        answer = ask(http, fields, image)
        assert answer.status_code == 401 and answer.json()["success"] is False
    assert ask(http, {"api_key": KEY}, image).status_code == 200
    body, content_type = as_requests_sends({}, image)
    for key, status in ((KEY, 200), ("wrong", 401)):
        headers = {"Content-Type": content_type, "Authorization": f"Bearer {key}"}
        assert http.post(DEEPSTACK, content=body, headers=headers).status_code == status


def test_no_endpoint_goes_without_the_key(runner: Runner, classifier_bundle: Path) -> None:
    with Runner(Bundle.open(classifier_bundle)) as other:
        for opened in (runner, other):
            http = client(opened, KEY)
            for route in endpoints(VisionServer(Web("eyes", KEY), opened)):
                method = "POST" if "POST" in (route.methods or ()) else "GET"
                body, content_type = as_requests_sends({}, {"image": picture()})
                if route.path != DEEPSTACK:
                    body, content_type = picture(), "image/png"
                status = http.request(
                    method, route.path, content=body, headers={"Content-Type": content_type}
                ).status_code
                assert status == (200 if route.path == "/health" else 401), route.path


def test_a_plain_post_of_a_picture(runner: Runner, classifier_bundle: Path) -> None:
    http = client(runner)
    answer = http.post(DETECT, content=picture(), headers=PNG).json()
    assert answer["task"] == "detect" and (answer["width"], answer["height"]) == (128, 64)
    assert [one["box"] for one in answer["predictions"]] == [
        list(eyes.RED_BOX),
        list(eyes.GREEN_BOX),
    ]
    few = http.post(f"{DETECT}?min_confidence=0.9", content=picture(), headers=PNG).json()
    assert len(few["predictions"]) == 1
    few = http.post(f"{DETECT}?top=1", content=picture(), headers=PNG).json()
    assert len(few["predictions"]) == 1
    for query in ("top=0", "top=x", "top=²", "top=1000000000", "min_confidence=2"):
        answer = http.post(f"{DETECT}?{query}", content=picture(), headers=PNG)
        assert answer.status_code == 400, query
    assert http.post(CLASSIFY, content=picture(), headers=PNG).status_code == 404
    with Runner(Bundle.open(classifier_bundle)) as other:
        answer = client(other).post(CLASSIFY, content=picture(), headers=PNG).json()
        assert [one["label"] for one in answer["predictions"]] == ["red", "green", "2"]
        assert "box" not in answer["predictions"][0]


def test_who_may_ask(runner: Runner) -> None:
    """Pages of other origins may send forms unasked, but their browsers say where from."""
    http = client(runner)
    body, form = as_requests_sends({}, {"image": picture()})
    for headers, status in (
        ({"Content-Type": form, "Origin": "https://evil.example"}, 403),
        ({"Content-Type": form, "Origin": "null"}, 403),
        ({"Content-Type": form, "Host": "evil.example"}, 421),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({}, 415),
        ({"Content-Type": form, "Origin": "http://localhost"}, 200),
    ):
        assert http.post(DEEPSTACK, content=body, headers=headers).status_code == status, headers
    # Forms are taken nowhere else, and pictures have types that no form has.
    for path, types in BODY_TYPES.items():
        safelisted = {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"}
        assert path == DEEPSTACK or not types & safelisted


def test_limits(runner: Runner) -> None:
    http = client(runner, body_bytes=2000)
    answer = ask(http, {}, {"image": bytes(3000)})
    assert answer.status_code == 413 and answer.json()["success"] is False
    assert http.post(DETECT, content=bytes(3000), headers=PNG).status_code == 413
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    answer = client(runner, body_bytes=1 << 24).post(DETECT, content=huge.getvalue(), headers=PNG)
    assert answer.status_code == 400 and "make it smaller" in answer.text


def test_limits_of_pictures_are_documented() -> None:
    security = (ROOT / "docs" / "security.md").read_text()
    for limit in (
        f"| `--max-body` ({PICTURE_BYTES >> 20} MiB), {Limits().body_seconds:g} seconds |",
        f"| a picture | {MOST_PIXELS:,} pixels;",
        f"| a form | {MOST_PARTS} parts, texts of {MOST_FIELD_BYTES} bytes |",
    ):
        assert limit in security, limit


def test_too_many_at_once_are_refused(runner: Runner) -> None:
    server = VisionServer(Web("eyes", limits=Limits(waiting=1)), runner)
    http = TestClient(application(server), base_url="http://localhost")
    server.active = 2
    answer = ask(http, {}, {"image": picture()})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json() == {
        "success": False,
        "error": "1 requests are waiting already: try again",
        "duration": 0,
    }
    assert http.post(DETECT, content=picture(), headers=PNG).status_code == 429
    server.active = 1
    assert http.post(DETECT, content=picture(), headers=PNG).status_code == 200
    assert server.active == 1
    metrics = http.get("/metrics").text
    assert "coral_bundle_requests_refused_total 2" in metrics
    assert "coral_bundle_predictions_total 2" in metrics
    assert "coral_bundle_picture_seconds{" in metrics


def test_a_client_that_left_costs_no_run(runner: Runner) -> None:
    server = VisionServer(Web("eyes"), runner)
    app = application(server)
    statuses = []
    messages = iter([{"type": "http.request", "body": picture()}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "POST",
        "path": DETECT,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/png")],
        "http_version": "1.1",
    }
    asyncio.run(app(scope, receive, send))
    assert statuses[0] == 499 and server.counters.cancelled == 1 and not server.active
    assert not server.counters.seconds


def test_a_model_that_fails_is_the_servers_fault(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise RuntimeError("segment 1 failed\non TPU 0")

    monkeypatch.setattr(runner, "run_async", failing)
    answer = ask(client(runner), {}, {"image": picture()})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("the model failed: segment 1 failed")


@pytest.mark.parametrize(
    ("content_type", "body", "error"),
    [
        ("multipart/form-data", b"", "not a form"),
        ("application/json", b"", "not a form"),
        ("multipart/form-data; boundary=x", b"no parts", "damaged"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nnameless\r\n--x--\r\n", "damaged"),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x\r\n", "damaged"),
    ],
)
def test_forms_that_are_none(content_type: str, body: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_form(content_type, body)


def test_a_form_has_few_and_short_texts() -> None:
    many = {str(index): "x" for index in range(MOST_PARTS + 1)}
    body, content_type = as_requests_sends(many, {})
    with pytest.raises(ValueError, match="a form may have 32 parts"):
        read_form(content_type, body)
    body, content_type = as_requests_sends({"api_key": "x" * 5000}, {})
    with pytest.raises(ValueError, match="may have 4096 bytes"):
        read_form(content_type, body)


def test_a_file_of_a_form_comes_back_byte_for_byte() -> None:
    """Also where it is larger than what the library keeps in memory by default, and holds what
    looks like the end of a part."""
    data = np.random.default_rng(0).bytes(3 << 20) + b"\r\n--lIn\r\n--\r\n"
    body, content_type = as_requests_sends({"a": "ä"}, {"image": data})
    form = read_form(content_type, body)
    assert form.files == {"image": data} and form.fields == {"a": "ä"}


def test_bundles_that_say_nothing_are_not_served(
    detector_bundle: Path, small_bundle: Path, tmp_path: Path, run_cli: Cli
) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(detector_bundle, copy)
    eyes.add_vision(copy, {"picture": eyes.PICTURE, "task": None})
    code, _, err = run_cli("serve", copy, "--port", 0)
    assert code == 2 and "does not say what its outputs mean" in err
    code, _, err = run_cli("serve", small_bundle, "--port", 0)
    assert code == 2 and "nor a model that was built on pictures" in err


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("python_multipart", [], "vision"),
        ("zmq", ["--zmq", "ipc:///tmp/none"], "frigate"),
    ],
)
def test_what_is_not_installed_is_named(
    package: str,
    arguments: list[str],
    extra: str,
    detector_bundle: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    code, _, err = run_cli("serve", detector_bundle, *arguments)
    assert code == 2 and f"serve: {package} is not installed here" in err
    assert f"pip install 'coral-bundle[{extra}]'" in err


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Where head and body of an answer are two packets, the second must not wait for the first to
    be acknowledged, which takes a client 40 ms."""
    config = uvicorn.Config("none", port=0)
    listening = _bind(config, "127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
