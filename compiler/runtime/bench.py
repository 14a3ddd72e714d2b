"""Measures a bundle on this machine, or on simulated devices: latency, throughput, each segment
beside its prediction."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.runtime.bundle import tensor_bytes
from compiler.runtime.dataflow import Span
from compiler.runtime.devices import Simulated
from compiler.runtime.inputs import Arrays
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import PlannedSegmentEntry, ProgramEntry, TensorEntry, fixed_shape
from compiler.runtime.pipeline import Pipeline
from compiler.runtime.runner import Runner
from compiler.runtime.simulation import simulate

WARM = 3  # runs that are not counted
PERCENTILES = (50, 90, 99)


def random_inputs(tensors: Sequence[TensorEntry], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for some entries of a manifest: floats in [-1, 1], whole numbers of 0 and 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in tensors:
        dtype = np.dtype(tensor["dtype"])
        shape = fixed_shape(tensor)
        arrays[tensor["name"]] = _random(rng, shape, dtype)
    return arrays


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return rng.uniform(-1, 1, shape).astype(dtype)
    # 0 and 1 are in range for nearly every index, mask and token.
    return rng.integers(0, 2, shape).astype(dtype)


@dataclass(frozen=True)
class _Measured:
    """Seconds: of single requests, with the spans of each from its start; and results per second of
    the full pipeline."""

    latencies: list[float]
    spans: list[list[Span]]
    rate: float


def bench(
    runner: Runner, runs: int, inputs: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """What `bench --json` prints: milliseconds of single inferences (median, 90% and 99%), when
    their segments started and ended (medians), and results per second of the full pipeline, beside
    what was predicted.

    `inputs` is one sample, None for random values. Each figure comes from `runs` inferences. Where
    the Edge TPUs are simulated ones that do not wait, the times are those of `simulate`.
    """
    pipeline = runner.pipeline
    sample = pipeline.check_inputs(inputs or random_inputs(pipeline.inputs))
    simulated = _is_simulated(runner)
    measured = (_simulated if simulated else _on_the_clock)(runner, sample, runs)
    prediction = runner.bundle.manifest["prediction"]
    latency_ms = {}
    for percent in PERCENTILES:
        latency_ms[f"p{percent}"] = float(np.percentile(measured.latencies, percent) * 1e3)
    interval_ms = prediction["interval_ms"]
    return {
        "runs": runs,
        "simulated": simulated,
        "latency_ms": latency_ms,
        "predicted_latency_ms": prediction["latency_ms"],
        "results_per_second": measured.rate,
        "predicted_results_per_second": 1e3 / interval_ms if interval_ms else None,
        "segments": _segment_rows(pipeline, measured.spans),
    }


def _is_simulated(runner: Runner) -> bool:
    tpus = runner.fleet.tpus
    return bool(tpus) and all(isinstance(tpu, Simulated) and tpu.slowdown == 0 for tpu in tpus)


def _on_the_clock(runner: Runner, sample: Arrays, runs: int) -> _Measured:
    """Measured on this machine."""
    for _ in range(WARM):
        runner.run(sample)
    latencies = []
    for _ in range(runs):
        began = time.perf_counter()
        runner.run(sample)
        latencies.append(time.perf_counter() - began)
    # Apart from the latencies, so that reading the clock between segments is in none of them.
    spans = [_spans(runner, sample) for _ in range(runs)]
    return _Measured(latencies, spans, _results_per_second(runner, sample, runs))


def _spans(runner: Runner, sample: Arrays) -> list[Span]:
    spans: list[Span] = []
    began = time.perf_counter()
    runner.executor.run(runner.pipeline, sample, spans)
    return _from(began, spans)


def _from(began: float, spans: Sequence[Span]) -> list[Span]:
    return [replace(span, begin=span.begin - began, end=span.end - began) for span in spans]


def _results_per_second(runner: Runner, sample: Arrays, runs: int) -> float:
    times = [time.perf_counter()]
    for _ in runner.stream(sample for _ in range(runs + 2 * runner.depth)):
        times.append(time.perf_counter())
    return _rate(times, runner.depth)


def _rate(times: Sequence[float], edge: int) -> float:
    """Results per second, from the times at which they came. A pipeline that fills gives its first
    `edge` results late, one that empties its last ones early."""
    if len(times) > 2 * edge + 1:
        times = times[edge:-edge]
    seconds = times[-1] - times[0]
    return (len(times) - 1) / seconds if seconds else 0.0


def _simulated(runner: Runner, sample: Arrays, runs: int) -> _Measured:
    """On the simulation's clock. Requests differ there only by the replicas that serve them."""
    pipeline = runner.pipeline
    alone = simulate(pipeline, itertools.repeat(sample, min(runs, len(runner.fleet.tpus))))
    count = runs + 2 * runner.depth
    stream = simulate(pipeline, itertools.repeat(sample, count), runner.depth)
    # Given in the order of the samples, so each waits for those before it.
    times = [0.0, *itertools.accumulate((request.ended for request in stream), max)]
    return _Measured(
        [request.seconds for request in alone],
        [_from(request.arrived, request.spans) for request in alone],
        _rate(times, runner.depth),
    )


