"""Measures a bundle on this machine: latency, throughput, and each segment beside its prediction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.runtime.bundle import tensor_bytes
from compiler.runtime.language import LanguageModel
from compiler.runtime.runner import Runner

WARM = 3  # runs that are not counted


def random_inputs(tensors: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of the right shape and type: floats in [-1, 1], whole numbers of 0 and 1."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in tensors:
        dtype, shape = np.dtype(tensor["dtype"]), tuple(tensor["shape"])
        values = rng.uniform(-1, 1, shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        found[tensor["name"]] = values.astype(dtype)
    return found


def bench(
    runner: Runner, runs: int, inputs: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Milliseconds of single inferences and of their segments, and results per second of the full
    pipeline."""
    pipeline = runner.pipeline
    sample = dict(inputs or random_inputs(pipeline.inputs))
    for _ in range(WARM):
        runner.run(sample)
    latencies, parts = [], np.zeros((runs, len(pipeline.segments)))
    for _ in range(runs):
        began = time.perf_counter()
        runner.run(sample)
        latencies.append(time.perf_counter() - began)
    for run in range(runs):
        values = pipeline.check_inputs(sample)
        for index in range(len(pipeline.segments)):
            began = time.perf_counter()
            pipeline.advance(index, values)
            parts[run, index] = time.perf_counter() - began
    times = [time.perf_counter()]
    for _ in runner.stream(sample for _ in range(runs + 2 * runner.depth)):
        times.append(time.perf_counter())
    # A pipeline that fills at the beginning gives results late, one that empties at the end gives
    # them early.
    steady = times[runner.depth : -runner.depth] if len(times) > 2 * runner.depth + 1 else times
    return {
        "runs": runs,
        "latency_ms": {f"p{q}": float(np.percentile(latencies, q) * 1e3) for q in (50, 90, 99)},
        "predicted_latency_ms": runner.bundle.manifest["prediction"]["latency_ms"],
        "results_per_second": (len(steady) - 1) / (steady[-1] - steady[0]),
        "segments": [
            {
                "index": index,
                "device": pipeline.device(index).name,
                "ms": float(np.median(parts[:, index]) * 1e3),
                "predicted_ms": sum(segment["predicted_ms"].values()),
                "bytes_in": tensor_bytes(segment["inputs"]),
                "bytes_out": tensor_bytes(segment["outputs"]),
                "parameter_bytes": segment["parameter_bytes"],
            }
            for index, segment in enumerate(pipeline.segments)
        ],
    }


def bench_language(model: LanguageModel, runs: int) -> dict[str, Any]:
    """Tokens per second of prefill and decode on tokens of no meaning."""
    slot = model.slots[0]
    model.prefill(slot, [1] * min(model.chunk, model.context - 1))
    slot.tokens.clear()
    length = max(1, min(4 * model.chunk, model.context - runs - 1))
    began = time.perf_counter()
    model.prefill(slot, [2] * length)
    prefill = time.perf_counter() - began
    steps = min(runs, model.context - length)
    began = time.perf_counter()
    for _ in range(steps):
        model.decode({0: 3})
    decode = (time.perf_counter() - began) / steps
    programs = model.bundle.programs()
    return {
        "prefill_tokens": length,
        "prefill_tokens_per_second": length / prefill,
        "predicted_prefill_tokens_per_second": _rate(model.chunk, programs[""]),
        "decode_tokens": steps,
        "decode_tokens_per_second": 1 / decode,
        "predicted_decode_tokens_per_second": _rate(1, programs["decode"]),
    }


def _rate(tokens: int, program: Mapping[str, Any]) -> float:
    return (
        float(tokens / program["prediction"]["latency_ms"] * 1e3)
        if program["prediction"]["latency_ms"]
        else 0.0
    )
