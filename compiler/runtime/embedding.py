"""Sentence embeddings from an encoder's bundle: token states averaged over a text's own tokens, as
unit vectors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from compiler.runtime import confined
from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.confined import ConfinedError
from compiler.runtime.devices import Device
from compiler.runtime.executor import Executor
from compiler.runtime.fleet import Fleet, HostThreads
from compiler.runtime.manifest import fixed_shape
from compiler.runtime.pipeline import Pipeline

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class Embedder:
    """An encoder whose bundle was built with its tokenizer.

    It takes input_ids and, where the model has them, attention_mask and token_type_ids [1, S]; its
    first output is [1, S, D], or [1, D] where the model pools by itself. `length` is S. Raises
    RuntimeBundleError for other bundles.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | HostThreads = 2,
        devices: str | Sequence[Device] = "cpu",
    ) -> None:
        path = _tokenizer_path(bundle)
        self.fleet = Fleet.of(devices, threads, bundle.manifest)
        self._pipeline = Pipeline(bundle, fleet=self.fleet)
        self._executor = Executor(self.fleet)
        weakref.finalize(self, self._executor.close)
        try:
            self._tokenizer = confined.tokenizer_file(bundle.path / path)
        except ConfinedError as error:
            raise RuntimeBundleError(
                f"{bundle.path}: its tokenizer cannot be read: {error}"
            ) from error
        ids = next(i for i in self._pipeline.inputs if i["name"] == "input_ids")
        self.length = fixed_shape(ids)[1]

    def tokens(self, text: str, cuts: bool = False) -> np.ndarray:
        """The tokens of a text, int32; with `cuts`, the end of a text that is too long is left out.

        Raises ValueError where they do not fit.
        """
        try:
            found = confined.encode(self._tokenizer, text)
            if cuts and len(found) > self.length:
                found = self._cut(text, found)
        except ConfinedError as error:
            raise ValueError(f"the tokenizer cannot take the text: {error}") from error
        if not 0 < len(found) <= self.length:
            raise ValueError(f"a text has {len(found)} tokens; the model takes 1 to {self.length}")
        return np.array(found, np.int32)

    def _cut(self, text: str, tokens: list[int]) -> list[int]:
        """As many tokens as the model takes, with what the tokenizer puts around every text."""
        bare = confined.encode(self._tokenizer, text, add_special_tokens=False)
        added = len(tokens) - len(bare)
        fronts = (place for place in range(added + 1) if tokens[place : place + len(bare)] == bare)
        front = next(fronts, 0)
        behind = tokens[front + len(bare) :]
        return [*tokens[: self.length - len(behind)], *behind][: self.length]

    def embed(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The unit vector [D] of a text's tokens, float32; any thread may ask.

        Raises ArithmeticError where the model does not give numbers.
        """
        values = self._pipeline.check_inputs(self._feeds(tokens))
        results = self._executor.run(self._pipeline, values)
        states = results[self._pipeline.outputs[0]["name"]].astype(np.float64)
        pools_itself = states.ndim != 3
        # Of the states [1, S, D] those of the padding do not count.
        vector = states[0] if pools_itself else states[0, : len(tokens)].mean(axis=0)
        if not np.isfinite(vector).all():
            raise ArithmeticError("its embedding is not made of numbers")
        length = float(np.linalg.norm(vector))
        return np.asarray(vector / max(length, 1e-12), np.float32)

    def _feeds(self, tokens: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The model's inputs for a text, padded to its length."""
        count = len(tokens)
        ids = np.zeros((1, self.length), np.int64)
        ids[0, :count] = tokens
        mask = np.zeros_like(ids)
        mask[0, :count] = 1
        arrays: Mapping[str, np.ndarray] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        feeds = {}
        for entry in self._pipeline.inputs:
            name = entry["name"]
            feeds[name] = arrays[name].astype(entry["dtype"])
        return feeds


def _tokenizer_path(bundle: Bundle) -> str:
    """The tokenizer's file in an encoder's bundle. Raises RuntimeBundleError for other bundles."""
    entry = bundle.manifest.get("tokenizer")
    names = {given["name"] for given in bundle.manifest["inputs"]}
    if entry is None or "input_ids" not in names or not names <= _INPUTS:
        raise RuntimeBundleError(
            f"{bundle.path}: is neither a language model, nor an encoder that was built with its "
            "tokenizer, nor a model that was built on pictures"
        )
    return str(entry["path"])
