"""The HTTP server, asked by the official openai client and by clients that behave badly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import onnx
import onnxruntime
import openai
import pytest
import tokenizers
from onnx import helper, numpy_helper
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.testclient import TestClient

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher, BusyError, Request
from compiler.runtime.embedding import Embedder
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.server import Access, EmbeddingServer, Limits, Web, application
from compiler.runtime.server import requests as bodies
from compiler.runtime.server.protocol import CONNECTIONS, HEAD_BYTES, HEAD_SECONDS, UNREAD_SECONDS
from compiler.runtime.server.workers import SHORT_TEXT
from compiler.runtime.text import Text
from tests.conftest import LANGUAGE, Cli

ROOT = Path(__file__).parents[2]
MAX_BODY = 1_100_000
JSON = {"Content-Type": "application/json"}
KEY = {"Authorization": "Bearer secret"}
NULLABLE = (
    *(
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
    ),
    *(
        "stop",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
    ),
    *("logit_bias", "suffix", "echo", "tools", "response_format", "user"),
)


@dataclass(frozen=True)
class Served:
    url: str
    bundle: Path
    client: openai.OpenAI


@pytest.fixture(scope="module")
def served(language_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served") / "manual.bundle"
    shutil.copytree(language_bundle, path)
    command = [
        sys.executable,
        "-m",
        "compiler",
        "serve",
        str(path),
        "--port",
        "0",
        "--waiting",
        "8",
        "--max-body",
        str(MAX_BODY),
    ]
    environment = {**os.environ, "CORAL_BUNDLE_API_KEY": "secret", "COLUMNS": "200"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split(" on ")[1].split()[0]
        assert url.startswith("http://127.0.0.1:")
        yield Served(
            url, path, openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        )
        process.terminate()
        assert process.wait(20) in (0, -15, 143)


def greedy(path: Path, prompt: str, count: int) -> str:
    bundle = Bundle.open(path)
    text, model = Text(bundle), LanguageModel(bundle, slots=3)
    return "".join(text.stream(model.generate(text.encode(prompt), count, Sampling())))


def test_completion_is_what_generate_gives(served: Served) -> None:
    made = served.client.completions.create(
        model="manual", prompt="The import statement", max_tokens=12, temperature=0
    )
    assert made.choices[0].text == greedy(served.bundle, "The import statement", 12)
    assert made.choices[0].finish_reason == "length" and made.usage is not None
    assert made.usage.completion_tokens == 12 and made.model == "manual"


def test_streams(served: Served) -> None:
    messages = [{"role": "user", "content": "A class definition"}]
    whole = served.client.chat.completions.create(
        model="manual", messages=messages, max_tokens=20, temperature=0
    )  # type: ignore[call-overload]
    stream = served.client.chat.completions.create(  # type: ignore[call-overload]
        model="manual",
        messages=messages,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == 20
    word = whole.choices[0].message.content.split()[2]
    cut = served.client.chat.completions.create(  # type: ignore[call-overload]
        model="manual", messages=messages, max_tokens=20, temperature=0, stop=[word]
    )
    assert word not in cut.choices[0].message.content and cut.choices[0].finish_reason == "stop"


def test_many_at_once_get_their_own_answers(served: Served) -> None:
    prompts = [
        "The import",
        "A class",
        "An exception",
        "If the",
        "For example",
        "Note that",
        "The value",
        "Objects",
    ]
    wanted = {p: greedy(served.bundle, p, 24) for p in prompts}
    got: dict[str, str] = {}

    def ask(prompt: str) -> None:
        made = served.client.completions.create(
            model="manual", prompt=prompt, max_tokens=24, temperature=0
        )
        got[prompt] = made.choices[0].text

    threads = [threading.Thread(target=ask, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_models_health_and_metrics(served: Served) -> None:
    assert [m.id for m in served.client.models.list()] == ["manual"]
    (listed,) = ollama.Client(served.url, headers=KEY).list().models
    digest = hashlib.sha256((served.bundle / "manifest.json").read_bytes()).hexdigest()
    assert listed.model == "manual:latest" and listed.digest == digest
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    served.client.completions.create(model="manual", prompt="The", max_tokens=1)
    text = httpx.get(f"{served.url}/metrics", headers={"Authorization": "Bearer secret"}).text
    assert "coral_bundle_requests_total" in text and 'quantile="0.95"' in text


def test_bad_requests_are_refused_in_one_line(served: Served) -> None:
    url, key = f"{served.url}/v1/completions", KEY | JSON
    assert httpx.post(url, json={"prompt": "x"}).status_code == 401
    assert (
        httpx.post(url, json={"prompt": "x"}, headers={"Authorization": "Bearer wrong"}).status_code
        == 401
    )
    assert httpx.post(url, content=b"x" * (MAX_BODY + 1), headers=key).status_code == 413
    for body, word in (
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"[" * 15_000, "JSON"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": ""}, "tokens"),
        ({"prompt": "word " * 500}, "tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "n": 9}, "n:"),  # as many as may wait, and one
        ({"prompt": "x", "n": 0}, "n:"),
        ({"prompt": "x", "stop": [1]}, "stop"),
        ({"prompt": "x", "logprobs": 6}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "top_logprobs": 1}, "top_logprobs"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 1 << 64}, "seed"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1 << 70]}, "prompt"),
        ({"prompt": [1] * 100_000}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "x", "stop": ["\udfff"]}, "surrogate"),
        (b'{"prompt": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (b'{"prompt": "x", "temperature": Infinity}', "temperature"),
        (b'{"prompt": "x", "repetition_penalty": -1e999}', "repetition_penalty"),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "JSON"),
        ({"prompt": "x", "max_tokens": 10**300}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1_000_000}, "end at the model's context of"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"prompt": "x", "top_k": -(10**30)}, "top_k"),
        ({"prompt": "x", "top_k": 2.5}, "top_k"),
        ({"prompt": "x", "presence_penalty": 1}, "presence_penalty"),
        ({"prompt": "x", "best_of": 1 << 40}, "best_of"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "x", "stop": 0}, "stop"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "stream_options": 1}, "stream_options"),
    ):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(url, content=content, headers=key)
        assert answer.status_code == 400 and word in answer.json()["error"]["message"], (
            body,
            answer.text,
        )
    with pytest.raises(openai.BadRequestError, match="messages"):
        served.client.chat.completions.create(model="m", messages=[])


def post(served: Served, body: dict[str, Any], path: str = "completions") -> httpx.Response:
    return httpx.post(
        f"{served.url}/v1/{path}", content=json.dumps(body), headers=KEY | JSON, timeout=60
    )


def test_null_is_as_good_as_nothing(served: Served) -> None:
    body: dict[str, Any] = dict.fromkeys(NULLABLE)
    answer = post(served, body | {"prompt": "The import"})
    assert answer.status_code == 200, answer.text
    ended = answer.json()["choices"][0]["finish_reason"] == "stop"
    assert ended or answer.json()["usage"]["completion_tokens"] > 100  # to the end of the context
    body = {
        "prompt": "The import",
        "max_completion_tokens": None,
        "max_tokens": 3,
        "temperature": 0,
    }
    assert post(served, body).json()["usage"]["completion_tokens"] == 3
    chat = {
        "messages": [{"role": "user", "content": "A class", "name": None}],
        "max_tokens": 3,
        "stop": None,
    }
    assert post(served, chat, "chat/completions").status_code == 200
    chat["messages"] = [{"role": "user", "content": "\udc00"}]
    assert post(served, chat, "chat/completions").status_code == 400


def test_odd_requests_harm_nobody(served: Served) -> None:
    wanted = {p: greedy(served.bundle, p, 40) for p in ("The import", "A class")}
    got: dict[str, str] = {}

    def ask(prompt: str) -> None:
        made = served.client.completions.create(
            model="manual", prompt=prompt, max_tokens=40, temperature=0
        )
        got[prompt] = made.choices[0].text

    threads = [threading.Thread(target=ask, args=(p,)) for p in wanted]
    for thread in threads:
        thread.start()
    for temperature in (1e-308, 5e-324, 2):
        body = {
            "prompt": "x",
            "max_tokens": 4,
            "temperature": temperature,
            "repetition_penalty": 10,
            "min_p": 1e-320,
        }
        assert post(served, body).status_code == 200
    for thread in threads:
        thread.join()
    assert got == wanted


def test_long_prompts_do_not_hold_up_the_others(served: Served) -> None:
    words = " ".join(f"w{index}" for index in range(140_000))
    prompts = [f"{number} {words}"[:1_000_000] for number in range(10)]
    found: list[int] = []

    def ask(prompt: str) -> None:
        found.append(post(served, {"prompt": prompt}).status_code)

    threads = [threading.Thread(target=ask, args=(p,)) for p in prompts]
    began, worst = time.monotonic(), 0.0
    for thread in threads:
        thread.start()
    with httpx.Client() as client:
        while any(thread.is_alive() for thread in threads):
            asked = time.monotonic()
            assert client.get(f"{served.url}/health", timeout=60).status_code == 200
            worst = max(worst, time.monotonic() - asked)
    took = time.monotonic() - began
    # Read on the event loop, they would hold it for all that time; one of them alone must not
    # either.
    assert worst < max(0.5, took / 8), (worst, took)
    assert len(found) == 10 and set(found) <= {400, 429} and found.count(400) >= 9


def test_only_requests_that_are_meant_for_this_server_are_served(served: Served) -> None:
    url, body = f"{served.url}/v1/completions", json.dumps({"prompt": "x", "max_tokens": 1})
    port = served.url.rpartition(":")[2]
    for headers, status in (
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST.:80"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:80:80"}, 421),
        ({"Host": "10.0.0.1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": f"http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 421),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": ""}, 415),
    ):
        answer = httpx.post(url, content=body, headers=KEY | JSON | headers)
        assert answer.status_code == status, (headers, answer.text)
        assert status == 200 or answer.json()["error"]["code"] == status
    assert httpx.get(f"{served.url}/health", headers={"Host": "evil.example"}).status_code == 421
    assert httpx.options(url, headers={"Origin": "http://evil.example"}).status_code == 403


def exchanged(served: Served, sent: bytes) -> bytes:
    """All that the server answers to some bytes, until it closes the connection."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(sent)
        found = bytearray()
        while part := raw.recv(65536):
            found += part
    return bytes(found)


