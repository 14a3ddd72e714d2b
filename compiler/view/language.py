"""The programs of a language model and their quality as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from compiler.view.columns import plain_table
from compiler.view.units import rate, size

_PREFILL_KEYS = ("inputs", "outputs", "prediction", "segments")
_COLUMNS = (
    "program",
    "tokens",
    "segments",
    "on TPU",
    "cached",
    "streamed",
    "ms",
    "tokens/s",
    "x host",
)


def show_language(console: Console, manifest: Mapping[str, Any]) -> None:
    """The programs of a language model and its quality."""
    language = manifest["language"]
    prefill = {key: manifest[key] for key in _PREFILL_KEYS}
    # What a program takes at once; decode takes one token.
    parts = language.get("parts", 1)
    tokens_of = {"prefill": language["chunk"] // parts, "batch": language["slots"]}
    table = plain_table(_COLUMNS, left=("program",))
    for name, program in {"prefill": prefill, **language["programs"]}.items():
        table.add_row(name, *_cells(program, tokens_of.get(name, 1)))
    name, description = escape(language["name"]), manifest["target"]["description"]
    console.print(f"[bold]{name}[/] for {description}", highlight=False)
    console.print(table)
    prediction = manifest["prediction"]
    console.print(
        f"Segments are TPU+host; ms as predicted on {prediction['tpus']} Edge TPU and "
        f"{prediction['host']}; x host: how many times as fast as the host alone, in int8.",
        highlight=False,
    )
    if parts > 1:
        console.print(
            f"A chunk of {language['chunk']} tokens is run in {parts} parts, which overlap: "
            f"{language['chunk_ms']:.4g} ms predicted.",
            highlight=False,
        )
    if "perplexity" in manifest["quality"]:
        console.print(_perplexity(manifest["quality"]), highlight=False)
    if "prefill_divergence" in manifest["quality"]:
        divergence = manifest["quality"]["prefill_divergence"]
        console.print(
            f"Divergence of all tokens in prefill: {divergence:.4f} nats", highlight=False
        )


def _cells(program: Mapping[str, Any], tokens: int) -> list[str]:
    segments = program["segments"]
    tpu = [segment for segment in segments if segment["device"] == "tpu"]
    latency = program["prediction"]["latency_ms"]
    alone = program["prediction"].get("host_int8_ms")
    return [
        str(tokens),
        f"{len(tpu)}+{len(segments) - len(tpu)}",
        size(sum(segment["parameter_bytes"] for segment in tpu)),
        size(sum(segment["cached_bytes"] for segment in tpu)),
        size(sum(segment["streamed_bytes"] for segment in tpu)),
        f"{latency:.3g}",
        rate(1e3 * tokens / latency) if latency else "",
        f"{alone / latency:.2g}" if latency and alone else "",
    ]


def _perplexity(quality: Mapping[str, Any]) -> str:
    found = quality["perplexity"]
    text = "your text" if quality["calibration"] == "user" else "the Python manual"
    return (
        f"Perplexity {found['bundle']:.4g}, in float {found['float']:.4g} (ratio "
        f"{found['ratio']:.4f} ± {found['ratio_error']:.4f}); divergence "
        f"{found['divergence']:.4f} nats; the same likeliest token in "
        f"{found['top1_agreement']:.1%}, over {found['tokens']} tokens of {text}"
    )
