"""From a language model to a verified bundle: the same compiler, for each of its programs.

    prefill   `chunk` tokens of one sequence, logits of the last
    decode    one token of one sequence
    batch     one token of each of `slots` sequences

All have the weights in common, as bytes in the bundle and as numbers: factors and offsets of
normalised products (compiler/quantize/balance.py) are chosen for prefill and taken over by the
others. The planner places each by itself.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.checks import verdict
from compiler.driver import build as building
from compiler.emit import bundle
from compiler.emit import manifest as manifests
from compiler.errors import CalibrationError, ModelError, OptionError
from compiler.frontends import Source, decoder, open_source
from compiler.frontends.decoder import ProgramShape
from compiler.frontends.rotate import rotate
from compiler.graph import OPSET, shape_of
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions, PlacePolicy, Program
from compiler.quantize import samples as sampling
from compiler.quantize.balance import balance, known
from compiler.quantize.products import products
from compiler.runtime import confined
from compiler.runtime.bundle import sha256
from compiler.runtime.confined import ConfinedError
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import (
    FileEntry,
    LanguageEntry,
    Manifest,
    MeasuredEntry,
    ProgramEntry,
)
from compiler.targets import Target
from compiler.view import page

# Sequences that set the ranges, and others that the bundle is verified on. Of the latter the first
# `chunk` tokens go through prefill, the rest through decode.
CALIBRATION, HELD_OUT, DECODED = 48, 8, 48
# Bytes of a text to calibrate on, of which some thousand tokens are used.
LARGEST_TEXT = 16 << 20


@dataclass(frozen=True)
class Options:
    """What a user may choose of a language model, besides what `build.Options` has.

    `context` tokens fit the cache, prefill takes `chunk` at a time, decode up to `slots` sequences
    at once. With `max_ram`, in MB, the bundle runs with about so much memory for weights: half for
    prefill, half for decode, whose segments on the host are an eighth of that, to be loaded one
    after the other.
    """

    context: int = 2048
    chunk: int = 128
    slots: int = 4
    max_ram: int | None = None

    def check(self, source: Source) -> Options:
        """The options, the context no longer than the model's. Raises OptionError."""
        most = source.architecture.context
        if self.context > most:
            raise OptionError(
                f"--context {self.context}: the model was made for {most} tokens at most"
            )
        return replace(self, chunk=min(self.chunk, self.context))

    def program_shapes(self) -> dict[str, ProgramShape]:
        """The programs. Prefill pads its last chunk, so the cache has that many places more."""
        places = self.context + self.chunk
        found = {
            "prefill": ProgramShape(1, self.chunk, places),
            "decode": ProgramShape(1, 1, places),
        }
        return found | ({"batch": ProgramShape(self.slots, 1, places)} if self.slots > 1 else {})


def build(
    path: Path,
    output: Path,
    options: building.Options,
    language: Options,
    progress: building.Progress = building.silent,
) -> Manifest:
    """Build a bundle from the language model `path` in the folder `output`; returns its manifest."""
    with bundle.folder(output, options.force, options.sources(path)) as folder:
        with building.stage("import"):
            progress("reading the model", 1)
            source = open_source(path)
            language = language.check(source)
            rows = calibration_rows(source, options.calibration, language)
        programs = compiled(source, options, language, rows[:-HELD_OUT], progress)
        prefixes = {name: "" if name == "prefill" else f"{name}-" for name in programs}
        written, segments = building.emit(
            {prefixes[n]: p for n, p in programs.items()}, folder, options, progress
        )
        with building.stage("emit"):
            tokenizer = folder / "tokenizer.json"
            tokenizer.write_text(source.tokenizer.definition, encoding="utf-8")
            manifests.enter_cache(
                itertools.chain.from_iterable(segments.values()),
                decoder.in_place(source.architecture.layers),
            )
            parts = {
                name: manifests.program_entry(written[p], segments[p])
                for name, p in prefixes.items()
            }
            plan = manifests.plan_of_program(
                manifests.model_entry(path, _digest(path), OPSET),
                Target.load(options.target),
                parts.pop("prefill"),
            )
            calibrated = manifests.quality_entry(
                "user" if options.calibration else "manual",
                len(rows) - HELD_OUT,
                options.observers.default,
            )
            manifest = manifests.assembled(plan, calibrated)
            file = manifests.file_entry(tokenizer, folder)
            manifest["language"] = _settings(source, language, file, parts)
            manifests.write(folder, manifest)
        with building.stage("verify"):
            measured = verify(
                LanguageModel(bundle.load(folder), stream=False), source, rows[-HELD_OUT:], progress
            )
            manifests.enter_quality(manifest, measured)
            if warnings := verdict.of_language(manifest):
                manifests.enter_quality(manifest, {"warnings": warnings})
            manifests.write(folder, manifest)
            (folder / "report.html").write_text(page.page(manifest), encoding="utf-8")
    return manifest