def test_requests_whose_length_is_ambiguous_are_refused(served: Served) -> None:
    head = b"Host: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer secret\r\n"
    second = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked, body = b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"
    for sent in (
        b"POST /v1/completions HTTP/1.1\r\n" + head + chunked + b"Content-Length: 5\r\n\r\n" + body,
        b"POST /v1/completions HTTP/1.1\r\n"
        + head
        + b"Content-Length: 5\r\n"
        + chunked
        + b"\r\n"
        + body,
        b"GET /health HTTP/1.1\r\n" + head + chunked + b"Content-Length: 0\r\n\r\n" + body,
        b"POST /v1/completions HTTP/1.0\r\n" + head + chunked + b"\r\n" + body,
        b"POST /v1/completions HTTP/1.1\r\n"
        + head
        + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"
        + body,
        b"POST /v1/completions HTTP/1.1\r\n"
        + head
        + b"Transfer-Encoding: gzip, chunked\r\n\r\n"
        + body,
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ):
        answer = exchanged(served, sent + second)
        # One answer, and the connection ends: what follows is no request.
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1, (
            sent,
            answer,
        )


def test_access() -> None:
    everywhere = Access.of("0.0.0.0", ["Pi.local"])
    for host in ("192.168.1.7:8000", "[fe80::1]", "pi.local", "localhost"):
        assert everywhere.answers_to(host), host
    for host in (
        "evil.example",
        "1.2.3",
        "127.1",
        "",
        None,
        "a b",
        "[::1",
        "pi.local.evil.example",
    ):
        assert not everywhere.answers_to(host), host
    assert Access.of("::1").answers_to("[0:0::1]:8000") and not Access.of("::1").answers_to("[::2]")
    assert Access.of("10.0.0.5").answers_to("10.0.0.5") and not Access.of("10.0.0.5").answers_to(
        "10.0.0.6"
    )
    for host in ("a b", "pi.local:80", "http://pi.local", ""):
        with pytest.raises(ValueError, match="host"):
            Access.of("127.0.0.1", [host])
    for origin in ("example.org", "null", "*", "https://example.org/path"):
        with pytest.raises(ValueError, match="origin"):
            Access.of("127.0.0.1", [], [origin])


