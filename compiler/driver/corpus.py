"""Tokens that a language model is calibrated and verified on."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from compiler.driver.options import LanguageOptions
from compiler.errors import CalibrationError, ModelError, no_file
from compiler.frontends import Source
from compiler.runtime import confined
from compiler.runtime.confined import ConfinedError

# Sequences that set the ranges, and others that the bundle is verified on. Of the latter the first
# `chunk` tokens go through prefill, the rest through decode.
CALIBRATION = 48
HELD_OUT = 8
DECODED = 48
# Every so many sequences of the text one is held out.
HELD_OUT_STRIDE = 7
# Bytes of a text to calibrate on, of which some thousand tokens are used.
LARGEST_TEXT = 16 << 20


def calibration_rows(
    source: Source, path: Path | None, options: LanguageOptions
) -> list[np.ndarray]:
    """Rows of token numbers [tokens], int64: those to calibrate on, then HELD_OUT more.

    They are taken at equal distances from the text in `path`, or from Python's manual. Raises
    CalibrationError for a text that cannot be read or is too short.
    """
    text = manual() if path is None else _text(path)
    tokens = np.array(encode(source, text), np.int64)
    length = min(options.chunk + DECODED, options.context)
    least = 2 * HELD_OUT * length
    if len(tokens) < least:
        name = "Python's manual" if path is None else path
        raise CalibrationError(f"{name}: has {len(tokens)} tokens; give at least {least}")
    count = min(CALIBRATION + HELD_OUT, len(tokens) // length)
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    # Both kinds come from all of the text.
    held_out = [i for i in range(count) if _is_held_out(i)]
    others = [i for i in range(count) if not _is_held_out(i)]
    return [tokens[starts[i] : starts[i] + length] for i in [*others, *held_out]]


def encode(source: Source, text: str) -> list[int]:
    """The tokens of a text. Raises ModelError for a tokenizer that cannot take it."""
    name = source.architecture.name
    vocabulary = source.architecture.vocabulary
    try:
        tokenizer = confined.tokenizer(source.tokenizer.definition)
        tokens = confined.encode(tokenizer, text, add_special_tokens=False)
    except ConfinedError as error:
        raise ModelError(f"{name}: its tokenizer cannot be used: {error}") from error
    largest = max(tokens, default=0)
    if largest >= vocabulary:
        raise ModelError(
            f"{name}: its tokenizer gives token {largest}, the model knows {vocabulary}"
        )
    return tokens


def manual() -> str:
    """English text that every machine has: Python's reference manual."""
    pages = [re.sub(r"[ \t]+", " ", body) for _, body in sorted(topics.items())]
    return "\n\n".join(pages)


def _is_held_out(index: int) -> bool:
    return index % HELD_OUT_STRIDE == HELD_OUT_STRIDE - 1


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise CalibrationError(
                f"{path}: {no_file(path)}; language models are calibrated on UTF-8 text"
            )
        if path.stat().st_size > LARGEST_TEXT:
            limit = LARGEST_TEXT >> 20
            raise CalibrationError(f"{path}: larger than {limit} MiB: give a part of it")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: language models are calibrated on UTF-8 text: {error}"
        ) from error
