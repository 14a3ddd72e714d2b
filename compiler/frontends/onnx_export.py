"""ONNX decoders as optimum, onnxruntime-genai's builder and torch.onnx export them, beside their
configuration.

Weights are found by the names that exporters give to modules, and the decoder is written anew from
them, with a cache of static shape (frontends/decoder.py). The export itself then runs on
onnxruntime: where its logits are not those of the new decoder, it computes something that its
configuration does not say, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler import importer
from compiler.errors import ModelError, first_line
from compiler.frontends import decoder, genai, huggingface
from compiler.frontends.architecture import Architecture, Source
from compiler.frontends.export_weights import find_weights
from compiler.frontends.families import LLAMA
from compiler.frontends.textfile import read_json
from compiler.graph.reference import Reference, open_session

GENAI = genai.FILE
# Tokens on which an export and the decoder made of it are compared.
TOKENS = 12
# Largest difference of logits, as a share of the largest: the new decoder keeps its embeddings as
# float16.
TOLERANCE = 5e-3

_DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}


def recognises(path: Path) -> bool:
    """Whether an .onnx file is an exported decoder: its folder has a configuration of a family that
    is supported."""
    folder = path.parent
    if path.suffix != ".onnx" or not path.is_file():
        return False
    if (folder / GENAI).is_file():
        return True
    try:
        return huggingface.is_supported(read_json(folder / "config.json"))
    except ModelError:
        return False


def read(path: Path) -> Source:
    """The decoder in an .onnx file. Raises ModelError for what is missing, and for exports that
    compute otherwise."""
    model = importer.read_file(path)
    folder = path.parent
    if (folder / GENAI).is_file():
        architecture, config = genai.read(folder, model)
        # The builder has merged into its operators and weights what families do otherwise.
        weights = find_weights(model, architecture, LLAMA)
        source = Source(architecture, weights, huggingface.tokenizer(folder, config))
    else:
        config = huggingface.configuration(folder)
        architecture = huggingface.architecture(folder, config)
        weights = find_weights(model, architecture, huggingface.family_of(config))
        source = huggingface.source(folder, config, architecture, weights)
    _check_same_logits(path, source)
    return source


def _check_same_logits(path: Path, source: Source) -> None:
    """Run the export and the decoder that was made of it on the same tokens.

    Raises ModelError where their logits differ.
    """
    tokens, wanted = _logits_of_export(path, source.architecture)
    got = _logits_of_decoder(source, tokens)
    # Some exports give the logits of the last tokens only.
    got = got[:, -wanted.shape[1] :]
    difference = float(np.abs(got - wanted).max())
    largest = float(np.abs(wanted).max())
    # Written so that NaN is refused too.
    if not difference <= TOLERANCE * largest:
        raise ModelError(
            f"{path}: computes something else than its configuration says: logits of up to "
            f"{largest:.3g} differ by {difference:.3g}; build the folder of the original model "
            "instead"
        )


def _logits_of_export(path: Path, architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """(random tokens [S], logits [1, S or fewer, V] that an export gives for them)."""
    try:
        session = open_session(path)
        inputs = session.get_inputs()
        length = next(value.shape[1] for value in inputs if value.name == "input_ids")
        if not isinstance(length, int):  # the export takes any number of tokens
            length = TOKENS
        tokens = np.random.default_rng(0).integers(0, architecture.vocabulary, length)
        feeds = {value.name: _feed(value, tokens, architecture) for value in inputs}
        (logits,) = session.run(["logits"], feeds)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: cannot be run as a decoder ({first_line(error)})") from error
    return tokens, np.asarray(logits, np.float32)


def _logits_of_decoder(source: Source, tokens: np.ndarray) -> np.ndarray:
    """Logits [1, S, V] of the decoder that is written for a source."""
    length = len(tokens)
    program_shape = decoder.ProgramShape(1, length, length, all_logits=True)
    model = decoder.write(source, program_shape)
    feeds = decoder.sample(model.graph, tokens, program_shape)
    with Reference(model) as reference:
        return reference.run(feeds, ["logits"])["logits"]


def _feed(value: Any, tokens: np.ndarray, architecture: Architecture) -> np.ndarray:
    """An input of an export for these tokens and nothing cached. Raises ModelError for one that is
    not known."""
    count = len(tokens)
    dtype = _DTYPES.get(value.type, np.float32)
    arrays: Mapping[str, np.ndarray] = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, count)),
        "position_ids": np.arange(count)[None],
        "cache_position": np.arange(count),
    }
    if value.name in arrays:
        return arrays[value.name].astype(dtype)
    if value.name.startswith("past_key_values."):
        return np.zeros((1, architecture.kv_heads, 0, architecture.head), dtype)
    raise ModelError(
        f"input '{value.name}' of the exported decoder is not known: export it with optimum"
    )