def test_an_origin_that_is_allowed(tmp_path: Path) -> None:
    page = {"Origin": "https://app.example"}
    web = Web("m", access=Access.of("127.0.0.1", origins=["https://app.example/"]))
    client = TestClient(application(EmbeddingServer(web, None)), base_url="http://localhost")
    assert (
        client.get("/v1/models", headers=page).headers["access-control-allow-origin"]
        == "https://app.example"
    )
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    assert client.options("/v1/models", headers=page | wanted).status_code == 200
    assert client.get("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403


def test_options_that_would_leave_the_door_open(
    served: Served, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("", " ", "secret\n", "sécret"):
        monkeypatch.setenv("CORAL_BUNDLE_API_KEY", key)
        code, _, err = run_cli("serve", served.bundle)
        assert code == 2 and "API key" in err, (key, err)
    monkeypatch.delenv("CORAL_BUNDLE_API_KEY")
    for options in (["--api-key", ""], ["--allow-host", "http://pi"], ["--allow-origin", "pi"]):
        code, _, err = run_cli("serve", served.bundle, *options)
        assert code == 2 and len(err.strip().splitlines()) == 1, err


def test_a_client_that_leaves_frees_its_slot(served: Served) -> None:
    key = {"Authorization": "Bearer secret"}
    body = {"prompt": "The", "max_tokens": 4000, "temperature": 1, "stream": True}
    for _ in range(6):
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, headers=key) as answer:
            next(answer.iter_lines())
    until = time.monotonic() + 10
    while "requests_active 0" not in httpx.get(f"{served.url}/metrics", headers=key).text:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_head_that_does_not_end_is_given_up(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=HEAD_SECONDS + 10) as slow:
        began = time.monotonic()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-")
        time.sleep(HEAD_SECONDS / 2)
        slow.sendall(b"a")
        assert slow.recv(100) == b""
        assert HEAD_SECONDS - 1 < time.monotonic() - began < HEAD_SECONDS + 5


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def ask() -> None:
        http = HttpRequest({"type": "http", "headers": []}, receive)
        await Web("m", None, Limits(body_seconds=0.1)).read_body(http)

    with pytest.raises(HTTPException) as caught:
        asyncio.run(ask())
    assert caught.value.status_code == 408


def test_half_a_request_does_not_block_others(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert httpx.get(f"{served.url}/health", timeout=5).status_code == 200


def test_a_full_queue_refuses(served: Served) -> None:
    model = LanguageModel(Bundle.open(served.bundle), slots=3)
    batcher = Batcher(model, waiting=2)
    ended = threading.Semaphore(0)
    taken = refused = 0
    for _ in range(12):
        request = Request(
            [5, 6],
            100,
            Sampling(temperature=1.0, seed=1),
            lambda t: ended.release() if t is None else None,
        )
        try:
            batcher.submit(request)
            taken += 1
        except BusyError:
            refused += 1
    assert refused > 0 and taken >= 2
    for _ in range(taken):
        assert ended.acquire(timeout=30)
    with pytest.raises(ValueError, match="tokens"):
        batcher.submit(Request([1] * LANGUAGE.context, 1, Sampling(), lambda t: None))
    batcher.close()
    assert batcher.counters.refused == refused


def encoder(folder: Path) -> tuple[Path, Path]:
    """A small encoder of 16 tokens and a tokenizer of words. (model, tokenizer)"""
    rng = np.random.default_rng(0)
    words = ["[UNK]", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "cat"]
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(folder / "tokenizer.json"))
    table, weight = (
        rng.standard_normal(s).astype(np.float32) for s in ((len(words), 32), (32, 32))
    )
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Gelu", ["y"], ["z"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "axis"], ["n"]),
        helper.make_node("Mul", ["z", "n"], ["states"]),
    ]
    constants = {"table": table, "weight": weight, "axis": np.array([2], np.int64)}
    inputs = [
        helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [1, 16])
        for n in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("states", onnx.TensorProto.FLOAT, [1, 16, 32])]
    initializers = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / "m.onnx",
    )
    return folder / "m.onnx", folder / "tokenizer.json"


