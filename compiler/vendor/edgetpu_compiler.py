"""Runs edgetpu_compiler on the segments of a bundle and reads what it says.

Segments of one Edge TPU are compiled together, so that they share a caching token and do not evict
each other. The compiler takes x86-64 Linux; command line and log format are those of version 16
(coral.ai/docs/edgetpu/compiler, and public logs of versions 1, 2, 14, 15 and 16).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.emit import bundle
from compiler.errors import ModelError, OutputError, ToolchainError
from compiler.runtime.bundle import sha256
from compiler.vendor import darwinn

NAME, VARIABLE = "edgetpu_compiler", "EDGETPU_COMPILER"
TIMEOUT = 180  # seconds, as the compiler's own default
_SIGNALS = 128  # exit codes of a shell above it are signals
_GRACE = 30  # seconds beyond its own timeout before it is killed
_MAPPED = "Mapped to Edge TPU"
_ROW = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$")
_FIELD = re.compile(r"^([A-Z][A-Za-z -]+): (.+)$")
# What the compiler says of a whole file that it does not compile; the more telling ones first.
_COMPLAINTS = (
    "Internal compiler error",
    "Compilation timeout",
    "Compilation failed:",
    "ERROR:",
    "error:",
    "terminating with",
    "Invalid model",
    "Model not quantized",
    "Segmentation fault",
)


@dataclass(frozen=True)
class Row:
    """Operators of a kind, and what the compiler did with them."""

    operator: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        return self.status == _MAPPED


@dataclass
class Log:
    """What a log says: `fields` by the compiler's own words for each model, in their order, and the
    operator table."""

    version: str | None = None
    models: list[dict[str, str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    complaint: str | None = None


def parse(text: str) -> Log:
    """Read the standard output or the .log file of any version."""
    log = Log()
    complaints: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        version = re.search(r"Edge TPU Compiler version (\S+)", line)
        if version:
            log.version = version.group(1)
        elif row := _ROW.match(line):
            log.rows.append(Row(row.group(1), int(row.group(2)), row.group(3)))
        elif found := _FIELD.match(line):
            name, value = found.groups()
            if name in ("Input", "Input model") or not log.models:
                log.models.append({})
            log.models[-1][name] = value
        for complaint in _COMPLAINTS:
            if complaint in line:
                complaints.setdefault(complaint, line)
    log.complaint = next((complaints[c] for c in _COMPLAINTS if c in complaints), None)
    return log


@dataclass(frozen=True)
class Compiled:
    """A compiled file, and what is cached, streamed and left on the CPU of it."""

    file: Path
    version: str
    cached: int
    streamed: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Refused:
    """Why a file was not compiled."""

    reason: str


Outcome = Compiled | Refused


@dataclass(frozen=True)
class Tool:
    """How edgetpu_compiler is called: `command` is the program, or what runs it in a container."""

    command: tuple[str, ...]
    image: str | None = None
    timeout: int = TIMEOUT

    def run(self, files: Sequence[Path], out: Path) -> subprocess.CompletedProcess[str]:
        """Compile files together; raises subprocess.TimeoutExpired."""
        command = list(self.command)
        if self.image is not None:
            folders = {f.parent.resolve() for f in files} | {out.resolve()}
            mounts = [
                part for folder in sorted(folders) for part in ("--volume", f"{folder}:{folder}")
            ]
            user = f"{os.getuid()}:{os.getgid()}"
            command += [
                "run",
                "--rm",
                "--network",
                "none",
                "--user",
                user,
                *mounts,
                self.image,
                NAME,
            ]
        command += ["--out_dir", str(out), "--timeout_sec", str(self.timeout), *map(str, files)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=self.timeout + _GRACE,
            check=False,
        )


def find(path: str | None = None, image: str | None = None, timeout: int = TIMEOUT) -> Tool | None:
    """The compiler at `path`, else at $EDGETPU_COMPILER, else on PATH; or in a container `image` of
    docker.

    None where none is installed. Raises ToolchainError for one that was named and is not there.
    """
    if image is not None:
        docker = shutil.which("docker")
        if docker is None:
            raise ToolchainError(f"--docker {image}: docker is not installed")
        return Tool((docker,), image, timeout)
    named = path or os.environ.get(VARIABLE)
    found = shutil.which(named or NAME)
    if named and found is None:
        source = "--edgetpu-compiler" if path else f"${VARIABLE}"
        raise ToolchainError(f"{source} {named}: no such program")
    return Tool((found,), None, timeout) if found else None


class Session:
    """Compiles groups of files in parallel, equal ones once, into a folder of its own."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._folder = tempfile.TemporaryDirectory(prefix="edgetpu-")
        self._known: dict[tuple[str, ...], dict[str, Outcome]] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def compile(
        self, groups: Iterable[Sequence[Path]], progress: Callable[[], None] = lambda: None
    ) -> dict[Path, Outcome]:
        """Compile the files of each group together. Raises ToolchainError where the program cannot
        be run."""
        found: dict[Path, Outcome] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for outcomes in pool.map(self._group, groups):
                found |= outcomes
                progress()
        return found

    def _group(self, files: Sequence[Path]) -> dict[Path, Outcome]:
        digests = {file: sha256(file) for file in files}
        key = tuple(dict.fromkeys(digests.values()))
        if key not in self._known:
            first = {digest: file for file, digest in reversed(digests.items())}
            self._known[key] = self._compile({d: first[d] for d in key})
        return {file: self._known[key][digest] for file, digest in digests.items()}

    def _compile(self, files: Mapping[str, Path]) -> dict[str, Outcome]:
        """Outcomes by digest. Where they fail together, each is tried alone to find those to blame."""
        outcomes = self._once(files)
        if len(files) == 1 or not any(isinstance(o, Refused) for o in outcomes.values()):
            return outcomes
        alone = {digest: self._compile({digest: file})[digest] for digest, file in files.items()}
        blamed = {digest: o for digest, o in alone.items() if isinstance(o, Refused)}
        good = {digest: file for digest, file in files.items() if digest not in blamed}
        if not blamed or not good:
            return alone  # they compile one by one only, or not at all
        return {**self._compile(good), **blamed}

    def _once(self, files: Mapping[str, Path]) -> dict[str, Outcome]:
        out = Path(tempfile.mkdtemp(dir=self._folder.name))
        inputs = {digest: out / f"s{number}.tflite" for number, digest in enumerate(files)}
        for digest, file in files.items():
            shutil.copyfile(file, inputs[digest])
        try:
            ran = self.tool.run(list(inputs.values()), out)
        except subprocess.TimeoutExpired:
            return dict.fromkeys(files, Refused(f"no end after {self.tool.timeout + _GRACE} s"))
        except OSError as error:
            raise ToolchainError(
                f"{self.tool.command[0]}: cannot be run: {error.strerror}"
            ) from error
        log = parse(ran.stdout + "\n" + ran.stderr)
        if ran.returncode != 0:
            crashed = ran.returncode < 0 or ran.returncode > _SIGNALS
            if log.version is None and log.complaint is None and not crashed:
                raise ToolchainError(
                    f"{self.tool.command[0]}: exit code {ran.returncode}: {_last(ran)}"
                )
            return dict.fromkeys(
                files, Refused(log.complaint or f"exit code {ran.returncode}: {_last(ran)}")
            )
        return {digest: _outcome(path, log.version) for digest, path in inputs.items()}


