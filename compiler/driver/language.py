"""From a language model to a verified bundle: the same compiler, for each of its programs.

    prefill   `chunk` tokens of one sequence, logits of the last
    decode    one token of one sequence
    batch     one token of each of `slots` sequences

driver/programs.py makes them; driver/fusion.py settles how prefill runs where users ask for speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from compiler.checks import verdict
from compiler.driver import block_errors, decoding, fusion, perplexity, toolchain
from compiler.driver import build as building
from compiler.driver.corpus import HELD_OUT, calibration_rows
from compiler.driver.fused import NOT_FUSED, Fusing
from compiler.driver.options import FUSE_BLOCKS, ROTATE_STREAM, BuildOptions, LanguageOptions
from compiler.driver.programs import Maker, parts_of
from compiler.driver.rewriting import PassDriver
from compiler.driver.stages import StageTimer, Timings, stage
from compiler.emit import bundle, report
from compiler.emit import manifest as manifests
from compiler.errors import OptionError
from compiler.frontends import Source, decoder, open_source, rope
from compiler.frontends.rotate import rotate
from compiler.graph import OPSET
from compiler.progress import Progress, silent
from compiler.runtime.bundle import sha256
from compiler.runtime.language import LanguageModel
from compiler.runtime.manifest import (
    FileEntry,
    FrontierEntry,
    LanguageEntry,
    Manifest,
    ProgramEntry,
)
from compiler.targets import Target
from passes import Steps

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
            source, maker, held_out = _opened(path, options, progress)
        compiled, options, driver = maker.source, maker.options, maker.driver
        settled = _settled(maker, held_out)
        programs = maker.programs(settled.fusing)
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
                len(maker.calibration),
                options.observers.default,
            )
            manifest = manifests.assembled(plan, calibrated)
            file = manifests.file_entry(tokenizer, folder)
            language = _language_entry(source, options.language, file, parts)
            language["decode_weights"] = decoding.weights_entry(
                compiled, decoding.precision(options)
            )
            manifest["language"] = language
            fusion.enter(manifest, settled)
            manifests.write(folder, manifest)

        with stage("verify"):
            expected = perplexity.float_logits(source, held_out, options.language.chunk, progress)
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
    """The options, the context no longer than the model's where nobody asked for one, and the chunk
    no longer than the context. Raises OptionError for a context that is longer than the model's."""
    longest = source.architecture.context
    if options.context == LanguageOptions.context:
        options = replace(options, context=min(options.context, longest))
    if options.context > longest:
        raise OptionError(
            f"{options.context}: the model was made for {longest} tokens at most", "context"
        )
    return replace(options, chunk=min(options.chunk, options.context))


def frontier(path: Path, options: BuildOptions, progress: Progress = silent) -> list[FrontierEntry]:
    """Plans of prefill of the language model `path` from the fastest to the most accurate one, as
    the manifest has them."""
    options = replace(options, frontier=True, pick=None).suited_to("language", path)
    _, maker, held_out = _opened(path, options, progress)
    return [candidate.entry() for candidate in _settled(maker, held_out).offered]


def _opened(
    path: Path, options: BuildOptions, progress: Progress
) -> tuple[Source, Maker, Sequence[np.ndarray]]:
    """(the model in a file, what its programs are made from, the rows that are held out)."""
    source = open_source(path, options.lora_paths)
    sizes = fitted(options.language, source)
    source = rope.for_context(source, sizes.context)
    rows = calibration_rows(source, options.calibration_path, sizes)
    compiled, options = rotated(source, replace(options, language=sizes))
    driver = PassDriver(Steps(options.without, options.also - {FUSE_BLOCKS}))
    return source, Maker(compiled, options, rows[:-HELD_OUT], driver, progress), rows[-HELD_OUT:]


def _settled(maker: Maker, held_out: Sequence[np.ndarray]) -> fusion.Settled:
    """How prefill runs, where options ask for anything but the plan by default."""
    source, options = maker.source, maker.options
    if not fusion.is_wanted(options):
        every = frozenset(range(source.architecture.layers))
        return fusion.Settled(Fusing(every) if FUSE_BLOCKS in options.also else NOT_FUSED)
    length = block_errors.row_length(held_out)
    expected = block_errors.float_logits(source, held_out)

    def divergence(fusing: Fusing) -> float:
        program = maker.with_all_logits(fusing, length)
        layers = source.architecture.layers
        return block_errors.program_divergence(program, layers, held_out, expected)

    def errors() -> dict[int, float]:
        # The first rows are those that blocks are calibrated on.
        rows = maker.calibration[-block_errors.MEASURED :]
        return block_errors.block_errors(maker.blocks, rows, maker.progress)

    search = fusion.Search(
        maker.plan, errors, divergence, source.architecture.layers, parts_of(options.language)
    )
    with stage("search"):
        return fusion.settle(search, options)


def rotated(source: Source, options: BuildOptions) -> tuple[Source, BuildOptions]:
    """The source with a rotated residual stream, where options ask for it or it comes with one.

    Rows of such a model need no rotation of their own, so that pass is left out.
    """
    if ROTATE_STREAM in options.also:
        source = rotate(source)
    if source.rotation is None:
        return source, options
    return source, replace(options, without=options.without | {"rotate_rows"})


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
