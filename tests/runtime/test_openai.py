"""OpenAI's API, asked by the official client: choices, probabilities, refused fields."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher, BusyError, Request
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling, scored
from compiler.runtime.server import CompletionServer, Limits, Web
from compiler.runtime.text import Detokenizer, Text
from tests.runtime.listening import listening

MESSAGES: Any = [{"role": "user", "content": "A class definition"}]


@dataclass(frozen=True)
class Served:
    client: openai.OpenAI
    text: Text
    bundle: Bundle


@pytest.fixture(scope="module")
def served(language_bundle: Path) -> Iterator[Served]:
    bundle = Bundle.open(language_bundle)
    text = Text(bundle)
    batcher = Batcher(LanguageModel(bundle, slots=3), waiting=4)
    with listening(CompletionServer(Web("m", limits=Limits()), text, batcher)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield Served(client, text, bundle)


def generated(served: Served, prompt: str, count: int, sampling: Sampling) -> str:
    model = LanguageModel(served.bundle, slots=3)
    tokens = model.generate(served.text.encode(prompt), count, sampling)
    return served.text.decode(list(tokens))


def test_choices_have_seeds_of_their_own(served: Served) -> None:
    made = served.client.completions.create(
        model="m", prompt="The import", max_tokens=12, temperature=1.3, seed=41, n=3
    )
    wanted = [generated(served, "The import", 12, Sampling(1.3, seed=41 + i)) for i in range(3)]
    assert [choice.text for choice in made.choices] == wanted and len(set(wanted)) == 3
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    prompt = len(served.text.encode("The import"))
    assert made.usage is not None
    # The prompt counts once.
    assert made.usage.prompt_tokens == prompt and made.usage.completion_tokens == 36
    assert made.usage.total_tokens == prompt + 36


def test_prompts_that_begin_alike_are_read_once(served: Served) -> None:
    """Also by requests that came before the first of them was read."""
    prompt = "The class definition of a module is an import of the statement. " * 3
    made = served.client.completions.create(
        model="m", prompt=prompt, max_tokens=2, temperature=1, seed=1, n=3
    )
    alone = [generated(served, prompt, 2, Sampling(1, seed=1 + index)) for index in range(3)]
    assert [choice.text for choice in made.choices] == alone
    url = str(served.client.base_url).replace("/v1/", "/metrics")
    metrics = httpx.get(url).text
    reused = re.search(r"^\w*reused_tokens_total ([0-9.]+)$", metrics, re.MULTILINE)
    assert reused is not None and float(reused[1]) >= 2 * (len(served.text.encode(prompt)) - 1)
    again = served.client.completions.create(model="m", prompt=prompt, max_tokens=1)
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached == again.usage.prompt_tokens - 1


def test_choices_in_a_stream(served: Served) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 1.3, "seed": 5, "n": 2}
    whole = served.client.chat.completions.create(model="m", messages=MESSAGES, **asked)
    chunks = list(
        served.client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            **asked,
        )
    )
    found = ["", ""]
    ends: list[str | None] = [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        found[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]
        assert chunk.usage is None and chunk.id == chunks[0].id
    assert found == [choice.message.content for choice in whole.choices]
    assert ends == ["length", "length"]
    usage = chunks[-1].usage
    assert chunks[-1].choices == [] and usage is not None and whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_more_choices_than_may_wait_are_refused_as_a_whole(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="from 1 to 4") as caught:
        served.client.completions.create(model="m", prompt="x", n=5)
    assert caught.value.param == "n"
    batcher = Batcher(LanguageModel(served.bundle, slots=3), waiting=2)
    try:
        requests = [Request([5], 1, Sampling(), lambda item: None) for _ in range(3)]
        with pytest.raises(BusyError):
            batcher.submit(*requests)
        assert batcher.counters.refused == 3 and batcher.counters.requests == 0
    finally:
        batcher.close()


def expected_logprobs(served: Served, prompt: str, count: int) -> list[np.ndarray]:
    """Log probabilities [V] of the model at each greedy token, by a softmax of our own."""
    model = LanguageModel(served.bundle, slots=3)
    slot = model.slots[0]
    logits = model.prefill(slot, served.text.encode(prompt))
    found = []
    for _ in range(count):
        exact = logits.astype(np.longdouble)
        found.append(np.asarray(exact - np.log(np.exp(exact).sum()), np.float64))
        logits = model.decode({0: int(np.argmax(logits))})[0]
    return found


def test_logprobs_of_a_completion(served: Served) -> None:
    made = served.client.completions.create(
        model="m", prompt="The import", max_tokens=6, temperature=0, logprobs=3
    )
    (choice,) = made.choices
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs
    assert "".join(found.tokens) == choice.text
    starts = [len("".join(found.tokens[:i])) for i in range(6)]
    assert found.text_offset == starts
    wanted = expected_logprobs(served, "The import", 6)
    for logprobs, got, top in zip(wanted, found.token_logprobs, found.top_logprobs, strict=True):
        assert got == pytest.approx(logprobs.max(), abs=1e-5)
        assert sorted(top.values()) == pytest.approx(np.sort(logprobs)[-3:].tolist(), abs=1e-5)
    plain = served.client.completions.create(model="m", prompt="The", max_tokens=2)
    assert plain.choices[0].logprobs is None


def test_logprobs_of_a_chat_streamed_or_whole(served: Served) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": True}
    whole = served.client.chat.completions.create(
        model="m", messages=MESSAGES, top_logprobs=2, **asked
    )
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in content) == whole.choices[0].message.content
    for entry in content:
        assert bytes(entry.bytes or b"").decode() == entry.token
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob >= entry.top_logprobs[1].logprob
    stream = served.client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, **asked
    )
    streamed = []
    for chunk in stream:
        found = chunk.choices[0].logprobs
        streamed += (found.content or []) if found is not None else []
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in content]
    assert all(entry.top_logprobs == [] for entry in streamed)


def test_what_a_stop_text_cuts_off_has_no_logprobs(served: Served) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": "The import", "temperature": 0, "logprobs": 0}
    full = served.client.completions.create(max_tokens=8, **asked).choices[0]
    assert full.logprobs is not None and full.logprobs.tokens
    stop = full.logprobs.tokens[4]
    cut = served.client.completions.create(max_tokens=8, stop=stop, **asked).choices[0]
    assert cut.finish_reason == "stop" and cut.logprobs is not None
    assert cut.text == full.text[: full.text.index(stop)]
    assert "".join(cut.logprobs.tokens or ()) == cut.text


def test_scores_of_extreme_logits() -> None:
    logits = np.array([np.inf, -np.inf, np.nan, 0], np.float32)
    found = scored(3, logits, 2)
    assert found.likeliest[0] == (0, 0.0) and np.isfinite(found.logprob)
    json.dumps(found.logprob, allow_nan=False)


def test_lengths_that_a_detokenizer_tells(served: Served) -> None:
    tokens = served.text.encode("naïve 漢字")
    detokenizer = Detokenizer(served.text)
    lengths = []
    for token in tokens:
        detokenizer.push(token)
        lengths.append(detokenizer.length)
    # Bytes that are no whole character yet do not count.
    assert lengths == sorted(lengths) and lengths[-1] == len("naïve 漢字")
    assert len(set(lengths)) < len(tokens)
    assert "".join(map(served.text.token_text, served.text.encode("The import"))) == "The import"


def test_fields_that_are_not_served_are_refused_by_name(served: Served) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused: dict[str, Any] = {
        "tools": [tool],
        "functions": [tool["function"]],
        "tool_choice": "required",
        "response_format": {"type": "grammar"},
        "logit_bias": {"5": 1},
        "modalities": ["audio"],
        "audio": {"voice": "x"},
        "prediction": {"type": "content"},
        "reasoning_effort": "high",
        "verbosity": "low",
        "store": True,
        "web_search_options": {"x": 1},
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "top_logprobs": 3,
        "seed": -1,
        "surprise": "x",
    }
    for name, value in refused.items():
        with pytest.raises(openai.BadRequestError, match=f"{name}: ") as caught:
            served.client.chat.completions.create(
                model="m", messages=MESSAGES, extra_body={name: value}
            )
        assert caught.value.param == name and caught.value.type == "invalid_request_error"
    for name, value in {"suffix": "x", "echo": True, "best_of": 2, "top_logprobs": 1}.items():
        with pytest.raises(openai.BadRequestError, match=f"{name}: ") as caught:
            served.client.completions.create(model="m", prompt="x", extra_body={name: value})
        assert caught.value.param == name
    message: Any = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}
    with pytest.raises(openai.BadRequestError, match="tool_calls") as caught:
        served.client.chat.completions.create(model="m", messages=[message])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="surprise"):
        served.client.completions.create(
            model="m",
            prompt="x",
            stream=True,
            stream_options={"surprise": 1},  # type: ignore
        )


def test_fields_that_ask_for_nothing_are_taken(served: Served) -> None:
    made = served.client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        max_completion_tokens=2,
        response_format={"type": "text"},
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        logprobs=False,
        store=False,
        user="someone",
        metadata={"a": "b"},
        extra_body={"modalities": ["text"], "logit_bias": {}},
    )
    assert made.usage is not None and made.usage.completion_tokens <= 2


def test_a_failure_ends_all_choices(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LanguageModel, tokens: Any) -> Any:
        raise RuntimeError("no electricity")

    monkeypatch.setattr(LanguageModel, "decode", fail)
    asked: dict[str, Any] = {"model": "m", "prompt": "The", "max_tokens": 4, "n": 2}
    with pytest.raises(openai.InternalServerError, match="no electricity"):
        served.client.completions.create(**asked)
    with pytest.raises(openai.APIError, match="no electricity"):
        list(served.client.completions.create(stream=True, **asked))
    monkeypatch.undo()
    url = str(served.client.base_url).removesuffix("v1/")
    assert served.client.completions.create(**asked).choices[1].text
    assert "requests_active 0" in httpx.get(f"{url}metrics").text


def test_a_client_that_leaves_frees_the_slots_of_all_choices(served: Served) -> None:
    url = str(served.client.base_url)
    body = {"prompt": "The", "max_tokens": 400, "n": 3, "stream": True}
    for _ in range(4):
        with httpx.stream("POST", f"{url}completions", json=body) as answer:
            next(answer.iter_lines())
    ends = time.monotonic() + 10
    while "requests_active 0" not in (found := httpx.get(f"{url.removesuffix('v1/')}metrics").text):
        assert time.monotonic() < ends
        time.sleep(0.05)
    (cancelled,) = re.findall(r"^coral_bundle_requests_cancelled_total (\d+)", found, re.MULTILINE)
    # More than one of a prompt.
    assert int(cancelled) > 4, found
