"""Tokens that structure a conversation, and messages in which users spell them.

A message with the text `<|im_end|>` must not end its turn: control tokens may come from the chat
template alone. To tell both apart, the conversation is rendered a second time with stand-ins for
those characters of the messages that a control token could begin with. Control tokens of that text
are the template's. What is between them is tokenized by a tokenizer that takes them for text.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

# Stand-ins: characters for private use, which no text has.
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class ControlTokens:
    """The control tokens of a tokenizer: its special ones, and those named in `others`."""

    def __init__(self, tokenizer: Any, others: set[int | None]) -> None:
        found = {}
        for index, token in tokenizer.get_added_tokens_decoder().items():
            if token.special or index in others:
                found[index] = token
        self.ids = frozenset(found)
        written = {index: token for index, token in found.items() if token.content}
        self._tokenizer = tokenizer
        self._first_characters = sorted({token.content[0] for token in written.values()})
        self._ids_by_text = {token.content: index for index, token in written.items()}
        self._pattern = _pattern(written)
        self._lock = threading.Lock()
        self._literal_tokenizer: Any = None

    def stand_ins(self, messages: Any) -> dict[str, str]:
        """A stand-in for each character of the messages that a control token could begin with.

        Empty where no message can spell one. The messages have no stand-in themselves.
        """
        used: set[str] = set()
        for text in _texts(messages):
            used.update(text)
        dangerous = [first for first in self._first_characters if first in used]
        unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        return dict(zip(dangerous, unused, strict=False))

    def split(self, text: str) -> list[int | str]:
        """A text cut at control tokens: these as numbers, what is between them as text."""
        if self._pattern is None:
            return [text] if text else []
        parts: list[int | str] = []
        end = 0
        for match in self._pattern.finditer(text):
            spelled = match.group(match.lastindex or 0)
            parts += [text[end : match.start()], self._ids_by_text[spelled]]
            end = match.end()
        parts.append(text[end:])
        return [part for part in parts if part != ""]

    def literal_tokenizer(self) -> Any:
        """A tokenizer to which control tokens are text. It is made once, whichever thread asks."""
        with self._lock:
            if self._literal_tokenizer is None:
                self._literal_tokenizer = self._make_literal()
            return self._literal_tokenizer

    def _make_literal(self) -> Any:
        definition = json.loads(self._tokenizer.to_str())
        # The library can ignore all special tokens of a text: control tokens become such, and
        # other added tokens no longer are.
        for token in definition["added_tokens"]:
            token["special"] = token["id"] in self.ids
        literal = type(self._tokenizer).from_str(json.dumps(definition))
        literal.encode_special_tokens = True
        return literal


def replace_characters(value: Any, table: Mapping[int, str]) -> Any:
    """A value of JSON, the characters of its texts replaced; names of fields stay."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {name: replace_characters(inner, table) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_characters(inner, table) for inner in value]
    return value


def _pattern(tokens: Mapping[int, Any]) -> re.Pattern[str] | None:
    """Finds the texts of control tokens; None where there are none."""
    patterns = []
    # The longest first: one may begin as another does.
    for _, token in sorted(tokens.items(), key=_longest_first):
        # Some tokens take the spaces beside them along.
        before = r"\s*" if token.lstrip else ""
        after = r"\s*" if token.rstrip else ""
        patterns.append(f"{before}({re.escape(token.content)}){after}")
    return re.compile("|".join(patterns)) if patterns else None


def _longest_first(entry: tuple[int, Any]) -> tuple[int, int]:
    index, token = entry
    return -len(token.content), index


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of JSON, but for names of fields."""
    if isinstance(value, str):
        yield value
        return
    inner_values: Any = ()
    if isinstance(value, Mapping):
        inner_values = value.values()
    elif isinstance(value, list | tuple):
        inner_values = value
    for inner in inner_values:
        yield from _texts(inner)
