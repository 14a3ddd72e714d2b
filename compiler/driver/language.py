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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from compiler.checks import verdict
from compiler.driver import build as building
from compiler.driver import decoding, perplexity, toolchain
from compiler.driver.corpus import HELD_OUT, calibration_rows
from compiler.driver.options import ROTATE_STREAM, BuildOptions, LanguageOptions
from compiler.driver.rewriting import PassDriver
from compiler.driver.stages import StageTimer, Timings, stage
from compiler.emit import bundle, report
from compiler.emit import manifest as manifests
from compiler.errors import OptionError
from compiler.frontends import Source, decoder, open_source, rope
from compiler.frontends.decoder import ProgramShape, sample
from compiler.frontends.rotate import rotate
from compiler.graph import OPSET
from compiler.partition import PartitionOptions, Program
from compiler.progress import Progress, silent
from compiler.quantize import samples as sampling
from compiler.quantize.balance import known
from compiler.quantize.products import Product, products
from compiler.runtime.bundle import sha256
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import FileEntry, LanguageEntry, Manifest, ProgramEntry
from compiler.targets import Target
from passes import BALANCE, SampleContext, Steps

MEGABYTE = 1 << 20


def build(
    path: Path,
    output: Path,
    options: BuildOptions,
    progress: Progress = silent,
    timings: Timings | None = None,
) -> Manifest:
    """Build a bundle from the language model `path` in the folder `output`; returns its manifest.

    `timings` are filled in. Raises CompilerError; then nothing is left at `output` but what stood
    there before.
    """
    options = options.suited_to("language", path)
    progress = timer = StageTimer(progress)
    with bundle.folder(output, options.force, options.sources(path)) as folder:
        with stage("import"):
            progress("reading the model", 1)
            source = open_source(path, options.lora_paths)
            sizes = fitted(options.language, source)
            source = rope.for_context(source, sizes.context)
            rows = calibration_rows(source, options.calibration_path, sizes)
        options = replace(options, language=sizes)
        calibration, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]

        compiled, options = rotated(source, options)
        driver = PassDriver(Steps(options.without, options.also))
        programs = quantized_programs(compiled, options, calibration, driver, progress)
        prefixed = {_file_prefix(name): program for name, program in programs.items()}
        written = toolchain.emit(prefixed, folder, progress)
        written = toolchain.compile_segments(written, folder, options.tool, progress)
        with stage("emit"):
            tokenizer = folder / "tokenizer.json"
            tokenizer.write_text(source.tokenizer.definition, encoding="utf-8")
            entries = itertools.chain.from_iterable(written.entries.values())
            manifests.enter_cache(entries, decoder.in_place(source.architecture.layers))
            parts = {}
            for name in programs:
                prefix = _file_prefix(name)
                program, segments = written.programs[prefix], written.entries[prefix]
                parts[name] = manifests.program_entry(program, segments)
            plan = manifests.plan_of_program(
                manifests.model_entry(path, _digest(path), OPSET),
                Target.load(options.target),
                parts.pop("prefill"),
            )
            calibrated = manifests.quality_entry(
                "user" if options.calibration else "manual",
                len(calibration),
                options.observers.default,
            )
            manifest = manifests.assembled(plan, calibrated)
            file = manifests.file_entry(tokenizer, folder)
            language = _language_entry(source, sizes, file, parts)
            language["decode_weights"] = decoding.weights_entry(
                compiled, decoding.precision(compiled, options)
            )
            manifest["language"] = language
            manifests.write(folder, manifest)

        with stage("verify"):
            expected = perplexity.float_logits(source, held_out, sizes.chunk, progress)
            model = LanguageModel(bundle.load(folder), stream=False)
            measured = perplexity.measure(model, held_out, expected, progress)
            manifests.enter_quality(manifest, measured)
            warnings = verdict.of_language(manifest)
            if warnings:
                manifests.enter_quality(manifest, {"warnings": warnings})
            manifests.write(folder, manifest)
            report.write(folder, manifest)
    building.note_timings(timings, timer, driver)
    return manifest


