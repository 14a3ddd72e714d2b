"""Text to tokens and back, and conversations as a model's chat template writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from compiler.runtime import confined
from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.calls import CallForm, call_form
from compiler.runtime.confined import Confined, ConfinedError, RefusedError
from compiler.runtime.control_tokens import ControlTokens, replace_characters
from compiler.runtime.grammar import Grammars
from compiler.runtime.manifest import fixed_shape

Message = Mapping[str, Any]

# What a decoder gives for bytes that are no whole character yet.
_REPLACEMENT = "\ufffd"


class TextError(ValueError):
    """A text or conversation that the model cannot take."""


class Text:
    """The tokenizer and the chat template of a language model's bundle.

    `vocabulary` is the number of tokens that the model has embeddings for; a tokenizer may know
    more. `ends` are tokens that end a text. Raises RuntimeBundleError for a tokenizer that cannot
    be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        language = bundle.manifest["language"]
        self._settings = language["tokenizer"]
        self._tokenizer = _load_tokenizer(bundle, self._settings["path"])
        self._template = Confined(confined.TEMPLATE_BYTES, confined.TEMPLATE_SECONDS)
        # Tokens that the model has embeddings for; a tokenizer may know more.
        self.vocabulary = fixed_shape(bundle.manifest["outputs"][0])[-1]
        self.ends: frozenset[int] = frozenset(self._settings["ends"])
        self._control = ControlTokens(self._tokenizer, {*self.ends, self._settings["begin"]})
        self.call_form: CallForm | None = call_form(self._settings["chat_template"])
        # Holds answers to schemas.
        self.grammars = Grammars(self._tokenizer, self.vocabulary, self.ends)
        # A longer text cannot fit the context, whatever its tokens.
        longest_token = max((len(token) for token in self._tokenizer.get_vocab()), default=1)
        self._longest_text = language["context"] * longest_token

    @property
    def has_template(self) -> bool:
        """Whether the model can take conversations."""
        return self._settings["chat_template"] is not None

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with the model's begin token where it wants one.

        Control tokens that are spelled in the text stay what they are. Raises TextError.
        """
        return self._with_begin(self._encode(self._tokenizer, text, add_special_tokens=True))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without control tokens. Raises TextError."""
        try:
            return confined.decode(self._tokenizer, tokens)
        except ConfinedError as error:
            raise TextError(f"the tokenizer has no text for the tokens: {error}") from error

    def decode_calls(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with the control tokens that mark calls. Raises TextError."""
        marks = self._call_marks
        parts = []
        begin = 0
        for place, token in enumerate(tokens):
            if token in marks:
                parts += [self.decode(tokens[begin:place]), marks[token]]
                begin = place + 1
        return "".join([*parts, self.decode(tokens[begin:])])

    @cached_property
    def _call_marks(self) -> Mapping[int, str]:
        form = self.call_form
        if form is None:
            return {}
        marks = {text: self._tokenizer.token_to_id(text) for text in (form.begin, form.end)}
        return {token: text for text, token in marks.items() if token in self._control.ids}

    def token_text(self, token: int) -> str:
        """What a token adds to a text; the name of a control token.

        Of a token that is no whole character alone, the replacement character.
        """
        if token in self._control.ids:
            return self._text_of(token)
        # Behind another token: at its beginning, a text may lose a space.
        tokens, text = self._anchor
        return self.decode([*tokens, token])[len(text) :]

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        tokens = self._encode(self._tokenizer, "a", add_special_tokens=False)
        return tokens, self.decode(tokens)

    def stream(self, tokens: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
        """The text of tokens as soon as it is settled; ends in front of the first of `stops`."""
        detokenizer = Detokenizer(self, stops)
        for token in tokens:
            yield detokenizer.push(token)
            if detokenizer.ended:
                return
        yield detokenizer.rest()

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Message] | None = None
    ) -> list[int]:
        """The tokens of a conversation, up to where the assistant answers, who may call `tools`.
        Raises TextError.

        Control tokens come from the template alone. Where messages or tools spell them, they become
        the tokens that any other text would have.
        """
        said = {"messages": messages, "tools": tools}
        rendered = self._render(said)
        tokens = self._encode(self._tokenizer, rendered, add_special_tokens=False)
        stand_ins = self._control.stand_ins(said)
        if stand_ins:
            disguised = replace_characters(said, str.maketrans(stand_ins))
            parts = self._control.split(self._render(disguised))
            if self._spelled_in_messages(tokens, parts):
                originals = {ord(stand_in): first for first, stand_in in stand_ins.items()}
                tokens = self._encode_parts(parts, originals)
        return self._with_begin(tokens)

    def _spelled_in_messages(self, tokens: Sequence[int], parts: Sequence[int | str]) -> bool:
        """Whether tokens have other control tokens than the template alone gives."""
        of_template = [part for part in parts if isinstance(part, int)]
        return [token for token in tokens if token in self._control.ids] != of_template

    def _encode_parts(self, parts: Sequence[int | str], originals: Mapping[int, str]) -> list[int]:
        """Tokens of a text cut at control tokens, with no others between the cuts.

        `originals` are the characters that stand-ins stand for.
        """
        tokenizer = self._control.literal_tokenizer()
        tokens = []
        for part in parts:
            if isinstance(part, int):
                tokens.append(part)
                continue
            text = part.translate(originals)
            tokens += self._encode(tokenizer, text, add_special_tokens=False)
        return tokens

    def _render(self, said: Mapping[str, Any]) -> str:
        """What the chat template makes of messages and tools.

        Templates come with models, from anywhere: they run in jinja2's sandbox, in a process with
        limits.
        """
        source = self._settings["chat_template"]
        if source is None:
            raise TextError("the model has no chat template: use `generate` or /v1/completions")
        values = {
            **said,
            "add_generation_prompt": True,
            "bos_token": self._text_of(self._settings["begin"]),
            "eos_token": self._text_of(next(iter(self._settings["ends"]), None)),
        }
        try:
            return str(self._template.ask("render", source, values))
        except RefusedError as error:
            raise TextError(f"the chat template refuses the conversation: {error}") from error
        except ConfinedError as error:
            raise TextError(f"the chat template cannot be rendered: {error}") from error

    def _encode(self, tokenizer: Any, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) > self._longest_text:
            raise TextError(
                f"a text of {len(text)} characters: the context holds {self._longest_text} at most"
            )
        try:
            tokens = confined.encode(tokenizer, text, add_special_tokens)
        except ConfinedError as error:
            raise TextError(f"the tokenizer cannot take the text: {error}") from error
        largest = max(tokens, default=0)
        if largest >= self.vocabulary:
            raise TextError(f"the text has token {largest}, the model knows {self.vocabulary}")
        return tokens

    def _with_begin(self, tokens: list[int]) -> list[int]:
        """Tokens with the model's begin token in front where it wants one."""
        begin = self._settings["begin"]
        if begin is None or not self._settings["add_begin"]:
            return tokens
        # A template may have written it already.
        return tokens if tokens[:1] == [begin] else [begin, *tokens]

    def _text_of(self, token: int | None) -> str:
        if token is None:
            return ""
        return str(self._tokenizer.id_to_token(token) or "")


def _load_tokenizer(bundle: Bundle, name: str) -> Any:
    path = bundle.path / name
    try:
        return confined.tokenizer_file(path)
    except ConfinedError as error:
        raise RuntimeBundleError(f"{path}: cannot be read as a tokenizer: {error}") from error


class Detokenizer:
    """Turns the tokens of one text into characters as soon as these are settled.

    A character may need several tokens, and a stop text too: text that may still become either is
    held back. `ended` says that an end token or a stop text came, `length` how many characters the
    tokens are so far, and `given` how many of them were given. `decode` makes text of tokens.
    """

    def __init__(
        self,
        text: Text,
        stops: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._text = text
        self._decode = decode or text.decode
        self._stops = [stop for stop in stops if stop]
        # So many characters at the end may be the beginning of a stop text.
        self._held = max((len(stop) for stop in self._stops), default=1) - 1
        self._tokens: list[int] = []
        self.given = 0
        self.length = 0
        self.ended = False

    def push(self, token: int) -> str:
        """What a token settles; may be empty."""
        if token in self._text.ends:
            self.ended = True
            return self.rest()
        self._tokens.append(token)
        # Decoded as a whole: how a token is written depends on those in front of it.
        text = self._decode(self._tokens)
        self.length = len(text.rstrip(_REPLACEMENT))
        stop = self._first_stop(text)
        if stop is not None:
            self.ended = True
            return self._give(text, stop)
        settled = len(text) - self._held
        if text.endswith(_REPLACEMENT):
            settled = min(settled, len(text.rstrip(_REPLACEMENT)))
        return self._give(text, settled)

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        text = self._decode(self._tokens)
        return self._give(text, len(text))

    def _first_stop(self, text: str) -> int | None:
        """Where the first stop text begins."""
        places = [text.find(stop) for stop in self._stops]
        found = [place for place in places if place >= 0]
        return min(found, default=None)

    def _give(self, text: str, end: int) -> str:
        """The characters up to `end` that were not given yet."""
        part = text[self.given : max(end, self.given)]
        self.given += len(part)
        return part
