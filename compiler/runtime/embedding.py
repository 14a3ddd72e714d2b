"""Sentence embeddings from an encoder's bundle: token states averaged over a text's own tokens, as
unit vectors."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from compiler.runtime import confined
from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.confined import ConfinedError
from compiler.runtime.devices import Device
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import fixed_shape
from compiler.runtime.pipeline import Pipeline

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class Embedder:
    """An encoder with its tokenizer (`build --tokenizer`). Raises RuntimeBundleError for bundles
    that are none.

    It takes input_ids and, where the model has them, attention_mask and token_type_ids [1, S]; its
    first output is [1, S, D], or [1, D] where the model pools by itself.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 2, devices: str | Sequence[Device] = "cpu"
    ) -> None:
        entry = bundle.manifest.get("tokenizer")
        names = {i["name"] for i in bundle.manifest["inputs"]}
        if entry is None or "input_ids" not in names or not names <= _INPUTS:
            raise RuntimeBundleError(
                f"{bundle.path}: is neither a language model nor an encoder with a tokenizer (build --tokenizer)"
            )
        self.fleet = Fleet.of(devices, threads, bundle.manifest["segments"])
        self._pipeline, self._lock = Pipeline(bundle, threads, fleet=self.fleet), threading.Lock()
        try:
            self._tokenizer = confined.tokenizer_file(bundle.path / entry["path"])
        except ConfinedError as error:
            raise RuntimeBundleError(
                f"{bundle.path}: its tokenizer cannot be read: {error}"
            ) from error
        ids = next(i for i in self._pipeline.inputs if i["name"] == "input_ids")
        self.length = fixed_shape(ids)[1]

    def tokens(self, text: str) -> np.ndarray:
        """The tokens of a text. Raises ValueError where they do not fit."""
        try:
            found = confined.encode(self._tokenizer, text)
        except ConfinedError as error:
            raise ValueError(f"the tokenizer cannot take the text: {error}") from error
        if not 0 < len(found) <= self.length:
            raise ValueError(f"a text has {len(found)} tokens; the model takes 1 to {self.length}")
        return np.array(found, np.int32)

    def embed(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The unit vector [D] of a text's tokens. Raises ArithmeticError where the model does not
        give numbers."""
        mask = np.zeros((1, self.length), np.int64)
        mask[0, : len(tokens)] = 1
        ids = np.zeros_like(mask)
        ids[0, : len(tokens)] = tokens
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        kinds = {i["name"]: i["dtype"] for i in self._pipeline.inputs}
        with self._lock:
            results = self._pipeline.run(
                {name: arrays[name].astype(kind) for name, kind in kinds.items()}
            )
        states = results[self._pipeline.outputs[0]["name"]].astype(np.float64)
        vector = states[0, : len(tokens)].mean(axis=0) if states.ndim == 3 else states[0]
        if not np.isfinite(vector).all():
            raise ArithmeticError("its embedding is not made of numbers")
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)