def fitted(options: LanguageOptions, source: Source) -> LanguageOptions:
    """The options, the chunk no longer than the context. Raises OptionError for a context that is
    longer than the model's."""
    longest = source.architecture.context
    if options.context > longest:
        raise OptionError(
            f"{options.context}: the model was made for {longest} tokens at most", "context"
        )
    return replace(options, chunk=min(options.chunk, options.context))


def program_shapes(options: LanguageOptions) -> dict[str, ProgramShape]:
    """The programs by name."""
    # Prefill pads its last chunk, so the cache has so many places more.
    places = options.context + options.chunk
    shapes = {
        "prefill": ProgramShape(1, options.chunk, places),
        "decode": ProgramShape(1, 1, places),
    }
    if options.slots > 1:
        shapes["batch"] = ProgramShape(options.slots, 1, places)
    return shapes


def quantized_programs(
    source: Source,
    options: BuildOptions,
    rows: Sequence[np.ndarray],
    driver: PassDriver,
    progress: Progress = silent,
) -> dict[str, Program]:
    """The programs, with scales from what the float model shows on `rows` of tokens [tokens]."""
    options = replace(options, partitioning=_partitioning(options))
    shapes = program_shapes(options.language)
    programs = {}
    blocked = decoding.precision(source, options)
    written = {}
    for name, shape in shapes.items():
        if blocked is not None and shape.tokens == 1:
            # Nothing of it is int8, so that there is nothing to rewrite or to calibrate.
            written[name] = decoding.program(source, shape, blocked, options)
            continue
        model = decoder.write(source, shape)
        programs[name] = building.plan_program(model, options, progress, driver)
    wanted: set[str] = set()
    for program in programs.values():
        wanted |= building.balanced(program).keys()
    names = sorted(wanted)

    # Prefill gives logits of the last token only. The head is balanced by the rows of all tokens.
    shape = replace(shapes["prefill"], all_logits=True)
    model = programs["prefill"].model
    if names:
        model = decoder.write(source, shape)
        building.rewrite(model, options, driver=driver)
    balanced = products(model.graph)
    context = SampleContext(
        Target.load(options.target),
        samples=sampling.Samples([partial(sample, model.graph, row, shape) for row in rows]),
        announce=progress,
        products=[balanced[name] for name in names],
    )
    driver.apply(BALANCE, model, context)

    quantized = {}
    for name, program in programs.items():
        own = products(program.model.graph)
        for product in names:
            _copy_factors(balanced[product], own[product])
        ranges = known([own[product] for product in names])
        quantized[name] = building.scaled(program, ranges, options, driver)
    return quantized | written


def rotated(source: Source, options: BuildOptions) -> tuple[Source, BuildOptions]:
    """The source with a rotated residual stream, where options ask for it or it comes with one.

    Rows of such a model need no rotation of their own, so that pass is left out.
    """
    if ROTATE_STREAM in options.also:
        source = rotate(source)
    if source.rotation is None:
        return source, options
    return source, replace(options, without=options.without | {"rotate_rows"})


def _partitioning(options: BuildOptions) -> PartitionOptions:
    """How programs are cut: the host multiplies in int8, has a program by itself that it is as fast
    in, and its segments fit an eighth of half the memory (`LanguageOptions.max_ram`)."""
    limit = options.language.max_ram
    host_bytes = None if limit is None else limit * MEGABYTE // 16
    return replace(options.partitioning, host_int8=True, host_bytes=host_bytes, needs_tpu=False)


def _copy_factors(source: Product, product: Product) -> None:
    factors, offsets = source.factors.const_value, source.offsets.const_value
    assert factors is not None and offsets is not None
    product.set(factors, offsets)


def _file_prefix(program: str) -> str:
    """What the names of a program's segments begin with."""
    return "" if program == "prefill" else f"{program}-"


def _language_entry(
    source: Source,
    sizes: LanguageOptions,
    file: FileEntry,
    programs: dict[str, ProgramEntry],
) -> LanguageEntry:
    tokenizer = source.tokenizer
    return {
        "name": source.architecture.name,
        "context": sizes.context,
        "chunk": sizes.chunk,
        "slots": sizes.slots,
        "max_ram_bytes": None if sizes.max_ram is None else sizes.max_ram * MEGABYTE,
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
