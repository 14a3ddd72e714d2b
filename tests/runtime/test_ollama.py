"""Ollama's API, asked by the official ollama client as Home Assistant and Open WebUI ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from starlette.testclient import TestClient

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher
from compiler.runtime.embedding import Embedder
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.server import (
    CompletionServer,
    EmbeddingServer,
    Limits,
    ModelCard,
    Web,
    application,
)
from compiler.runtime.text import Text
from tests.conftest import LANGUAGE
from tests.runtime.listening import listening
from tests.runtime.test_embedding_server import WIDTH, Encoder

KEY = {"Authorization": "Bearer secret"}
JSON = {"Content-Type": "application/json"}
GREEDY = {"temperature": 0, "repeat_penalty": 1}


@dataclass(frozen=True)
class Served:
    url: str
    client: ollama.Client
    text: Text
    bundle: Bundle


@pytest.fixture(scope="module")
def served(language_bundle: Path) -> Iterator[Served]:
    bundle = Bundle.open(language_bundle)
    text = Text(bundle)
    batcher = Batcher(LanguageModel(bundle, slots=3))
    web = Web("manual", "secret", Limits(tokens=200), card=ModelCard.of(bundle))
    with listening(CompletionServer(web, text, batcher)) as url:
        yield Served(url, ollama.Client(url, headers=KEY), text, bundle)


def greedy(served: Served, tokens: list[int], count: int) -> str:
    model = LanguageModel(served.bundle, slots=3)
    return served.text.decode(list(model.generate(tokens, count, Sampling())))


def test_chat_is_the_models_answer_streamed_or_whole(served: Served) -> None:
    messages = [{"role": "user", "content": "A class definition"}]
    options = GREEDY | {"num_predict": 20}
    whole = served.client.chat("manual", messages, options=options)
    lines = list(served.client.chat("manual:latest", messages, options=options, stream=True))
    wanted = greedy(served, served.text.conversation(messages), 20)
    assert whole.message.content == wanted and whole.message.role == "assistant"
    assert "".join(line.message.content or "" for line in lines) == wanted
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 5 and lines[-1].model == "manual:latest"
    for last in (whole, lines[-1]):
        assert last.done_reason == "length" and last.eval_count == 20
        assert last.prompt_eval_count == len(served.text.conversation(messages))
        assert last.prompt_eval_duration > 0 and last.eval_duration > 0  # type: ignore[operator]
        parts = last.prompt_eval_duration + last.eval_duration  # type: ignore[operator]
        assert parts <= last.total_duration + 2 and last.load_duration == 0  # type: ignore


def test_generate(served: Served) -> None:
    options = GREEDY | {"num_predict": 12}
    encoded = served.text.encode("The import statement")
    raw = served.client.generate("manual", "The import statement", raw=True, options=options)
    assert raw.response == greedy(served, encoded, 12)
    # Without `raw` the prompt is a message.
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "The import"}]
    made = served.client.generate("manual", "The import", system="A", options=options)
    assert made.response == greedy(served, served.text.conversation(messages), 12)
    lines = served.client.generate(
        "manual", "The import statement", raw=True, options=options, stream=True
    )
    assert "".join(line.response for line in lines) == raw.response


def test_streams_unless_told_otherwise(served: Served) -> None:
    body = {"model": "manual", "prompt": "The", "options": {"num_predict": 2}}
    answer = httpx.post(f"{served.url}/api/generate", json=body, headers=KEY)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert json.loads(answer.text.splitlines()[-1])["done"] is True
    whole = httpx.post(f"{served.url}/api/generate", json=body | {"stream": False}, headers=KEY)
    assert whole.json()["done"] is True and whole.json()["eval_count"] <= 2


def test_options_change_the_answer_as_they_do_of_the_sampler(served: Served) -> None:
    def ask(**options: Any) -> str:
        found = served.client.generate(
            "manual", "The import", raw=True, options={"num_predict": 16} | options
        )
        return found.response

    model = LanguageModel(served.bundle, slots=3)
    prompt = served.text.encode("The import")
    ours = Sampling(0.8, 40, 0.9, 0.0, 1.1, 64, 7)
    for given, sampling in (
        ({}, ours),
        ({"temperature": 1.5, "top_k": 0}, replace(ours, temperature=1.5, top_k=0)),
        ({"top_p": 0.5, "min_p": 0.1}, replace(ours, top_p=0.5, min_p=0.1)),
        ({"repeat_penalty": 2}, replace(ours, repetition_penalty=2.0)),
        ({"repeat_last_n": 0}, replace(ours, repetition_penalty=1.0)),
        ({"repeat_last_n": -1}, replace(ours, repetition_window=None)),
    ):
        wanted = served.text.decode(list(model.generate(prompt, 16, sampling)))
        assert ask(seed=7, **given) == wanted, given
    full = ask(**GREEDY)
    word = full.split()[2]
    assert ask(**GREEDY, stop=[word]) == full[: full.index(word)]


def test_num_ctx_ends_prompt_and_answer(served: Served) -> None:
    prompt = "The import statement"
    count = len(served.text.encode(prompt))
    # As Home Assistant sends it, which asks for more than most small models have.
    for given, wanted in (
        (count + 5, 5),
        (float(count + 5), 5),
        (8192.0, LANGUAGE.context - count),
    ):
        options = GREEDY | {"num_ctx": given}
        made = served.client.generate("manual", prompt, raw=True, options=options)
        assert made.eval_count == wanted or made.done_reason == "stop", (given, made)
    with pytest.raises(ollama.ResponseError, match="num_ctx: the prompt has"):
        served.client.generate("manual", prompt, raw=True, options={"num_ctx": count})


def test_tells_about_the_model(served: Served) -> None:
    (model,) = served.client.list().models
    assert model.model == "manual:latest" and model.details is not None
    assert model.size == sum(entry["bytes"] for entry in served.bundle.files())
    assert model.modified_at is not None and len(model.digest or "") == 64
    (running,) = served.client.ps().models
    assert running.name == "manual:latest" and running.context_length == LANGUAGE.context
    shown = served.client.show("manual")
    assert shown.capabilities == ["completion"] and "message.content" in (shown.template or "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["coral-bundle.context_length"] == LANGUAGE.context
    version = httpx.get(f"{served.url}/api/version", headers=KEY).json()["version"]
    assert version == served.bundle.manifest["tools"]["coral-bundle"]


def test_loading_is_asked_for_without_a_prompt(served: Served) -> None:
    loaded = served.client.generate("manual", keep_alive=-1)
    assert loaded.done_reason == "load" and loaded.response == ""
    assert served.client.chat("manual", keep_alive="5m").done_reason == "load"
    for keep_alive in (0, "0s"):
        with pytest.raises(ollama.ResponseError, match="keep_alive"):
            served.client.generate("manual", keep_alive=keep_alive)


def as_home_assistant(served: Served, **fields: Any) -> Mapping[str, Any]:
    """The last line of a chat as Home Assistant's integration asks for it."""
    stream = served.client.chat(
        model="manual:latest",
        messages=[ollama.Message(role="user", content="The import")],
        tools=None,
        stream=True,
        keep_alive=-1,
        options={"num_ctx": 8192.0, "num_predict": 3},
        think=False,
        **fields,
    )
    return list(stream)[-1]


