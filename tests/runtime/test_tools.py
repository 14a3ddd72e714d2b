"""Calls of tools: read out of what models write, and asked for by the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import ollama
import openai
import pytest

from compiler.runtime import Bundle
from compiler.runtime.batching import Batcher
from compiler.runtime.calls import Call, CallForm, CallReader, call_form
from compiler.runtime.language import LanguageModel
from compiler.runtime.server import CompletionServer, Web
from compiler.runtime.text import Text
from tests.runtime.listening import listening

HERMES = (
    "{% if tools %}{% for tool in tools %}{{ tool.function | tojson }} {% endfor %}"
    "<tool_call></tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.lamp }}"
    "</tool_call>{% endfor %} {% endfor %}"
)
LAMP = {
    "type": "object",
    "properties": {"lamp": {"enum": ["kitchen", "hall"]}},
    "required": ["lamp"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "set_lamp", "parameters": LAMP}},
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]
MESSAGES: Any = [{"role": "user", "content": "A class definition"}]


@dataclass(frozen=True)
class Served:
    openai: openai.OpenAI
    ollama: ollama.Client
    text: Text


def text_of(bundle: Bundle, template: str) -> Text:
    bundle.manifest["language"]["tokenizer"]["chat_template"] = template
    return Text(bundle)


@pytest.fixture(scope="module")
def served(language_bundle: Path) -> Iterator[Served]:
    pytest.importorskip("llguidance")
    bundle = Bundle.open(language_bundle)
    text = text_of(bundle, HERMES)
    server = CompletionServer(Web("m"), text, Batcher(LanguageModel(bundle, slots=3)))
    with listening(server) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield Served(client, ollama.Client(url), text)


# What the templates of published models hold, in short.
TEMPLATES = {
    "qwen": "{% if tools %}<tools></tools> return <tool_call></tool_call>{% endif %}",
    "phi": "{{ message.tools }} <|tool_call|> and <|/tool_call|>",
    "granite": "{% if tools %}<|tool_call|>{{ x }}{% endif %}",
    "mistral": "{% if tools is not none %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
    "llama": '{% if tools %} in the format {"name": f, "parameters": {}} {% endif %}',
}
WRITTEN = {
    "qwen": 'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "phi": 'Sure.\n<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]'
    "<|/tool_call|>",
    "granite": 'Sure.\n<|tool_call|> [{"name": "f", "arguments": {"a": 1}},'
    ' {"name": "g", "arguments": "{}"}]',
    "mistral": 'Sure.\n[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}},'
    ' {"name": "g", "arguments": {}}]',
    "llama": '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
}


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_in_the_form_of_the_template(family: str, size: int) -> None:
    form = call_form(TEMPLATES[family])
    assert form is not None
    reader = CallReader(form)
    written = WRITTEN[family]
    pieces = [written[place : place + size] for place in range(0, len(written), size)]
    text = "".join(reader.push(piece) for piece in pieces)
    rest, calls = reader.rest()
    assert calls == [Call("f", {"a": 1}), Call("g", {})] and rest == ""
    assert text == ("" if family == "llama" else "Sure.\n")


def test_templates_without_tools_have_no_form() -> None:
    assert call_form(None) is None
    assert call_form("{{ messages }} <tool_call></tool_call>") is None
    assert call_form("{{ tools }} in a form of its own") is None


@pytest.mark.parametrize(
    "written",
    [
        "no call",
        "a < b and <tool",
        "<tool_call>\n{not JSON}\n</tool_call>",
        '<tool_call>["f"]</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call> and more',
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_what_is_no_call_is_text(written: str) -> None:
    reader = CallReader(CallForm("<tool_call>", "</tool_call>"))
    given = "".join(reader.push(letter) for letter in written)
    rest, calls = reader.rest()
    assert calls == [] and given + rest == written


def test_a_brace_within_a_text_begins_no_call() -> None:
    reader = CallReader(CallForm("", "", arguments="parameters"))
    assert reader.push(" \n") == "" and reader.push("A set is {") == " \nA set is {"
    assert reader.push('"name"') == '"name"' and reader.rest() == ("", [])


def test_a_forced_call_is_of_its_schema(served: Served) -> None:
    """Also from a model that has never seen a tool."""
    made = served.openai.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS[:1],
        tool_choice={"type": "function", "function": {"name": "set_lamp"}},
        max_tokens=60,
        temperature=0,
    )
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "set_lamp"
    jsonschema.validate(json.loads(call.function.arguments), LAMP)


def test_a_required_call_in_a_stream(served: Served) -> None:
    chunks = list(
        served.openai.chat.completions.create(
            model="m",
            messages=MESSAGES,
            tools=TOOLS[1:],
            tool_choice="required",
            max_tokens=60,
            temperature=0,
            stream=True,
        )
    )
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    (call,) = calls
    assert call.index == 0 and call.function is not None and call.function.name == "now"
    assert isinstance(json.loads(call.function.arguments or ""), dict)
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_an_answer_without_calls_is_text(served: Served) -> None:
    asked: Any = {"model": "m", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    plain = served.openai.chat.completions.create(**asked)
    none = served.openai.chat.completions.create(**asked, tools=TOOLS, tool_choice="none")
    assert plain.choices[0].message.content == none.choices[0].message.content
    offered = served.openai.chat.completions.create(**asked, tools=TOOLS)
    # The model reads about the tools.
    assert offered.usage is not None and plain.usage is not None
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens + 30
    assert offered.choices[0].finish_reason == "length"


def test_earlier_calls_and_their_results_reach_the_template(served: Served) -> None:
    call = {
        "id": "abc",
        "type": "function",
        "function": {"name": "set_lamp", "arguments": '{"lamp": "hall"}'},
    }
    conversation = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "done"},
    ]
    made = served.openai.chat.completions.create(
        model="m", messages=conversation, tools=TOOLS[:1], max_tokens=1
    )
    wanted = (
        f"{json.dumps(TOOLS[0]['function'])} <tool_call></tool_call>"
        "user: A class definition assistant: <tool_call>hall</tool_call> tool: done "
    )
    assert made.usage is not None
    tokens = served.text._encode(served.text._tokenizer, wanted, add_special_tokens=False)
    assert made.usage.prompt_tokens == len(served.text._with_begin(tokens))


def test_ollama_offers_tools_and_takes_their_results(served: Served) -> None:
    assert "tools" in (served.ollama.show("m").capabilities or [])
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]},
        {"role": "tool", "tool_name": "now", "content": "12:00"},
    ]
    made = served.ollama.chat("m", messages, tools=TOOLS[1:], options={"num_predict": 4})
    assert made.done_reason == "length" and made.message.tool_calls is None


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"tools": []}, None),
        ({"tools": "now"}, "tools: a list of"),
        ({"tools": [{"function": {"name": "a b"}}]}, "up to 64 letters"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two are named set_lamp"),
        ({"tools": TOOLS * 65}, "has 130 tools"),
        ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, "a JSON schema"),
        ({"tool_choice": "required"}, "tool_choice: needs tools"),
        ({"tools": TOOLS, "tool_choice": "now"}, "tool_choice: none, auto"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice: none, auto",
        ),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "together with tools"),
    ],
)
def test_bad_tools(served: Served, fields: dict[str, Any], complaint: str | None) -> None:
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 1} | fields
    url = str(served.openai.base_url) + "chat/completions"
    response = served.openai._client.post(url, json=body)
    if complaint is None:
        assert response.status_code == 200
        return
    assert response.status_code == 400 and complaint in response.json()["error"]["message"]


def test_tools_of_a_model_without_a_form_are_refused(language_bundle: Path) -> None:
    bundle = Bundle.open(language_bundle)
    text = Text(bundle)
    server = CompletionServer(Web("m"), text, Batcher(LanguageModel(bundle, slots=1)))
    with listening(server) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="no known form of calls") as caught:
            client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS)
        assert caught.value.param == "tools"


def test_marks_that_are_control_tokens_are_seen(language_bundle: Path) -> None:
    """A special token is no text, but tells where a call begins."""
    bundle = Bundle.open(language_bundle)
    text = text_of(bundle, "{{ tools }} [TOOL_CALLS]")
    text._tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    text._control = type(text._control)(text._tokenizer, set())
    mark = text._tokenizer.token_to_id("[TOOL_CALLS]")
    tokens = text._encode(text._tokenizer, "abc", add_special_tokens=False)
    assert text.decode([*tokens, mark, *tokens]) == "abcabc"
    assert text.decode_calls([*tokens, mark, *tokens]) == "abc[TOOL_CALLS]abc"
