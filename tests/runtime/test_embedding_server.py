"""/v1/embeddings under clients that ask for much, leave, or do not read; the encoder is a stand-in
that counts."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from compiler.runtime.server import EmbeddingServer, Limits, Web, application, protocol

WIDTH = 4


class Encoder:
    """A text's embedding is its length; "bad" fails. `gate` holds the model up."""

    def __init__(self, width: int = WIDTH) -> None:
        self.width, self.order, self.gate = width, [], threading.Event()
        self.gate.set()
        self.order: list[str] = []
        self._texts: dict[int, str] = {}

    def tokens(self, text: str, cuts: bool = False) -> np.ndarray:
        if cuts:
            text = text[:100]
        if len(text) > 100:
            raise ValueError(f"a text has {len(text)} tokens; the model takes 1 to 100")
        self._texts[len(self._texts)] = text
        return np.array([len(self._texts) - 1], np.int32)

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        assert self.gate.wait(20)
        text = self._texts[int(tokens[0])]
        self.order.append(text)
        if text == "bad":
            raise RuntimeError("indices element\nout of data bounds")
        return np.full(self.width, len(text), np.float32)


def server(encoder: Encoder, **limits: Any) -> EmbeddingServer:
    return EmbeddingServer(Web("e", limits=Limits(**limits)), encoder)  # type: ignore[arg-type]


class Call:
    """A request to an application, whose client may leave."""

    def __init__(self, app: Any, body: Mapping[str, Any]) -> None:
        self._app, self._body, self.left = app, json.dumps(body).encode(), asyncio.Event()
        self._sent = False
        self.status, self.answer = 0, b""

    async def receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.answer += message.get("body", b"")

    async def run(self) -> Call:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embeddings",
            "query_string": b"",
            "headers": headers,
            "http_version": "1.1",
        }
        await self._app(scope, self.receive, self.send)
        return self


@asynccontextmanager
async def running(
    app: Any, *bodies: Mapping[str, Any]
) -> AsyncIterator[list[tuple[Call, asyncio.Task[Call]]]]:
    calls = [Call(app, body) for body in bodies]
    yield [(call, asyncio.ensure_future(call.run())) for call in calls]


async def until(condition: Any) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.005)


def test_answers_in_both_encodings() -> None:
    client = TestClient(application(server(Encoder())), base_url="http://localhost")
    texts = ["a", "bcd", ""]
    for kind in ("float", "base64", None):
        answer = client.post(
            "/v1/embeddings", json={"input": texts, "encoding_format": kind}
        ).json()
        found = [entry["embedding"] for entry in answer["data"]]
        if kind == "base64":
            found = [np.frombuffer(base64.b64decode(f), np.float32).tolist() for f in found]
        assert found == [[1.0] * WIDTH, [3.0] * WIDTH, [0.0] * WIDTH]
        assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3} and answer["model"] == "e"


def test_limits() -> None:
    encoder = Encoder()
    client = TestClient(
        application(server(encoder, texts=10, body_bytes=5000)), base_url="http://localhost"
    )
    for body, status, word in (
        ({"input": ["x"] * 11}, 400, "up to 10"),
        ({"input": ["x", "y" * 101]}, 400, "101 tokens"),
        ({"input": "\ud800"}, 400, "surrogate"),
        ({"input": None}, 400, "input"),
        ({"input": [["x"]]}, 400, "input"),
        ({"input": [1, 2]}, 400, "input"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "x", "dimensions": 3}, 400, "dimensions"),
        ({"input": "x" * 6000}, 413, "5000 bytes"),
    ):
        answer = client.post(
            "/v1/embeddings", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status and word in answer.json()["error"]["message"], (
            body,
            answer.text,
        )
    assert encoder.order == []
    assert client.post("/v1/embeddings", json={"input": ["x"] * 10}).status_code == 200


def test_a_failure_is_told_in_one_line_and_ends_one_request() -> None:
    made = server(Encoder())
    client = TestClient(application(made), base_url="http://localhost")
    answer = client.post("/v1/embeddings", json={"input": ["x", "bad", "y"]})
    assert answer.status_code == 500 and "\n" not in answer.json()["error"]["message"]
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 200
    assert made.active == 0 and made.counters.failed == 1
    metrics = client.get("/metrics").text
    assert (
        "coral_bundle_requests_failed_total 1" in metrics
        and "coral_bundle_texts_total 1" in metrics
    )


def test_a_full_line_refuses_and_a_client_that_leaves_frees_its_place() -> None:
    async def ask() -> None:
        encoder = Encoder()
        encoder.gate.clear()
        made = server(encoder, waiting=2)
        app = application(made)
        long = {"input": [f"{i}" for i in range(1000)]}
        async with running(app, long, {"input": "b"}, {"input": "c"}) as calls:
            await until(lambda: made.active == 3)
            refused = await Call(app, {"input": "d"}).run()
            assert refused.status == 429 and made.counters.refused == 1
            calls[0][0].left.set()
            encoder.gate.set()
            await asyncio.gather(*(task for _, task in calls))
        assert [call.status for call, _ in calls] == [499, 200, 200]
        # Of the texts of the client that left, only what was on its way was embedded.
        assert len(encoder.order) < 10 and made.active == 0 and made.counters.cancelled == 1
        assert (await Call(app, {"input": "e"}).run()).status == 200

    asyncio.run(ask())


def test_requests_take_turns() -> None:
    async def ask() -> None:
        encoder = Encoder()
        encoder.gate.clear()
        made = server(encoder)
        async with running(
            application(made), {"input": ["long"] * 50}, {"input": ["short"] * 2}
        ) as calls:
            await until(lambda: made.active == 2)
            await asyncio.sleep(0.05)
            encoder.gate.set()
            await asyncio.gather(*(task for _, task in calls))
        assert "short" not in encoder.order[8:], encoder.order

    asyncio.run(ask())


@contextmanager
def listening(made: EmbeddingServer) -> Iterator[int]:
    """The server on a port of its own, with the protocol that `serve` has."""
    config = protocol.uvicorn_config(application(made), "127.0.0.1", 0)
    place = config.bind_socket()
    place.listen()
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([place],))
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(20)


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.3)
    made = server(Encoder(width=20_000))
    body = json.dumps({"input": ["x"] * 200}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    with listening(made) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as idle:
        idle.sendall(head + length + body)
        asyncio.run(until(lambda: made.counters.texts == 200))
        asyncio.run(until(lambda: made.active == 0))
        # What was sent before is all that ever comes.
        received = 0
        try:
            while part := idle.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < 200 * 20_000 * 3
