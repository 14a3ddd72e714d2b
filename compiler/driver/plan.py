"""What is predicted of a model, without samples: rows for `plan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.driver import build as building
from compiler.driver import decoding, language
from compiler.driver.options import BuildOptions
from compiler.driver.programs import program_shapes
from compiler.emit import manifest as manifests
from compiler.frontends import decoder, open_source
from compiler.partition import PlacePolicy, Program
from compiler.progress import Progress, silent
from compiler.targets import Target

DEFAULT_TPUS = range(1, 9)
_PLACES: tuple[PlacePolicy, ...] = ("tpu", "host", "auto")
_PROGRAMS = ("prefill", "decode")


@dataclass(frozen=True)
class Forecast:
    """What is predicted of a plan. Times are in milliseconds.

    tpus:           Edge TPUs that the plan may use
    host:           the CPU that predictions are for
    objective:      "latency", "throughput" or "p95"
    place:          "tpu", "host" or "auto"
    latency_ms:     one inference
    interval_ms:    time between two results of a full pipeline
    bound_by:       what sets this time: the number of an Edge TPU, None for the host
    gap_percent:    how far the plan may be from the best cut; None where no solver looked for one
    error_percent:  average error of such predictions on this host, over networks that the model was
                    not fitted to; None where nobody has measured it
    host_float_ms:  one inference on the host alone, in float
    host_int8_ms:   likewise with layers in int8
    tpu_segments:   segments on Edge TPUs
    host_segments:  segments on the host
    cached_bytes:   parameters that stay in the Edge TPUs
    streamed_bytes: parameters that are sent at each inference
    reload_ms:      what is added where the segments of one Edge TPU are not compiled together
    host_slots:     segments of different requests that the host runs at once
    host_gain:      how many times as much it gets done then as with one at a time
    rate:           requests per second that are planned for, None where no load is
    p95_ms:         the time in which 95% of such requests are answered
    load:           the share of the time that the busiest device then works
    """

    tpus: int
    host: str
    objective: str
    place: str
    latency_ms: float
    interval_ms: float
    bound_by: int | None
    gap_percent: float | None
    error_percent: float | None
    host_float_ms: float
    host_int8_ms: float
    tpu_segments: int
    host_segments: int
    cached_bytes: int
    streamed_bytes: int
    reload_ms: float
    host_slots: int
    host_gain: float
    rate: float | None
    p95_ms: float | None
    load: float | None


@dataclass(frozen=True)
class LanguageForecast(Forecast):
    """What is predicted of one program of a language model.

    program:           "prefill" or "decode"
    tokens:            tokens that it takes at once
    tokens_per_second: what it gives
    link_limit:        tokens per second if all parameters were streamed and nothing else took time;
                       None where nothing is on an Edge TPU
    """

    program: str
    tokens: int
    tokens_per_second: float
    link_limit: float | None


def forecasts(
    model: Path,
    options: BuildOptions,
    tpus: Iterable[int] = DEFAULT_TPUS,
    progress: Progress = silent,
) -> list[Forecast]:
    """A row for each number of Edge TPUs. The passes run once, as they do not depend on it."""
    options = options.suited_to("onnx", model)
    wanted = [replace(options.partitioning, tpus=count) for count in tpus]
    rewritten = building.rewrite(building.read(model, options, progress), options, progress)
    done = progress("cutting into segments", len(wanted))
    rows = []
    for partitioning in wanted:
        program = building.partition_model(rewritten, options.target, partitioning)
        rows.append(Forecast(**_figures(program)))
        done()
    return rows


def language_forecasts(
    model: Path, options: BuildOptions, progress: Progress = silent
) -> list[LanguageForecast]:
    """A row for prefill and one for decode, for each way to place their layers."""
    options = options.suited_to("language", model)
    done = progress("predicting", len(_PROGRAMS) * len(_PLACES))
    rows = []
    for row in _language_rows(model, options):
        rows.append(row)
        done()
    return rows


def _language_rows(model: Path, options: BuildOptions) -> Iterator[LanguageForecast]:
    source = open_source(model)
    sizes = language.fitted(options.language, source)
    shapes = program_shapes(sizes)
    target = Target.load(options.target, options.partitioning.host)
    for name in _PROGRAMS:
        tokens = shapes[name].tokens
        rewritten = building.rewrite(decoder.write(source, shapes[name]), options)
        for place in _PLACES:
            partitioning = replace(
                options.partitioning, place=place, host_int8=True, needs_tpu=False
            )
            placed = replace(options, partitioning=partitioning)
            blocked = decoding.precision(placed)
            if blocked is not None and tokens == 1:
                program = decoding.program(source, shapes[name], blocked, placed)
            else:
                program = building.partition_model(rewritten, options.target, partitioning)
            stored = _parameter_bytes(program)
            yield LanguageForecast(
                **_figures(program),
                program=name,
                tokens=tokens,
                tokens_per_second=round(tokens / program.plan.latency, 2),
                link_limit=round(tokens * target.stream / stored, 2) if stored else None,
            )


def _figures(program: Program) -> dict[str, Any]:
    """The fields of a Forecast."""
    segments = program.plan.segments
    alone = {"host_slots": 1, "host_gain": 1.0, "rate": None, "p95_ms": None, "load": None}
    return {
        **alone,
        **manifests.prediction_entry(program),
        "tpu_segments": sum(segment.device == "tpu" for segment in segments),
        "host_segments": sum(segment.device == "host" for segment in segments),
        "cached_bytes": sum(segment.cached for segment in segments),
        "streamed_bytes": sum(segment.streamed for segment in segments),
        "reload_ms": manifests.milliseconds(program.plan.reload(program.target)),
    }


def _parameter_bytes(program: Program) -> int:
    """Bytes of parameters as TPU segments hold them, wherever the layers are placed."""
    total = 0
    for cost in program.plan.costs.values():
        total += sum(parameters.bytes for parameters in cost.parameters)
    return total
