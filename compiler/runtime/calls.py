"""Calls of tools in answers: how a model writes them, as its chat template shows, and how they are
read out of its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A tool that the model wants to have called, and with what."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls.

    begin, end: what stands around the JSON; both are empty where a call is the whole answer
    arguments:  the field of the JSON that holds the arguments; another, `name`, holds the name
    is_list:    whether the JSON is a list of calls
    """

    begin: str
    end: str
    arguments: str = "arguments"
    is_list: bool = False

    def of_template(self, template: str) -> bool:
        """Whether a chat template writes calls like this."""
        return (self.begin or f'"{self.arguments}"') in template and self.end in template


# By the templates that the models were published with.
_FORMS = (
    CallForm("<tool_call>", "</tool_call>"),  # Hermes, Qwen 2.5 and 3, SmolLM3
    CallForm("<|tool_call|>", "<|/tool_call|>", is_list=True),  # Phi-4-mini
    CallForm("<|tool_call|>", "", is_list=True),  # Granite 3
    CallForm("[TOOL_CALLS]", "", is_list=True),  # Mistral
    CallForm("", "", arguments="parameters"),  # Llama 3.1 to 3.3
)


def call_form(template: str | None) -> CallForm | None:
    """The form of calls in a model's chat template; None where it takes no tools, or writes calls
    in a form that is not known."""
    if template is None or not re.search(r"\btools\b", template):
        return None
    for form in _FORMS:
        if form.of_template(template):
            return form
    return None


class CallReader:
    """Reads the calls out of an answer that comes in pieces."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._began = False
        self._is_text = False

    def push(self, text: str) -> str:
        """What is text for sure, of some more text; what may be part of a call is held back."""
        if self._is_text:
            return text
        self._held += text
        if self._began:
            return ""
        if not self._form.begin:
            return self._push_unmarked()
        place = self._held.find(self._form.begin)
        self._began = place >= 0
        return self._give(place if self._began else self._settled())

    def rest(self) -> tuple[str, list[Call]]:
        """(the text that is left, the calls), once nothing more comes.

        What looked like a call and is none is text.
        """
        held, self._held = self._held, ""
        if not self._began:
            return held, []
        try:
            calls = list(self._calls(held))
        except (ValueError, RecursionError):
            return held, []
        return "", calls

    def _push_unmarked(self) -> str:
        """A call begins where the answer does, or there is none."""
        begin = self._held.lstrip()
        self._began = begin.startswith("{")
        self._is_text = bool(begin) and not self._began
        return self._give(len(self._held) if self._is_text else 0)

    def _settled(self) -> int:
        """The characters in front of what may become the mark of a call."""
        begin, held = self._form.begin, self._held
        for length in range(min(len(begin), len(held)), 0, -1):
            if held.endswith(begin[:length]):
                return len(held) - length
        return len(held)

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _calls(self, text: str) -> Iterator[Call]:
        """Raises ValueError where the text is anything but calls."""
        form = self._form
        decoder = json.JSONDecoder()
        while text := text.strip():
            if not text.startswith(form.begin):
                raise ValueError("text behind a call")
            found, end = decoder.raw_decode(text, _skip_spaces(text, len(form.begin)))
            for entry in found if form.is_list else [found]:
                yield self._call(entry)
            text = text[end:].lstrip().removeprefix(form.end)
            # Llama divides calls like this.
            text = text if form.begin else text.removeprefix(";")

    def _call(self, entry: Any) -> Call:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError("a call without a name")
        arguments = entry.get(self._form.arguments, {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise ValueError("arguments that are no object")
        return Call(entry["name"], arguments)


def _skip_spaces(text: str, place: int) -> int:
    return len(text) - len(text[place:].lstrip())
