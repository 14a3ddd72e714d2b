"""Text to tokens and back, and conversations as a model's chat template writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compiler.runtime.bundle import Bundle, RuntimeBundleError

Message = Mapping[str, Any]


class TextError(ValueError):
    """A text or conversation that the model cannot take."""


class Text:
    """The tokenizer and the chat template of a language model's bundle."""

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer

        self._settings = bundle.manifest["language"]["tokenizer"]
        path = bundle.path / self._settings["path"]
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise RuntimeBundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
        self.size = int(self._tokenizer.get_vocab_size())
        self.ends: frozenset[int] = frozenset(self._settings["ends"])

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with the model's begin token where it wants one."""
        return self._begun(list(self._tokenizer.encode(text).ids))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

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

        Templates come with models, from anywhere: they run in jinja2's sandbox, which keeps them
        from everything but their text.
        """
        import jinja2
        import jinja2.sandbox

        source = self._settings["chat_template"]
        if source is None:
            raise TextError("the model has no chat template: use `generate` or /v1/completions")

        def refuse(message: str) -> None:
            raise TextError(f"the chat template refuses the conversation: {message}")

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = refuse
        special = {
            "bos_token": self._token(self._settings["begin"]),
            "eos_token": self._token(next(iter(self._settings["ends"]), None)),
        }
        try:
            text = environment.from_string(source).render(
                messages=messages, add_generation_prompt=True, **special
            )
        except jinja2.TemplateError as error:
            raise TextError(f"the chat template cannot be rendered: {error}") from error
        return self._begun(list(self._tokenizer.encode(text, add_special_tokens=False).ids))

    def _begun(self, tokens: list[int]) -> list[int]:
        """Tokens with the model's begin token in front where it wants one."""
        begin = self._settings["begin"]
        wanted = self._settings["add_begin"] and begin is not None
        return [begin, *tokens] if wanted and tokens[:1] != [begin] else tokens

    def _token(self, index: int | None) -> str:
        return "" if index is None else str(self._tokenizer.id_to_token(index) or "")


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