def compiled(
    source: Source,
    options: building.Options,
    language: Options,
    rows: Sequence[np.ndarray],
    progress: building.Progress = building.silent,
) -> dict[str, Program]:
    """The programs, quantized by what `rows` of tokens show."""
    size = None if language.max_ram is None else (language.max_ram << 20) // 16
    options = replace(
        options, partitioning=replace(options.partitioning, host_int8=True, host_bytes=size)
    )
    source, options = rotated(source, options)
    program_shapes = language.program_shapes()
    lowered = {
        name: building.lower(decoder.write(source, form), options, progress)
        for name, form in program_shapes.items()
    }
    wanted = sorted({name for program in lowered.values() for name in building.balanced(program)})
    # Of the head, prefill shows the last row only: balance it by the rows of all tokens.
    form = replace(program_shapes["prefill"], all_logits=True)
    shown = (
        building.rewrite(decoder.write(source, form), options)
        if wanted
        else lowered["prefill"].model
    )
    samples = sampling.Samples([lambda row=row: sample(shown.graph, row, form) for row in rows])  # type: ignore[misc]
    with building.stage("balance"):
        chosen = products(shown.graph)
        step = progress("balancing channels", len(samples) if wanted else 0)
        balance(shown, [chosen[name] for name in wanted], samples, step)
    found = {}
    for name, program in lowered.items():
        own = products(program.model.graph)
        for product in wanted:
            factors, offsets = (
                chosen[product].factors.const_value,
                chosen[product].offsets.const_value,
            )
            assert factors is not None and offsets is not None
            own[product].set(factors, offsets)
        ranges = known([own[product] for product in wanted])
        found[name] = building.scaled(program, ranges, sampling.Samples([]), options, progress)
    return found


def rotated(source: Source, options: building.Options) -> tuple[Source, building.Options]:
    """The source with a rotated residual stream where options ask for it; its rows are then left
    alone."""
    source = rotate(source) if "rotate_stream" in options.also else source
    without = options.without if source.rotation is None else options.without | {"rotate_rows"}
    return source, replace(options, without=without)


def sample(graph: ir.Graph, tokens: np.ndarray, form: ProgramShape) -> sampling.Sample:
    """Inputs of a program for the first tokens of an empty cache."""
    feeds: sampling.Sample = {
        "tokens": tokens[: form.tokens].reshape(1, -1),
        "lengths": np.array([form.tokens - 1], np.int32),
        "total": np.array([form.tokens], np.int32),
    }
    for value in graph.inputs:
        name = str(value.name)
        if name == "last":
            feeds[name] = np.array([form.tokens - 1], np.int64)
        elif name not in feeds:
            feeds[name] = np.zeros(shape_of(value), np.float32)
    return feeds


