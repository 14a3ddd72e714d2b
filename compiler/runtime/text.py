"""Text to tokens and back, and conversations as a model's chat template writes them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compiler.runtime import confined
from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.confined import Confined, ConfinedError, RefusedError
from compiler.runtime.manifest import fixed_shape

Message = Mapping[str, Any]
# Characters that no text uses stand for the first ones of control tokens while a template is
# rendered.
_STANDINS = range(0xF0000, 0xFFFFE)


class TextError(ValueError):
    """A text or conversation that the model cannot take."""


class Text:
    """The tokenizer and the chat template of a language model's bundle."""

    def __init__(self, bundle: Bundle) -> None:
        language = bundle.manifest["language"]
        self._settings = language["tokenizer"]
        path = bundle.path / self._settings["path"]
        try:
            self._tokenizer = confined.tokenizer_file(path)
        except ConfinedError as error:
            raise RuntimeBundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
        self._template = Confined(confined.TEMPLATE_BYTES, confined.TEMPLATE_SECONDS)
        # Tokens that the model has embeddings for; a tokenizer may know more.
        self.size = fixed_shape(bundle.manifest["outputs"][0])[-1]
        self.ends: frozenset[int] = frozenset(self._settings["ends"])
        # Characters beyond which no text fits the context.
        self._longest = language["context"] * max(map(len, self._tokenizer.get_vocab()), default=1)
        self._control = _Control(self._tokenizer, {*self.ends, self._settings["begin"]})

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with the model's begin token where it wants one. Raises
        TextError."""
        return self._begun(self._encode(self._tokenizer, text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without control tokens. Raises TextError."""
        try:
            return confined.decode(self._tokenizer, tokens)
        except ConfinedError as error:
            raise TextError(f"the tokenizer has no text for the tokens: {error}") from error

    def stream(self, tokens: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
        """The text of tokens as soon as it is settled; ends in front of the first of `stops`."""
        flow = Flow(self, stops)
        for token in tokens:
            yield flow.push(token)
            if flow.ended:
                return
        yield flow.rest()

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the assistant answers. Raises TextError.

        Control tokens come from the template alone. Where messages hold their text, it becomes the
        tokens that any other text would have.
        """
        tokens = self._encode(self._tokenizer, self._render(messages), add_special_tokens=False)
        standins = self._control.standins(messages)
        if standins:
            disguised = _translated(messages, str.maketrans(standins))
            parts = self._control.split(self._render(disguised))
            own = [part for part in parts if isinstance(part, int)]
            if own != [token for token in tokens if token in self._control.ids]:
                originals = {ord(standin): first for first, standin in standins.items()}
                tokens = self._literally(parts, originals)
        return self._begun(tokens)

    def _literally(self, parts: Sequence[int | str], originals: Mapping[int, str]) -> list[int]:
        """Tokens of a text cut at control tokens, which are none between the cuts."""
        tokenizer = self._control.literal()
        tokens = []
        for part in parts:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self._encode(
                    tokenizer, part.translate(originals), add_special_tokens=False
                )
        return tokens

    def _render(self, messages: Any) -> str:
        """What the chat template makes of messages. Templates come with models, from anywhere: they
        run in jinja2's sandbox, in a process with limits."""
        source = self._settings["chat_template"]
        if source is None:
            raise TextError("the model has no chat template: use `generate` or /v1/completions")
        values = {
            "messages": messages,
            "add_generation_prompt": True,
            "bos_token": self._token(self._settings["begin"]),
            "eos_token": self._token(next(iter(self._settings["ends"]), None)),
        }
        try:
            return str(self._template.ask("render", source, values))
        except RefusedError as error:
            raise TextError(f"the chat template refuses the conversation: {error}") from error
        except ConfinedError as error:
            raise TextError(f"the chat template cannot be rendered: {error}") from error

    def _encode(self, tokenizer: Any, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > self._longest:
            raise TextError(
                f"a text of {len(text)} characters: the context holds {self._longest} at most"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"character {error.start} of the text is half of a pair (a lone surrogate)"
            ) from error
        try:
            tokens = confined.encode(tokenizer, text, add_special_tokens)
        except ConfinedError as error:
            raise TextError(f"the tokenizer cannot take the text: {error}") from error
        beyond = [token for token in tokens if token >= self.size]
        if beyond:
            raise TextError(f"the text has token {beyond[0]}, the model knows {self.size}")
        return tokens

    def _begun(self, tokens: list[int]) -> list[int]:
        """Tokens with the model's begin token in front where it wants one."""
        begin = self._settings["begin"]
        if begin is None or not self._settings["add_begin"] or tokens[:1] == [begin]:
            return tokens
        return [begin, *tokens]

    def _token(self, index: int | None) -> str:
        return "" if index is None else str(self._tokenizer.id_to_token(index) or "")


class _Control:
    """The tokens that structure a conversation, and texts in which users spell them."""

    def __init__(self, tokenizer: Any, others: set[int | None]) -> None:
        added = tokenizer.get_added_tokens_decoder()
        tokens = {
            index: token for index, token in added.items() if token.special or index in others
        }
        self.ids = frozenset(tokens)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._literal: Any = None
        self._firsts = sorted({token.content[0] for token in tokens.values() if token.content})
        # The longest first: one may begin as another does.
        ordered = sorted(tokens.items(), key=lambda item: (-len(item[1].content), item[0]))
        self._by_text = {token.content: index for index, token in ordered if token.content}
        patterns = []
        for _, token in ordered:
            if token.content:
                before, behind = r"\s*" * token.lstrip, r"\s*" * token.rstrip
                patterns.append(f"{before}({re.escape(token.content)}){behind}")
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def standins(self, messages: Any) -> dict[str, str]:
        """Characters that the messages do not have, for those of theirs that control tokens begin
        with."""
        used = set().union(*_strings(messages))
        free = (chr(code) for code in _STANDINS if chr(code) not in used)
        firsts = (first for first in self._firsts if first in used)
        return dict(zip(firsts, free, strict=False))

    def split(self, text: str) -> list[int | str]:
        """A text cut at control tokens: these as numbers, what is between them as it is."""
        parts: list[int | str] = []
        at = 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            parts += [text[at : match.start()], self._by_text[match.group(match.lastindex or 0)]]
            at = match.end()
        return [part for part in [*parts, text[at:]] if part != ""]

    def literal(self) -> Any:
        """A tokenizer to which control tokens are text."""
        with self._lock:
            if self._literal is None:
                definition = json.loads(self._tokenizer.to_str())
                for token in definition["added_tokens"]:
                    token["special"] = token["id"] in self.ids
                self._literal = type(self._tokenizer).from_str(json.dumps(definition))
                self._literal.encode_special_tokens = True
            return self._literal


def _strings(value: Any) -> Iterator[str]:
    """The strings in a value of JSON, but for names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _translated(value: Any, table: dict[int, str]) -> Any:
    """A value of JSON, the characters of its strings exchanged."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {key: _translated(inner, table) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_translated(inner, table) for inner in value]
    return value


class Flow:
    """Turns one text's tokens into characters as soon as they are settled.

    A character may need several tokens, and a stop string too: text that may still become either is
    held back. `ended` says that an end token or a stop string came.
    """

    def __init__(self, text: Text, stops: Sequence[str] = ()) -> None:
        self._text, self._stops = text, [s for s in stops if s]
        self._held = max(map(len, self._stops), default=1) - 1
        self._tokens: list[int] = []
        self._given = 0
        self.ended = False

    def push(self, token: int) -> str:
        """What a token settles; may be empty."""
        if token in self._text.ends:
            self.ended = True
            return self.rest()
        self._tokens.append(token)
        text = self._text.decode(self._tokens)
        found = [place for s in self._stops if (place := text.find(s)) >= 0]
        self.ended = bool(found)
        settled = min(found) if found else len(text) - self._held
        if not found and text.endswith("\ufffd"):
            settled = min(settled, len(text.rstrip("\ufffd")))
        part = text[self._given : max(settled, self._given)]
        self._given += len(part)
        return part

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        part = self._text.decode(self._tokens)[self._given :]
        self._given += len(part)
        return part
