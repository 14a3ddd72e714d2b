"""The programs that write tokens, where the host runs them on weights as the file holds them.

Prefill multiplies many rows by each weight and keeps int8 rows, which do that fastest. Decode
multiplies one row, and takes as long as its weights take to be read: those of the file are fewer
bytes, and nothing is lost. A bundle then holds both.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from compiler.device.cost import HostAlone
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.frontends import Source, decode
from compiler.frontends.architecture import Weight
from compiler.frontends.blocks import BlockForm
from compiler.frontends.decode import Precision
from compiler.frontends.decoder import ProgramShape
from compiler.frontends.nbits import Columns, columns, packed, unpacked
from compiler.ops.common import FLOAT_BYTES
from compiler.partition import Program
from compiler.runtime.manifest import DecodeWeightsEntry

# Losses are measured in so many rows of each layer.
_MEASURED_ROWS = 256


def precision(options: BuildOptions) -> Precision | None:
    """Of which weights decode is made on the host; None where it is planned as prefill is.

    Without a wish of the user's, those of the file, unless decode shall be on Edge TPUs.
    """
    wanted = options.language.decode_weights
    if wanted == "int8":
        return None
    if wanted is not None:
        return wanted
    if options.partitioning.place == "tpu" or options.partitioning.pins:
        return None
    return "file"


def program(
    source: Source, shape: ProgramShape, wanted: Precision, options: BuildOptions
) -> Program:
    """A program of one token of each sequence, all of it on the host."""
    model = decode.write(source, shape, wanted)
    partitioning = replace(options.partitioning, place="host", pins={}, kept=())
    made = building.partition_model(model, options.target, partitioning)
    # It is the host's own form already.
    seconds = made.plan.latency
    plan = replace(made.plan, options=options.partitioning)
    return replace(made, plan=plan, alone=HostAlone(seconds, seconds))


def weights_entry(source: Source, wanted: Precision | None) -> DecodeWeightsEntry | None:
    """The manifest's part on the weights of decode."""
    if wanted is None:
        return None
    counts = {True: 0, False: 0}
    size = 0
    worst = math.inf
    for _, weight, is_head in decode.layers(source):
        count = math.prod(weight.shape)
        form = decode.form_of(weight, wanted, is_head)
        if form is None:
            size += FLOAT_BYTES * count
            continue
        counts[form is weight.blocks] += count
        layout = columns([form], weight.shape[1], whole_bytes=wanted == "4bit")
        size += layout.bytes * weight.shape[0]
        worst = min(worst, _sqnr(weight, form, layout))
    return {
        "kind": wanted,
        "activations": "int8" if wanted == "4bit" else "float",
        "exact": counts[True],
        "rounded": counts[False],
        "bytes": size,
        "worst_sqnr_db": None if worst == math.inf else round(worst, 2),
    }


def _sqnr(weight: Weight, form: BlockForm, layout: Columns) -> float:
    """Signal-to-noise ratio, in dB, of a layer's blocks beside its file; infinite without noise."""
    rows = slice(0, min(_MEASURED_ROWS, weight.shape[0]))
    given = weight.rows(rows)
    noise = unpacked(packed(form.rows(rows), layout), layout) - given
    lost = float(np.square(noise, dtype=np.float64).sum())
    signal = float(np.square(given, dtype=np.float64).sum())
    return 10 * math.log10(signal / lost) if lost and signal else math.inf
