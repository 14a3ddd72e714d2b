"""What a plan gains over the host alone, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from compiler.driver.plan import Forecast

Json = Mapping[str, Any]

# What a plan was made to be best in, by its objective.
_FIGURES = {"latency": "latency_ms", "throughput": "interval_ms", "p95": "latency_ms"}


def beside_host(prediction: Json) -> str:
    """How much faster a plan is than the host alone; nothing where its bundle does not say."""
    if "host_float_ms" not in prediction:
        return ""
    taken = prediction[_FIGURES[prediction["objective"]]]
    if not taken:
        return ""
    ratio = prediction["host_float_ms"] / taken
    return f", {ratio:.2g}x the {escape(prediction['host'])} alone ({host_alone(prediction)})"


def host_alone(prediction: Json) -> str:
    """What the host takes alone."""
    in_float, in_int8 = prediction["host_float_ms"], prediction["host_int8_ms"]
    return f"{in_float:.3g} ms in float, about {in_int8:.3g} in int8"


def show_faster_host(console: Console, manifest: Json) -> None:
    """Say of which programs the host alone would be faster, if of any."""
    language = manifest.get("language")
    if language is None:
        _show_faster(console, _slower([("", manifest)], "host_float_ms"))
        return
    programs = [("prefill", _of_chunk(manifest, language)), *language["programs"].items()]
    _show_faster(console, _slower(programs, "host_int8_ms"))


def _of_chunk(manifest: Json, language: Json) -> Json:
    """Prefill of a whole chunk, also where that is run in parts, which overlap."""
    parts = language.get("parts", 1)
    if parts == 1:
        return manifest
    prediction = dict(manifest["prediction"])
    for name in ("host_float_ms", "host_int8_ms"):
        if name in prediction:
            prediction[name] *= parts
    prediction[_FIGURES[prediction["objective"]]] = language["chunk_ms"]
    return {**manifest, "prediction": prediction}


def show_faster_host_of(console: Console, rows: Sequence[Forecast]) -> None:
    """Likewise, of rows of `plan` for models that are no language models."""
    slower = []
    for row in rows:
        taken = getattr(row, _FIGURES[row.objective])
        if row.tpu_segments and row.host_float_ms < taken:
            slower.append(f"{row.host_float_ms:.3g} ms instead of {taken:.3g}")
    _show_faster(console, slower)


def _slower(programs: Sequence[tuple[str, Json]], alone: str) -> list[str]:
    """For each program that the host alone would run faster, both times."""
    found = []
    for name, program in programs:
        prediction = program["prediction"]
        taken = prediction[_FIGURES[prediction["objective"]]]
        uses_tpu = any(segment["device"] == "tpu" for segment in program["segments"])
        if uses_tpu and prediction.get(alone, taken) < taken:
            times = f"{prediction[alone]:.3g} ms instead of {taken:.3g}"
            found.append(f"{name}: {times}" if name else times)
    return found


def _show_faster(console: Console, slower: Sequence[str]) -> None:
    if slower:
        console.print(
            f"The host alone is predicted to be faster ({'; '.join(slower)}): `--place host` makes "
            "that plan.",
            highlight=False,
        )