def test_as_home_assistant_asks(served: Served) -> None:
    assert as_home_assistant(served)["done"]
    with pytest.raises(ollama.ResponseError, match="format: "):
        as_home_assistant(served, format={"type": "strange"})


def test_what_is_not_served_is_refused_by_name(served: Served) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    message = {"role": "user", "content": "x"}
    called = message | {"tool_calls": [3]}
    for path, fields, word in (
        ("generate", {"suffix": "x"}, "suffix"),
        ("generate", {"template": "x"}, "template"),
        ("generate", {"context": [1]}, "context"),
        ("generate", {"images": ["x"]}, "images"),
        ("generate", {"format": 5}, "format"),
        ("generate", {"think": True}, "think"),
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", {"prompt": "word " * 2000}, "context"),
        ("generate", {"stream": "no"}, "stream"),
        ("generate", {"options": 5}, "options"),
        ("generate", {"raw": True, "system": "x"}, "system"),
        ("generate", {"options": {"num_predict": 201}}, "num_predict"),
        ("generate", {"options": {"num_predict": 1e300}}, "num_predict"),
        ("generate", {"options": {"temperature": "hot"}}, "temperature"),
        ("generate", {"options": {"mirostat": 1}}, "mirostat"),
        ("generate", {"options": {"penalize_newline": False}}, "penalize_newline"),
        ("generate", {"options": {"presence_penalty": 1}}, "presence_penalty"),
        ("generate", {"options": {"surprise": 1}}, "surprise"),
        ("generate", {"options": {"stop": [1]}}, "stop"),
        ("generate", {"options": {"seed": -2}}, "seed"),
        ("generate", {"options": {"num_ctx": 1}}, "num_ctx"),
        ("chat", {"tools": [tool]}, "tools"),
        ("chat", {"messages": 5}, "messages"),
        ("chat", {"messages": [message | {"images": ["x"]}]}, "images"),
        ("chat", {"messages": [called]}, "tool_calls"),
        ("chat", {"model": None}, "model"),
    ):
        given = {"prompt": "x"} if path == "generate" else {"messages": [message]}
        body = {"model": "manual"} | given | fields
        answer = httpx.post(f"{served.url}/api/{path}", json=body, headers=KEY)
        error = answer.json()["error"]
        assert answer.status_code == 400 and word in error and "\n" not in error, (body, error)


