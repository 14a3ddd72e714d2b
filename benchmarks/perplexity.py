"""Perplexity of a language model's prefill program beside the float model's, linear layers on the
Edge TPU in int8.

    python -m benchmarks.perplexity MODEL.gguf TEXT... [--naive]

8 sequences of 512 tokens of the texts (Debian's package `fortunes` has some), in chunks as the
bundle runs them, and the logits of every token; how far their distributions diverge is by far the
steadier figure. Calibration is what `build` does without --calibration: Python's manual. `mixed`,
`second row` and `rotated` are what `--with` rotate_outputs, second_row and rotate_stream give.
`naive` quantizes activations per tensor by their extremes, as TFLite's converter does, in the same
graph without normalise_linears.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.driver import build as building
from compiler.driver import corpus, language, quantizing
from compiler.driver.options import ACCURACY, BuildOptions, LanguageOptions
from compiler.driver.perplexity import divergence, loss
from compiler.emit import bundle, manifest
from compiler.frontends import Source, decoder, open_source
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions, PlacePolicy, Program
from compiler.quantize import samples as sampling
from compiler.runtime import Bundle, Pipeline

SEQUENCES, LENGTH, CHUNK = 8, 512, 128


def sequences(source: Source, texts: list[Path]) -> list[np.ndarray]:
    text = "\n".join(p.read_text("utf-8", errors="replace").replace("\n%\n", "\n\n") for p in texts)
    tokens = np.array(corpus.encode(source, text))
    starts = np.random.default_rng(0).permutation(len(tokens) // LENGTH)[:SEQUENCES] * LENGTH
    return [tokens[s : s + LENGTH] for s in starts]


def perplexity(logits: list[np.ndarray], rows: list[np.ndarray]) -> float:
    losses: list[float] = []
    for own, row in zip(logits, rows, strict=True):
        losses += [loss(own[i], int(row[i + 1])) for i in range(LENGTH - 1)]
    return math.exp(sum(losses) / len(losses))


def float_logits(source: Source, rows: list[np.ndarray]) -> list[np.ndarray]:
    form = decoder.ProgramShape(1, LENGTH, LENGTH, all_logits=True)
    model = decoder.write(source, form)
    with Reference(model) as reference:
        return [
            reference.run(decoder.sample(model.graph, row, form), ["logits"])["logits"][0]
            for row in rows
        ]


def bundle_logits(
    program: Program, layers: int, rows: list[np.ndarray], chunk: int = CHUNK
) -> list[np.ndarray]:
    """Logits [LENGTH, vocabulary] of rows, in chunks as long as the program's."""
    found = []
    with tempfile.TemporaryDirectory() as made:
        segments = bundle.write_segments({"": program}, Path(made))[""]
        pipeline = Pipeline(Bundle(Path(made), {}), 2, manifest.program_entry(program, segments))
        updates = decoder.in_place(layers)
        shapes = {i["name"]: i["shape"] for i in pipeline.inputs}
        for row in rows:
            parts = []
            cache = {name: np.zeros(shapes[name], np.float32) for name in updates.values()}
            for begin in range(0, LENGTH, chunk):
                end = begin + chunk
                feeds = {
                    "tokens": row[None, begin:end],
                    "lengths": np.array([end - 1], np.int32),
                    "total": np.array([end], np.int32),
                }
                values = {**feeds, **cache}
                for index in range(len(pipeline.segments)):
                    values.update(pipeline.run_segment(index, values))
                cache = {name: values[output] for output, name in updates.items()}
                parts.append(values["logits"][0])
            found.append(np.concatenate(parts))
    return found


def compiled(source: Source, place: PlacePolicy, **steps: frozenset[str]) -> Program:
    """The prefill program as `build` makes it, but with the logits of every token."""
    options = BuildOptions(partitioning=PartitionOptions(place=place, host_int8=True), **steps)  # type: ignore[arg-type]
    source, options = language.rotated(source, options)
    settings = LanguageOptions(context=LENGTH, chunk=CHUNK, slots=1)
    form = decoder.ProgramShape(1, CHUNK, LENGTH, all_logits=True)
    rows = corpus.calibration_rows(source, None, settings)[: -corpus.HELD_OUT]
    program = building.plan_program(decoder.write(source, form), options)
    graph: ir.Graph = program.model.graph
    samples = sampling.Samples([lambda row=row: decoder.sample(graph, row, form) for row in rows])  # type: ignore[misc]
    return quantizing.quantize(program, samples, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--naive", action="store_true", help="also without normalise_linears")
    options = parser.parse_args()
    source = open_source(options.model)
    rows = sequences(source, options.text)
    wanted = float_logits(source, rows)
    reference = perplexity(wanted, rows)
    print(f"float        {reference:8.3f}", flush=True)
    programs: dict[str, tuple[PlacePolicy, dict[str, frozenset[str]]]] = {
        "TPU int8": ("tpu", {}),
        "mixed": ("tpu", {"also": frozenset({"rotate_outputs"})}),
        "second row": ("tpu", {"also": frozenset({"second_row"})}),
        "both": ("tpu", {"also": frozenset({"rotate_outputs", "second_row"})}),
        "host int8": ("host", {}),
        "rotated": ("host", {"also": frozenset({"rotate_stream"})}),
    }
    if options.naive:
        programs["naive int8"] = ("tpu", {"without": frozenset(ACCURACY)})
    for name, (place, steps) in programs.items():
        logits = bundle_logits(compiled(source, place, **steps), source.architecture.layers, rows)
        found = perplexity(logits, rows)
        both = zip(logits, wanted, strict=True)
        pairs = chain.from_iterable(zip(own, want, strict=True) for own, want in both)
        lost = np.mean([divergence(own, want) for own, want in pairs])
        print(
            f"{name:12} {found:8.3f}   ratio {found / reference:.4f}   divergence {lost:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
