"""A language model with its settings, for `generate` and `chat`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.cli.common import device_errors, err, notices, open_bundle
from compiler.errors import OptionError

if TYPE_CHECKING:
    from compiler.runtime.language import LanguageModel
    from compiler.runtime.sampling import Sampling
    from compiler.runtime.text import Text


@dataclass(frozen=True)
class Session:
    """An open language model, its text, and how its tokens are drawn."""

    model: LanguageModel
    text: Text
    sampling: Sampling

    @classmethod
    def open(cls, path: Path, devices: str, threads: int, sampling: Sampling) -> Session:
        """Raises BundleError, OptionError."""
        from compiler.runtime.language import LanguageModel
        from compiler.runtime.text import Text

        bundle = open_bundle(path)
        with device_errors():
            model = LanguageModel(bundle, threads, devices=devices)
            notices(model.fleet.notices)
            return cls(model, Text(bundle), sampling)

    def answer(
        self, prompt: Sequence[int], limit: int, stops: Sequence[str], show_stats: bool
    ) -> str:
        """Print the text that follows a prompt of tokens as it comes; returns it."""
        times = _Times()
        # Tokens that the slot holds from the last time need no prefill.
        fresh = len(prompt) - self.model.kept(self.model.slots[0], prompt)
        generated = self.model.generate(list(prompt), limit, self.sampling)
        parts = []
        for part in self.text.stream(times.passing(generated), stops):
            parts.append(part)
            print(part, end="", flush=True)
        print()
        if show_stats and times.tokens:
            err.print(times.summary(fresh))
        return "".join(parts)


@dataclass
class _Times:
    """When tokens came, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)

    def passing(self, tokens: Iterator[int]) -> Iterator[int]:
        for token in tokens:
            self.tokens.append(time.perf_counter())
            yield token

    def summary(self, prefilled: int) -> str:
        first = self.tokens[0] - self.began
        text = (
            f"prefill {prefilled} tokens, {prefilled / first:.1f} tokens/s, "
            f"{first * 1e3:.0f} ms to the first"
        )
        decoding = self.tokens[-1] - self.tokens[0]
        if not decoding:
            return text
        count = len(self.tokens) - 1
        return f"{text}, decode {count} tokens, {count / decoding:.1f} tokens/s"


@contextmanager
def text_errors() -> Iterator[None]:
    """A text that the model cannot take is the user's to change."""
    with device_errors():
        try:
            yield
        except ValueError as error:
            raise OptionError(str(error)) from error


def sampling_of(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
) -> Sampling:
    """Raises OptionError, which names the option that is out of range."""
    from compiler.runtime.sampling import Sampling

    try:
        return Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    except ValueError as error:
        # The text begins with the name of the field.
        name, _, rest = str(error).partition(" ")
        raise OptionError(rest, name) from error
