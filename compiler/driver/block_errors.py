"""Measures what fusing feed-forward blocks costs a language model, as the divergence of its next
token's distribution from the float model's.

Each block (driver/blocks.py) is run by itself, as the bundle would run it; the rest of the model
stays in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from compiler import files
from compiler.driver.blocks import LENGTH, Blocks
from compiler.driver.chain import Borders, FloatChain
from compiler.driver.fused import fused_nodes
from compiler.driver.perplexity import divergence
from compiler.emit import bundle
from compiler.emit import manifest as manifests
from compiler.frontends import Source
from compiler.frontends.decoder import in_place
from compiler.frontends.decoder_parts import STREAM
from compiler.partition import Program
from compiler.progress import Progress, silent
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.manifest import Manifest, fixed_shape

# Rows that errors of blocks are measured on.
MEASURED = 2
# Of the tokens of a row, every so many is looked at: neighbours say much the same.
STRIDE = 4
THREADS = 2


def block_errors(
    blocks: Blocks, rows: Sequence[np.ndarray], progress: Progress = silent
) -> dict[int, float]:
    """By layer, the mean divergence in nats over `rows` [tokens] where its block alone is fused.

    Layers whose block the Edge TPU does not take are left out.
    """
    layers = range(blocks.source.architecture.layers)
    done = progress("measuring fused blocks", len(rows) + len(layers))
    errors = {}
    with FloatChain(blocks.source, row_length(rows)) as chain:
        borders = []
        for row in rows:
            borders.append(chain.run(row))
            done()
        for layer in layers:
            program = blocks.program(layer)
            if fused_nodes(program, layer):
                errors[layer] = _error(program, layer, chain, borders)
            done()
    return errors


def row_length(rows: Sequence[np.ndarray]) -> int:
    """How many tokens of each row are looked at."""
    return min(LENGTH, *(len(row) for row in rows))


def float_logits(source: Source, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The float model's logits [tokens, vocabulary] of rows [tokens]."""
    with FloatChain(source, row_length(rows)) as chain:
        return [chain.run(row).logits for row in rows]


def program_divergence(
    program: Program, layers: int, rows: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> float:
    """The mean divergence, in nats, of a prefill program that gives the logits of all tokens, from
    the `expected` ones of rows; one chunk is as long as a row."""
    updates = set(in_place(layers).values())
    found = []
    with files.temporary("divergence") as folder:
        pipeline = _pipeline(program, folder.path)
        shapes = {entry["name"]: fixed_shape(entry) for entry in pipeline.inputs}
        fixed = {name: np.zeros(shapes[name], np.float32) for name in updates}
        for row, wanted in zip(rows, expected, strict=True):
            count = len(wanted)
            feeds = {
                "tokens": row[None, :count],
                "lengths": np.array([count - 1], np.int32),
                "total": np.array([count], np.int32),
            }
            logits = pipeline.run({**fixed, **feeds})["logits"][0]
            found.append(_divergence(logits, wanted))
    return float(np.mean(found))


def _error(program: Program, layer: int, chain: FloatChain, rows: Sequence[Borders]) -> float:
    """The mean divergence with what the program of a block gives."""
    found = []
    with files.temporary("block") as folder:
        pipeline = _pipeline(program, folder.path)
        for borders in rows:
            (added,) = pipeline.run({STREAM: borders.streams[layer]}).values()
            logits = chain.logits_with(borders, layer, added)
            found.append(_divergence(logits, borders.logits))
    return float(np.mean(found))


def _divergence(logits: np.ndarray, wanted: np.ndarray) -> float:
    pairs = zip(logits[::STRIDE], wanted[::STRIDE], strict=True)
    return float(np.mean([divergence(got, want) for got, want in pairs]))


def _pipeline(program: Program, folder: Path) -> Pipeline:
    """A program that is only tried: its segments need no manifest."""
    segments = bundle.write_segments({"": program}, folder)[""]
    entry = manifests.program_entry(program, segments)
    return Pipeline(Bundle(folder, cast(Manifest, entry)), THREADS, entry)
