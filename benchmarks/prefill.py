"""Plans of a language model's prefill with feed-forward blocks fused on the Edge TPU: predicted
times of a chunk of 512 tokens on two links, and the divergence from the float model.

    python -m benchmarks.prefill MODEL.gguf TEXT... [--kl 0.015,0.025,0.04]

Blocks are chosen by what each costs on calibration text (Python's manual), as `build --quality kl=`
does; the divergence is that of all tokens of 8 sequences of 512 of the texts, in parts as the
bundle runs them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.perplexity import LENGTH, bundle_logits, float_logits, sequences
from compiler.driver import corpus
from compiler.driver.block_errors import MEASURED, block_errors
from compiler.driver.fused import NOT_FUSED, Choices, Fusing, Profile
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.driver.perplexity import divergence
from compiler.driver.programs import Maker, parts_of
from compiler.driver.rewriting import PassDriver
from compiler.frontends import Source, open_source
from compiler.frontends.decoder import ProgramShape

TARGETS = ("usb3", "pcie")


def maker_of(source: Source, target: str) -> Maker:
    language = LanguageOptions(chunk=LENGTH, slots=1)
    options = BuildOptions(target=target, language=language).suited_to("language", Path("model"))
    rows = corpus.calibration_rows(source, None, language)[: -corpus.HELD_OUT]
    return Maker(source, options, rows, PassDriver())


def choices_of(maker: Maker, errors: dict[int, float], plain: float) -> Choices:
    every = frozenset(range(maker.source.architecture.layers))
    profiles = {}
    for parts in parts_of(maker.options.language):
        fused, unfused = maker.plan(Fusing(every, parts)), maker.plan(Fusing(parts=parts))
        profiles[parts] = Profile.of(fused, unfused)
    return Choices(profiles, errors, plain)


def measured(
    maker: Maker, fusing: Fusing, rows: list[np.ndarray], wanted: list[np.ndarray]
) -> float:
    tokens = LENGTH // fusing.parts
    shape = ProgramShape(1, LENGTH, LENGTH, all_logits=True)
    program = maker.programs(fusing, {"prefill": fusing.shape(shape)})["prefill"]
    logits = bundle_logits(program, maker.source.architecture.layers, rows, tokens)
    both = zip(logits, wanted, strict=True)
    pairs = chain.from_iterable(zip(own, want, strict=True) for own, want in both)
    return float(np.mean([divergence(own, want) for own, want in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--kl", default="0.015,0.025,0.04", help="divergences to look for plans of")
    given = parser.parse_args()
    source = open_source(given.model)
    rows = sequences(source, given.text)
    wanted = float_logits(source, rows)
    makers = {target: maker_of(source, target) for target in TARGETS}
    maker = makers["usb3"]
    errors = block_errors(maker.blocks, maker.calibration[-MEASURED:])
    print("errors", {layer: round(error, 5) for layer, error in errors.items()}, flush=True)
    plain = measured(maker, NOT_FUSED, rows, wanted)
    choices = {target: choices_of(own, errors, plain) for target, own in makers.items()}
    alone = {target: own.candidate(frozenset()).seconds for target, own in choices.items()}
    times = ", ".join(f"{target} {1e3 * seconds:.0f} ms" for target, seconds in alone.items())
    print(f"no block fused: {times}; divergence {plain:.4f}", flush=True)
    for goal in map(float, given.kl.split(",")):
        fusing = choices["usb3"].fastest_within(goal).fusing
        found = []
        for target, own in choices.items():
            whole = 1e3 * own.profiles[1].seconds(fusing.layers, 1)
            overlapping = 1e3 * own.profiles[2].seconds(fusing.layers, 2)
            found.append(f"{target} {whole:.0f} ms, {overlapping:.0f} in two parts")
        expected = choices["usb3"].candidate(fusing.layers).divergence
        got = measured(maker, replace(fusing, parts=2), rows, wanted)
        print(
            f"kl={goal:g}: {len(fusing.layers)} blocks fused: {'; '.join(found)}; divergence "
            f"{got:.4f}, {expected:.4f} expected; on the host: "
            f"{sorted(set(errors) - fusing.layers)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
