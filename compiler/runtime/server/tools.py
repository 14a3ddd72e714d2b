"""The tools of a chat: their definitions, which of them the answer may call, and calls in earlier
messages.

Everything here raises FieldError, a ValueError with one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.runtime.calls import Call
from compiler.runtime.server.fields import Body, FieldError, FlagField, is_given

TOOLS = "tools"
TOOL_CHOICE = "tool_choice"
PARALLEL = FlagField("parallel_tool_calls")
# OpenAI's limits.
MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """The tools of a chat.

    definitions: as the client sent them, and as chat templates take them
    forced:      names of the tools of which the answer has to call one; none: it may answer
    single:      whether it may make one call at most
    """

    definitions: list[dict[str, Any]] = field(default_factory=list)
    forced: tuple[str, ...] = ()
    single: bool = False

    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """The JSON schema of each tool's arguments, by its name."""
        found = {}
        for definition in self.definitions:
            function = definition["function"]
            found[function["name"]] = function.get("parameters") or {"type": "object"}
        return found


def tools(body: Body) -> Tools | None:
    """The tools that an answer may call; None for none."""
    definitions = _definitions(body)
    names = [definition["function"]["name"] for definition in definitions]
    choice = body.get(TOOL_CHOICE) or "auto"
    if choice == "none":
        return None
    if not definitions:
        if choice != "auto":
            raise FieldError(TOOL_CHOICE, "needs tools")
        return None
    single = is_given(body, PARALLEL.name) and not PARALLEL.read(body)
    return Tools(definitions, _forced(choice, names), single)


def _forced(choice: object, names: list[str]) -> tuple[str, ...]:
    if choice == "auto":
        return ()
    if choice == "required":
        return tuple(names)
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name in names:
            return (str(name),)
    raise FieldError(
        TOOL_CHOICE, "none, auto, required, or {type: function, function: {name: one of the tools}}"
    )


def _definitions(body: Body) -> list[dict[str, Any]]:
    if not is_given(body, TOOLS):
        return []
    found = body[TOOLS]
    if not isinstance(found, list):
        raise _bad_tools()
    if len(found) > MOST_TOOLS:
        raise FieldError(TOOLS, f"has {len(found)} tools; a request may have up to {MOST_TOOLS}")
    names = set()
    for definition in found:
        name = _name_of(definition)
        if name in names:
            raise FieldError(TOOLS, f"two are named {name}")
        names.add(name)
    return found


def _name_of(definition: object) -> str:
    """The name of a tool whose definition is what it should be."""
    function = definition.get("function") if isinstance(definition, dict) else None
    if not isinstance(function, dict):
        raise _bad_tools()
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FieldError(TOOLS, "a name has up to 64 letters, digits, _ and -")
    if not isinstance(function.get("parameters") or {}, dict):
        raise FieldError(TOOLS, f"{name}: parameters: a JSON schema")
    return name


def _bad_tools() -> FieldError:
    return FieldError(
        TOOLS, "a list of {type: function, function: {name, description, parameters}}"
    )


def earlier_calls(entries: object) -> list[dict[str, Any]]:
    """The calls of a message of the assistant, as chat templates take them."""
    if not isinstance(entries, list):
        raise _bad_calls()
    return [_earlier_call(entry) for entry in entries]


def _earlier_call(entry: object) -> dict[str, Any]:
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(function, dict):
        raise _bad_calls()
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise FieldError("messages", "arguments of a call are no JSON") from error
    if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
        raise _bad_calls()
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return call | {"id": entry["id"]} if isinstance(entry.get("id"), str) else call


def _bad_calls() -> FieldError:
    return FieldError("messages", "tool_calls: a list of {function: {name, arguments}}")


def call_json(call: Call) -> dict[str, Any]:
    """A call as Ollama's clients read it."""
    return {"function": {"name": call.name, "arguments": call.arguments}}