def _segment_rows(pipeline: Pipeline, spans: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """A row for each segment, with the medians of its runs."""
    of_segment: list[list[Span]] = [[] for _ in pipeline.segments]
    for span in itertools.chain.from_iterable(spans):
        of_segment[span.index].append(span)
    planned = planned_spans(pipeline.segments)
    rows = []
    for index, segment in enumerate(pipeline.segments):
        begins = [span.begin for span in of_segment[index]]
        ends = [span.end for span in of_segment[index]]
        seconds = [span.end - span.begin for span in of_segment[index]]
        rows.append(
            {
                "index": index,
                "device": of_segment[index][0].device,
                "start_ms": _median_ms(begins),
                "end_ms": _median_ms(ends),
                "ms": _median_ms(seconds),
                "predicted_start_ms": planned[index].begin * 1e3,
                "predicted_end_ms": planned[index].end * 1e3,
                "predicted_ms": sum(segment["predicted_ms"].values()),
                "bytes_in": tensor_bytes(segment["inputs"]),
                "bytes_out": tensor_bytes(segment["outputs"]),
                "parameter_bytes": segment["parameter_bytes"],
            }
        )
    return rows


def _median_ms(seconds: Sequence[float]) -> float:
    return float(np.median(seconds) * 1e3)


def planned_spans(segments: Sequence[PlannedSegmentEntry]) -> list[Span]:
    """When each segment of a request that is alone was planned to run: one after the other where
    the manifest does not say."""
    spans: list[Span] = []
    for segment in segments:
        before = spans[-1].end if spans else 0.0
        start_ms = segment.get("start_ms")
        begin = before if start_ms is None else start_ms / 1e3
        seconds = sum(segment["predicted_ms"].values()) / 1e3
        name = "cpu" if segment["tpu"] is None else f"tpu {segment['tpu']}"
        spans.append(Span(segment["index"], name, begin, begin + seconds))
    return spans


def bench_language(model: LanguageModel, runs: int) -> dict[str, Any]:
    """Tokens per second of prefill and decode, over tokens without meaning, beside what was
    predicted."""
    slot = model.slots[0]
    # Warm up with one chunk, and forget it.
    model.prefill(slot, [1] * min(model.chunk, model.context - 1))
    slot.tokens.clear()
    prompt_length = max(1, min(4 * model.chunk, model.context - runs - 1))
    began = time.perf_counter()
    model.prefill(slot, [2] * prompt_length)
    prefill_seconds = time.perf_counter() - began
    steps = min(runs, model.context - prompt_length)
    began = time.perf_counter()
    for _ in range(steps):
        model.decode({0: 3})
    decode_seconds = time.perf_counter() - began
    programs = model.bundle.programs()
    return {
        "prefill_tokens": prompt_length,
        "prefill_tokens_per_second": prompt_length / prefill_seconds,
        "predicted_prefill_tokens_per_second": _predicted_rate(model.chunk, programs[""]),
        "decode_tokens": steps,
        "decode_tokens_per_second": steps / decode_seconds,
        "predicted_decode_tokens_per_second": _predicted_rate(1, programs["decode"]),
    }


def _predicted_rate(tokens: int, program: ProgramEntry) -> float:
    """Tokens per second of a program that takes so many at once; 0 where nothing is predicted."""
    latency_ms = program["prediction"]["latency_ms"]
    if not latency_ms:
        return 0.0
    return tokens / latency_ms * 1e3