def test_embeddings(tmp_path: Path, run_cli: Cli) -> None:
    model, tokenizer = encoder(tmp_path)
    assert run_cli("build", model, "--tokenizer", model)[0] == 2
    ids = np.random.default_rng(1).integers(0, 10, (8, 16))
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    code, _, err = run_cli(
        "build", model, "--tokenizer", tokenizer, "--calibration", tmp_path / "c.npz"
    )
    assert code == 0, err
    embedder = Embedder(Bundle.open(tmp_path / "m.bundle"))
    server = EmbeddingServer(Web("small"), embedder)
    client = openai.OpenAI(
        base_url="http://localhost/v1",
        api_key="none",
        http_client=TestClient(application(server)),
        max_retries=0,
    )
    texts = ["the quick fox", "over the lazy dog cat"]
    made = client.embeddings.create(model="small", input=texts)
    session = onnxruntime.InferenceSession(model)
    for text, entry in zip(texts, made.data, strict=True):
        tokens = embedder.tokens(text)
        feeds = {n: np.zeros((1, 16), np.int64) for n in ("input_ids", "attention_mask")}
        feeds["input_ids"][0, : len(tokens)], feeds["attention_mask"][0, : len(tokens)] = tokens, 1
        (states,) = session.run(None, feeds)
        want = states[0, : len(tokens)].mean(axis=0)
        assert np.dot(entry.embedding, want) / np.linalg.norm(want) > 0.999
    assert made.usage.prompt_tokens == 8
    for given, word in ((["x"] * 0, "input"), ("the " * 17, "tokens"), (5, "input")):
        with pytest.raises(openai.BadRequestError, match=word):
            client.embeddings.create(model="small", input=given)  # type: ignore[arg-type]
    code, _, err = run_cli(
        "build", model, "-o", tmp_path / "plain.bundle", "--calibration", tmp_path / "c.npz"
    )
    assert run_cli("serve", tmp_path / "plain.bundle")[0] == 2


def test_documented_limits() -> None:
    security = (ROOT / "docs" / "security.md").read_text()
    limits = Limits()
    wanted = {
        f"| connections | {CONNECTIONS} |",
        f"| {HEAD_BYTES >> 10} KiB, {HEAD_SECONDS:g} seconds |",
        f"| `--max-body` ({limits.body_bytes >> 20} MiB), {limits.body_seconds:g} seconds |",
        f"| {UNREAD_SECONDS:g} seconds without progress",
        f"texts of more than {SHORT_TEXT} characters",
        f"| `--waiting` ({limits.waiting}), and one |",
        f"| `--max-texts` ({limits.texts})",
        f"| `--max-tokens` ({limits.tokens})",
        f"| stop texts | {bodies.STOP.most} |",
        f"| choices (`n`) | {bodies.MOST_CHOICES}, and `--waiting`",
    }
    assert not [limit for limit in wanted if limit not in security]