def test_logprobs(served: Served) -> None:
    options = GREEDY | {"num_predict": 5}
    made = served.client.generate(
        "manual", "The import", raw=True, options=options, logprobs=True, top_logprobs=2
    )
    assert made.logprobs is not None and len(made.logprobs) == 5
    assert "".join(entry.token for entry in made.logprobs) == made.response
    for entry in made.logprobs:
        assert entry.top_logprobs is not None and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token and entry.logprob <= 0
    messages = [{"role": "user", "content": "A class"}]
    lines = list(
        served.client.chat("manual", messages, options=options, logprobs=True, stream=True)
    )
    assert sum(len(line.logprobs or ()) for line in lines) == 5
    with pytest.raises(ollama.ResponseError, match="top_logprobs"):
        served.client.chat("manual", messages, top_logprobs=2)


def test_refusals_have_ollamas_shape(served: Served) -> None:
    with pytest.raises(ollama.ResponseError, match="'other' not found") as caught:
        served.client.show("other")
    assert caught.value.status_code == 404
    for path in ("tags", "ps", "version"):
        answer = httpx.get(f"{served.url}/api/{path}")
        assert answer.status_code == 401 and "API key" in answer.json()["error"]
    for path in ("chat", "generate", "show"):
        url, body = f"{served.url}/api/{path}", {"model": "manual"}
        assert httpx.post(url, json=body).status_code == 401
        text = httpx.post(url, content=b"{}", headers=KEY | {"Content-Type": "text/plain"})
        assert text.status_code == 415 and "Content-Type" in text.json()["error"]
        page = httpx.post(url, json=body, headers=KEY | {"Origin": "http://evil.example"})
        assert page.status_code == 403 and isinstance(page.json()["error"], str)
        host = httpx.post(url, json=body, headers=KEY | {"Host": "evil.example"})
        assert host.status_code == 421
    large = httpx.post(f"{served.url}/api/chat", content=b"x" * (2 << 20), headers=KEY | JSON)
    assert large.status_code == 413 and isinstance(large.json()["error"], str)
    assert httpx.post(f"{served.url}/api/pull", json={}, headers=KEY).json() == {
        "error": "Not Found"
    }


def test_a_failure_while_streaming_reaches_the_client(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LanguageModel, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        raise RuntimeError("no more\nelectricity")

    monkeypatch.setattr(LanguageModel, "decode", fail)
    with pytest.raises(ollama.ResponseError, match="the model failed: no more"):
        list(served.client.generate("manual", "The", stream=True))
    monkeypatch.undo()
    assert served.client.generate("manual", "The", options={"num_predict": 2}).done


def test_embeddings() -> None:
    made = EmbeddingServer(Web("e", limits=Limits(texts=3)), Encoder())  # type: ignore[arg-type]
    with listening(made) as url:
        client = ollama.Client(url)
        found = client.embed("e", ["a", "bcd"])
        assert found.embeddings == [[1.0] * WIDTH, [3.0] * WIDTH]
        assert found.prompt_eval_count == 2 and found.model == "e"
        assert found.total_duration is not None and found.total_duration > 0
        assert client.embed("e", "bcd").embeddings == [[3.0] * WIDTH]
        assert client.embeddings("e", "abc").embedding == [3.0] * WIDTH
        assert client.show("e").capabilities == ["embedding"]
        # The end of a long text is left out, but where the client says otherwise.
        assert client.embed("e", "x" * 150).embeddings == [[100.0] * WIDTH]
        for call, word in (
            (lambda: client.embed("e", "x" * 150, truncate=False), "150 tokens"),
            (lambda: client.embed("e", "x", dimensions=2), "dimensions"),
            (lambda: client.embed("e", ["x"] * 4), "up to 3"),
            (lambda: client.embed("f", "x"), "not found"),
            (lambda: client.embeddings("e", 5), "prompt"),  # type: ignore[arg-type]
        ):
            with pytest.raises((ollama.ResponseError, ValueError), match=word):
                call()
        assert client.embed("e", []).embeddings == []


class Words:
    """A tokenizer that puts 1 in front of a text and 2 behind it; a word is its length plus 10."""

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        words = [10 + len(word) for word in texts[0].split()]

        class Encoding:
            ids = [1, *words, 2] if add_special_tokens else words

        return [Encoding()]


def test_a_text_is_cut_between_what_the_tokenizer_puts_around_it() -> None:
    embedder = Embedder.__new__(Embedder)
    embedder._tokenizer, embedder.length = Words(), 4  # type: ignore[assignment]
    assert embedder.tokens("a bb", cuts=True).tolist() == [1, 11, 12, 2]
    assert embedder.tokens("a bb ccc", cuts=True).tolist() == [1, 11, 12, 2]
    with pytest.raises(ValueError, match="5 tokens"):
        embedder.tokens("a bb ccc")


def test_an_encoder_has_no_chat() -> None:
    client = TestClient(application(EmbeddingServer(Web("e"), None)), base_url="http://localhost")
    assert client.post("/api/chat", json={}).json() == {"error": "Not Found"}
