"""Measures a bundle on this machine: latency, throughput, each segment beside its prediction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.runtime.bundle import tensor_bytes
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import ProgramEntry, TensorEntry, fixed_shape
from compiler.runtime.pipeline import Pipeline
from compiler.runtime.runner import Runner

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


def bench(
    runner: Runner, runs: int, inputs: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """What `bench --json` prints: milliseconds of single inferences (median, 90% and 99%) and of
    their segments (median), and results per second of the full pipeline.

    `inputs` is one sample, None for random values. Each figure comes from `runs` inferences.
    """
    pipeline = runner.pipeline
    sample = dict(inputs or random_inputs(pipeline.inputs))
    for _ in range(WARM):
        runner.run(sample)
    latencies = _latencies(runner, sample, runs)
    segment_seconds = _segment_seconds(pipeline, sample, runs)
    rate = _results_per_second(runner, sample, runs)
    latency_ms = {}
    for percent in PERCENTILES:
        latency_ms[f"p{percent}"] = float(np.percentile(latencies, percent) * 1e3)
    segments = []
    for index, seconds in enumerate(segment_seconds):
        segments.append(_segment_row(pipeline, index, seconds))
    return {
        "runs": runs,
        "latency_ms": latency_ms,
        "predicted_latency_ms": runner.bundle.manifest["prediction"]["latency_ms"],
        "results_per_second": rate,
        "segments": segments,
    }


def _latencies(runner: Runner, sample: Mapping[str, np.ndarray], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        runner.run(sample)
        seconds.append(time.perf_counter() - began)
    return seconds


def _segment_seconds(
    pipeline: Pipeline, sample: Mapping[str, np.ndarray], runs: int
) -> list[float]:
    """The median of each segment's runs, conversion of what it reads included.

    Apart from `_latencies`, so that reading the clock between segments is in no latency.
    """
    seconds = np.zeros((runs, len(pipeline.segments)))
    for run in range(runs):
        values = pipeline.check_inputs(sample)
        for index in range(len(pipeline.segments)):
            began = time.perf_counter()
            pipeline.advance(index, values)
            seconds[run, index] = time.perf_counter() - began
    return [float(np.median(column)) for column in seconds.T]


def _results_per_second(runner: Runner, sample: Mapping[str, np.ndarray], runs: int) -> float:
    edge = runner.depth
    times = [time.perf_counter()]
    for _ in runner.stream(sample for _ in range(runs + 2 * edge)):
        times.append(time.perf_counter())
    # A pipeline that fills gives its first results late, one that empties its last ones early.
    if len(times) > 2 * edge + 1:
        times = times[edge:-edge]
    return (len(times) - 1) / (times[-1] - times[0])


def _segment_row(pipeline: Pipeline, index: int, seconds: float) -> dict[str, Any]:
    segment = pipeline.segments[index]
    return {
        "index": index,
        "device": pipeline.device(index).name,
        "ms": seconds * 1e3,
        "predicted_ms": sum(segment["predicted_ms"].values()),
        "bytes_in": tensor_bytes(segment["inputs"]),
        "bytes_out": tensor_bytes(segment["outputs"]),
        "parameter_bytes": segment["parameter_bytes"],
    }


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