def calibration_rows(source: Source, path: Path | None, language: Options) -> list[np.ndarray]:
    """Rows of tokens to calibrate on and, the last ones, to verify on. Raises CalibrationError."""
    text = manual() if path is None else _text(path)
    tokens = np.array(encode(source, text), np.int64)
    length = min(language.chunk + DECODED, language.context)
    count = CALIBRATION + HELD_OUT
    if len(tokens) < 2 * HELD_OUT * length:
        what = "Python's manual" if path is None else path
        raise CalibrationError(
            f"{what}: has {len(tokens)} tokens; give at least {2 * HELD_OUT * length}"
        )
    starts = np.linspace(0, len(tokens) - length, min(count, len(tokens) // length)).astype(int)
    # Every seventh is held out, so that both kinds come from all of the text.
    order = sorted(range(len(starts)), key=lambda i: (i % 7 == 6, i))
    return [tokens[starts[i] : starts[i] + length] for i in order]


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise CalibrationError(
                f"{path}: no such file; language models are calibrated on UTF-8 text"
            )
        if path.stat().st_size > LARGEST_TEXT:
            raise CalibrationError(
                f"{path}: larger than {LARGEST_TEXT >> 20} MiB: give a part of it"
            )
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: language models are calibrated on UTF-8 text: {error}"
        ) from error


def manual() -> str:
    """English text that every machine has: Python's reference manual."""
    return "\n\n".join(re.sub(r"[ \t]+", " ", body) for _, body in sorted(topics.items()))


def encode(source: Source, text: str) -> list[int]:
    """The tokens of a text. Raises ModelError for a tokenizer that cannot take it."""
    name, size = source.architecture.name, source.architecture.vocabulary
    try:
        tokenizer = confined.tokenizer(source.tokenizer.definition)
        tokens = confined.encode(tokenizer, text, add_special_tokens=False)
    except ConfinedError as error:
        raise ModelError(f"{name}: its tokenizer cannot be used: {error}") from error
    if max(tokens, default=0) >= size:
        raise ModelError(f"{name}: its tokenizer gives token {max(tokens)}, the model knows {size}")
    return tokens


def verify(
    model: LanguageModel,
    source: Source,
    rows: Sequence[np.ndarray],
    progress: building.Progress = building.silent,
) -> MeasuredEntry:
    """Perplexity of bundle and float model on rows of tokens: the first chunk is prefilled, the
    rest decoded."""
    step = progress("verifying", len(rows))
    form = ProgramShape(1, len(rows[0]) - 1, len(rows[0]) - 1, all_logits=True)
    losses, diverged, same = [], 0.0, 0
    graph = decoder.write(source, form)
    with Reference(graph) as reference:
        for row in rows:
            wanted = reference.run(sample(graph.graph, row, form), ["logits"])["logits"][0]
            slot, got = model.slots[0], []
            slot.tokens.clear()
            begin = min(model.chunk, len(row) - 1)
            got.append(model.prefill(slot, row[:begin].tolist()))
            got += [model.decode({0: int(token)})[0] for token in row[begin:-1]]
            for place, logits in enumerate(got, begin - 1):
                target = int(row[place + 1])
                losses.append((loss(logits, target), loss(wanted[place], target)))
                diverged += divergence(logits, wanted[place])
                same += int(np.argmax(logits) == np.argmax(wanted[place]))
            step()
    count, more = len(losses), np.subtract(*np.transpose(losses))
    ours, theirs = np.exp(np.mean(losses, axis=0)).tolist()
    return {
        "samples": len(rows),
        "perplexity": {
            "tokens": count,
            "bundle": round(ours, 4),
            "float": round(theirs, 4),
            "ratio": round(ours / theirs, 4),
            "ratio_error": round(ours / theirs * float(more.std()) / math.sqrt(count), 4),
            "divergence": round(diverged / count, 4),
            "top1_agreement": round(same / count, 4),
        },
    }


def loss(logits: np.ndarray, target: int) -> float:
    """Cross-entropy in nats."""
    return -float(_log_softmax(logits)[target])


def divergence(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Kullback-Leibler divergence of a token's distribution from the one that is wanted, in nats."""
    got, want = _log_softmax(logits), _log_softmax(wanted)
    return float(np.exp(want) @ (want - got))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max()
    return logits - np.log(np.exp(logits).sum())


def _settings(
    source: Source, language: Options, file: FileEntry, programs: dict[str, ProgramEntry]
) -> LanguageEntry:
    tokenizer = source.tokenizer
    return {
        "name": source.architecture.name,
        "context": language.context,
        "chunk": language.chunk,
        "slots": language.slots,
        "max_ram_bytes": None if language.max_ram is None else language.max_ram << 20,
        "tokenizer": {
            "begin": tokenizer.begin,
            "ends": list(tokenizer.ends),
            "add_begin": tokenizer.add_begin,
            "chat_template": tokenizer.chat_template,
            **file,
        },
        "programs": programs,
    }


def _digest(path: Path) -> str:
    return sha256(path if path.is_file() else path / "config.json")


def forecasts(path: Path, options: building.Options, language: Options) -> Iterator[dict[str, Any]]:
    """For each way to place it, what is predicted of prefill and decode, and what the link allows
    at most."""
    source = open_source(path)
    language = language.check(source)
    target = Target.load(options.target)
    program_shapes = language.program_shapes()
    for name in ("prefill", "decode"):
        lowered = building.rewrite(decoder.write(source, program_shapes[name]), options)
        places: tuple[PlacePolicy, ...] = ("tpu", "host", "auto")
        for place in places:
            partitioning: PartitionOptions = replace(
                options.partitioning, place=place, host_int8=True
            )
            program = building.divide(lowered, options.target, partitioning)
            row = building.forecast(program)
            stored = sum(p.bytes for cost in program.plan.costs.values() for p in cost.parameters)
            yield row | {
                "program": name,
                "tokens": program_shapes[name].tokens,
                "tokens_per_second": round(program_shapes[name].tokens / program.plan.latency, 2),
                "link_limit": round(program_shapes[name].tokens * target.stream / stored, 2)
                if stored
                else None,
            }
