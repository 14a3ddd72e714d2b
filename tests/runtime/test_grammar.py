"""Answers that are held to JSON schemas, checked with json and jsonschema."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import ollama
import openai
import pytest

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher
from compiler.runtime.grammar import GrammarError
from compiler.runtime.language import LanguageModel
from compiler.runtime.server import CompletionServer, Web, completions
from compiler.runtime.text import Text
from tests.runtime.listening import listening

MESSAGES: Any = [{"role": "user", "content": "A class definition"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "lamp": {"enum": ["kitchen", "hall"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["lamp", "level", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Served:
    openai: openai.OpenAI
    ollama: ollama.Client
    text: Text


@pytest.fixture(scope="module")
def served(language_bundle: Path) -> Iterator[Served]:
    pytest.importorskip("llguidance")
    bundle = Bundle.open(language_bundle)
    text = Text(bundle)
    server = CompletionServer(Web("m"), text, Batcher(LanguageModel(bundle, slots=3)))
    with listening(server) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield Served(client, ollama.Client(url), text)


def response_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


def test_every_choice_is_json_of_the_schema(served: Served) -> None:
    for seed in range(4):
        made = served.openai.chat.completions.create(
            model="m",
            messages=MESSAGES,
            response_format=response_format(SCHEMA),
            temperature=1.5,
            seed=seed,
            n=2,
            max_tokens=150,
        )
        for choice in made.choices:
            assert choice.finish_reason == "stop", choice
            jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)


def test_json_object_in_a_stream(served: Served) -> None:
    stream = served.openai.chat.completions.create(
        model="m",
        messages=MESSAGES,
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=60,
        stream=True,
        logprobs=True,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.startswith("{")
    if chunks[-1].choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_ollamas_format(served: Served) -> None:
    options = {"num_predict": 150, "seed": 3}
    made = served.ollama.chat("m", MESSAGES, format=SCHEMA, options=options)
    assert made.done_reason == "stop"
    jsonschema.validate(json.loads(made.message.content or ""), SCHEMA)
    lines = served.ollama.generate("m", "The", format="json", options=options, stream=True)
    assert "".join(line.response for line in lines).startswith("{")


def test_others_are_not_held_to_it(served: Served) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    before = served.openai.chat.completions.create(**asked)
    served.openai.chat.completions.create(**asked, response_format=response_format(SCHEMA))
    after = served.openai.chat.completions.create(**asked)
    assert before.choices == after.choices


def test_schemas_that_cannot_be_held_to_are_refused(served: Served) -> None:
    for schema in (
        {"type": "strange"},
        {"type": "object", "properties": 5},
        {"type": "string", "pattern": "("},
        {"$ref": "#/nowhere"},
        {"not": {"type": "string"}},
    ):
        with pytest.raises(openai.BadRequestError, match="response_format: ") as caught:
            served.openai.chat.completions.create(
                model="m", messages=MESSAGES, response_format=response_format(schema)
            )
        assert caught.value.param == "response_format" and "\n" not in caught.value.message
    with pytest.raises(openai.BadRequestError, match="json_schema with"):
        served.openai.chat.completions.create(
            model="m", messages=MESSAGES, response_format=response_format(5)
        )


def test_a_constraint_takes_only_what_it_allows(served: Served) -> None:
    constraint = served.text.grammars.constraint({"enum": ["a"]})
    copy = constraint.copy()
    logits = np.zeros(served.text.vocabulary, np.float32)
    (quotes,) = np.nonzero(np.isfinite(constraint.allowed(logits)))
    assert {served.text.decode([token])[:1] for token in quotes.tolist()} == {'"'}
    (other,) = served.text.encode("x")
    with pytest.raises(GrammarError):
        constraint.take(other)
    assert np.isfinite(copy.allowed(logits)).any()


def test_without_the_package_the_field_is_refused(
    language_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(completions, "is_installed", lambda: False)
    bundle = Bundle.open(language_bundle)
    server = CompletionServer(Web("m"), Text(bundle), Batcher(LanguageModel(bundle, slots=3)))
    with listening(server) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="needs the package llguidance"):
            client.chat.completions.create(
                model="m", messages=MESSAGES, response_format={"type": "json_object"}
            )
