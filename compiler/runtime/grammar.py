"""Holds answers to a JSON schema, or to a call of a tool: at each step, only those tokens remain
possible that lead there (constrained decoding, by the package llguidance)."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compiler.errors import one_line
from compiler.runtime import confined
from compiler.runtime.calls import CallForm
from compiler.runtime.confined import ConfinedError

# Without a limit, models that fill lines with spaces would never come to an end.
_WHITESPACE = {"whitespace_flexible": True, "whitespace_pattern": "[ \\n]{1,16}"}

# Arguments of calls are read by programs only.
_ONE_LINE = {"whitespace_flexible": True, "whitespace_pattern": " ?"}


class GrammarError(ValueError):
    """A schema that answers cannot be held to."""


def is_installed() -> bool:
    """Whether the package is there that this needs."""
    return importlib.util.find_spec("llguidance") is not None


class Constraint:
    """What one answer may be. One thread at a time may use it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def copy(self) -> Constraint:
        """The same for another answer; of one that has no token yet."""
        return Constraint(self._matcher.deep_copy())

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V], minus infinity where a token must not follow. Raises GrammarError."""
        with confined.panics():
            biases = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        self._check()
        is_allowed = biases[: len(logits)] > 0
        if not is_allowed.any():
            raise GrammarError("no token of the model leads to what is asked for")
        return np.where(is_allowed, logits, -np.inf)

    def take(self, token: int) -> None:
        """The token that follows. Raises GrammarError."""
        with confined.panics():
            self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(one_line(self._matcher.get_error())[:300])


class Grammars:
    """Makes constraints from schemas, for a tokenizer of the tokenizers library and a model of
    `vocabulary` tokens of which `ends` end a text. Any thread may ask."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._lock = threading.Lock()
        self._tokens: Any = None

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """JSON of a schema. Raises GrammarError for a schema that is none, or has what is not
        supported, and where the model has no token that ends a text."""
        import llguidance

        compile_schema = llguidance.LLMatcher.grammar_from_json_schema
        return self._compiled(lambda: compile_schema(dict(schema), defaults=_WHITESPACE))

    def call(self, form: CallForm, schemas: Mapping[str, Mapping[str, Any]]) -> Constraint:
        """One call of a tool, of which `schemas` has the arguments by name.

        Raises GrammarError as `constraint` does.
        """
        import llguidance

        options = {"x-guidance": _ONE_LINE}
        calls = []
        for name, schema in schemas.items():
            before = f'{{"name": {json.dumps(name)}, "{form.arguments}": '
            arguments = json.dumps(options | dict(schema))
            calls.append(f'{json.dumps(before)} %json {arguments} "}}"')
        opening, closing = ("[", "]") if form.is_list else ("", "")
        begin = self._literals(form.begin, opening)
        end = self._literals(closing, form.end)
        grammar = f"start: {begin} call {end}\ncall: {' | '.join(calls)}\n"
        return self._compiled(lambda: llguidance.LLMatcher.grammar_from_lark(grammar))

    def _literals(self, *texts: str) -> str:
        """Texts in llguidance's notation; those of control tokens as these."""
        special = {
            token.content: index
            for index, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        written = []
        for text in filter(None, texts):
            is_token = text in special
            written.append(f"<[{special[text]}]>" if is_token else json.dumps(text))
        return " ".join(written)

    def _compiled(self, grammar: Callable[[], Any]) -> Constraint:
        import llguidance

        if not self._ends:
            raise GrammarError("the model has no token that ends a text")
        try:
            with confined.panics():
                constraint = Constraint(
                    llguidance.LLMatcher(self._known_tokens(), grammar(), log_level=0)
                )
        except ConfinedError as error:
            raise GrammarError(str(error)) from error
        constraint._check()
        return constraint

    def _known_tokens(self) -> Any:
        """The library's view of the tokenizer. It is made once: that takes up to a second."""
        import llguidance

        with self._lock:
            if self._tokens is None:
                known = max(self._vocabulary, self._tokenizer.get_vocab_size())
                self._tokens = llguidance.LLTokenizer(
                    self._tokenizer.to_str(), n_vocab=known, eos_token=self._ends
                )
            return self._tokens