def _last(ran: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ran.stdout + "\n" + ran.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _outcome(source: Path, version: str | None) -> Outcome:
    """What lies beside a file that was compiled: X_edgetpu.tflite and X_edgetpu.log."""
    file = source.with_name(f"{source.stem}_edgetpu.tflite")
    if not file.is_file():
        return Refused("the compiler ended well but wrote no file")
    try:
        packages, _ = darwinn.read(file)
    except ModelError:
        return Refused("the compiler mapped nothing to the Edge TPU")
    notes = file.with_suffix(".log")
    rows = parse(notes.read_text("utf-8", "replace")).rows if notes.is_file() else []
    return Compiled(
        file,
        version or packages[0].compiler,
        sum(p.cached for p in packages),
        sum(p.streamed for p in packages),
        tuple(rows),
    )


def groups(programs: Iterable[Sequence[Mapping[str, Any]]], folder: Path) -> list[list[Path]]:
    """The files of the segments of each Edge TPU, of all programs of the bundle in `folder`."""
    found: dict[int, list[Path]] = {}
    for segment in (s for segments in programs for s in segments if s["tpu"] is not None):
        found.setdefault(segment["tpu"], []).append(folder / segment["files"][0]["path"])
    return [found[tpu] for tpu in sorted(found)]


def refused(
    segments: Iterable[Mapping[str, Any]], outcomes: Mapping[Path, Outcome], folder: Path
) -> dict[int, str]:
    """Indices of segments that were not compiled, and why."""
    found = {
        s["index"]: outcomes[folder / s["files"][0]["path"]]
        for s in segments
        if s["tpu"] is not None
    }
    return {
        index: outcome.reason for index, outcome in found.items() if isinstance(outcome, Refused)
    }


def enter(
    segments: Iterable[dict[str, Any]], outcomes: Mapping[Path, Outcome], folder: Path
) -> None:
    """Put compiled files beside the segments' own and say in their entries of the manifest what
    came of them."""
    for segment in segments:
        if segment["tpu"] is None:
            continue
        outcome = outcomes[folder / segment["files"][0]["path"]]
        if isinstance(outcome, Refused):
            for operator in segment["operators"]:
                operator["reason"] = (
                    f"runs on the CPU, as edgetpu_compiler refuses its segment: {outcome.reason}"
                )
        else:
            _enter(segment, outcome, folder)


def compile_bundle(
    path: Path, tool: Tool, report: Callable[[str, int], Callable[[], None]]
) -> dict[str, Any]:
    """Compile the segments of a bundle in its place; returns its new manifest. Raises BundleError,
    OutputError.

    Compiled files come beside the others first and the manifest names them last, so that the bundle
    is whole at any time.
    """
    found = bundle.load(path)
    before = {e["path"] for e in found.files()}
    programs = [program["segments"] for program in found.programs().values()]
    for segment in (s for segments in programs for s in segments):
        segment["files"], segment["compiled"] = segment["files"][:1], None
    parts = groups(programs, path)
    with Session(tool) as session:
        outcomes = session.compile(parts, report("edgetpu_compiler", len(parts)))
        try:
            for segments in programs:
                enter(segments, outcomes, path)
            bundle.write_manifest(path, found.manifest)
            _remove(path, before - {e["path"] for e in found.files()})
        except OSError as error:
            _remove(path, {e["path"] for e in found.files()} - before)
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return found.manifest


def _remove(path: Path, names: Iterable[str]) -> None:
    for name in names:
        (path / name).unlink(missing_ok=True)


def _enter(segment: dict[str, Any], outcome: Compiled, folder: Path) -> None:
    # Named by its content, as the manifest that stands may name the one of an earlier compilation.
    own, digest = segment["files"][0], sha256(outcome.file)
    entry: dict[str, Any] = {
        "path": f"{own['path'].removesuffix('.tflite')}-{digest[:8]}_edgetpu.tflite",
        "sha256": digest,
        "bytes": outcome.file.stat().st_size,
    }
    made = folder / f"{entry['path']}.tmp"
    shutil.copyfile(outcome.file, made)
    made.replace(folder / entry["path"])
    segment["files"] = [own, entry]
    segment["compiled"] = {
        "path": entry["path"],
        "compiler": outcome.version,
        "cached_bytes": outcome.cached,
        "streamed_bytes": outcome.streamed,
        "mapped": sum(r.count for r in outcome.rows if r.mapped),
        "on_cpu": [
            {"operator": r.operator, "count": r.count, "status": r.status}
            for r in outcome.rows
            if not r.mapped
        ],
    }
