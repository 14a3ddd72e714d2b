"""The programs that write tokens, where the host runs them on weights as the file holds them.

Prefill multiplies many rows by each weight and keeps int8 rows, which do that fastest. Decode
multiplies one row, and takes as long as its weights take to be read: those of the file are fewer
bytes, and nothing is lost. A bundle then holds both.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.frontends import Source, decode
from compiler.frontends.decode import Precision
from compiler.frontends.decoder import ProgramShape
from compiler.partition import Program
from compiler.targets import Target


def precision(source: Source, options: BuildOptions) -> Precision | None:
    """Of which weights decode is made on the host; None where it is planned as prefill is.

    Without a wish of the user's, those of the file, unless decode shall be on Edge TPUs, or all
    weights of the model fit these.
    """
    wanted = options.language.decode_weights
    if wanted == "int8":
        return None
    if wanted is not None:
        return wanted
    if options.partitioning.place == "tpu" or options.partitioning.pins:
        return None
    if options.partitioning.place == "auto" and _fits_tpus(source, options):
        return None
    return "file"


def program(
    source: Source, shape: ProgramShape, wanted: Precision, options: BuildOptions
) -> Program:
    """A program of one token of each sequence, all of it on the host."""
    model = decode.write(source, shape, wanted)
    partitioning = replace(options.partitioning, place="host", pins={}, kept=())
    return building.partition_model(model, options.target, partitioning)


def _fits_tpus(source: Source, options: BuildOptions) -> bool:
    """Whether Edge TPUs could hold the weights of all layers, so that none are streamed."""
    target = Target.load(options.target, options.partitioning.host)
    weights = 0
    for name, weight in source.weights.items():
        if len(weight.shape) == 2 and name != "token_embd.weight":
            weights += weight.shape[0] * weight.shape[1]
    return weights <= target.sram_bytes * options.partitioning.tpus
