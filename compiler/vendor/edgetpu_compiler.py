"""Runs edgetpu_compiler on the segments of a bundle and reads what it says.

Segments of one Edge TPU are compiled together, so that they share a caching token and do not evict
each other. The compiler takes x86-64 Linux; command line and log format are those of version 16
(coral.ai/docs/edgetpu/compiler, and public logs of versions 1, 2, 14, 15 and 16).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from compiler import files
from compiler.errors import ModelError, ToolchainError
from compiler.runtime.bundle import sha256
from compiler.runtime.manifest import SegmentEntry
from compiler.vendor import darwinn

NAME, VARIABLE = "edgetpu_compiler", "EDGETPU_COMPILER"
TIMEOUT = 180  # seconds, as the compiler's own default
_SIGNALS = 128  # exit codes of a shell above it are signals
_GRACE = 30  # seconds beyond its own timeout before it is killed
_MAPPED = "Mapped to Edge TPU"
_VERSION = re.compile(r"Edge TPU Compiler version (\S+)")
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
    lines = [line.strip() for line in text.splitlines()]
    for line in lines:
        if version := _VERSION.search(line):
            log.version = version.group(1)
        elif row := _ROW.match(line):
            log.rows.append(Row(row.group(1), int(row.group(2)), row.group(3)))
        elif found := _FIELD.match(line):
            name, value = found.groups()
            # What is said of a model begins with its file; some versions leave that out.
            if name in ("Input", "Input model") or not log.models:
                log.models.append({})
            log.models[-1][name] = value
    log.complaint = _complaint(lines)
    return log


def _complaint(lines: Sequence[str]) -> str | None:
    """The first line with the most telling complaint that there is."""
    for complaint in _COMPLAINTS:
        for line in lines:
            if complaint in line:
                return line
    return None


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
    """Why a file was not compiled, in the compiler's words where it has any."""

    reason: str


Outcome = Compiled | Refused


@dataclass(frozen=True)
class Tool:
    """How edgetpu_compiler is called: `command` is the program, or what runs it in a container.

    `trusted`: what it gives is kept even where its parameters are not found to be those of the
    plain file.
    """

    command: tuple[str, ...]
    image: str | None = None
    timeout: int = TIMEOUT
    trusted: bool = False

    def run(self, files: Sequence[Path], out: Path) -> subprocess.CompletedProcess[str]:
        """Compile files together into the folder `out`. Raises subprocess.TimeoutExpired, OSError
        where the program cannot be run."""
        command = list(self.command)
        if self.image is not None:
            folders = {file.parent.resolve() for file in files} | {out.resolve()}
            command += _container(self.image, sorted(folders))
        command += ["--out_dir", str(out), "--timeout_sec", str(self.timeout), *map(str, files)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=self.timeout + _GRACE,
            check=False,
        )


def _container(image: str, folders: Iterable[Path]) -> list[str]:
    """Arguments of docker that run the compiler in an image, as this user, without network, with
    the folders under their own names."""
    arguments = ["run", "--rm", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}"]
    for folder in folders:
        arguments += ["--volume", f"{folder}:{folder}"]
    return [*arguments, image, NAME]


def find(
    path: str | None = None,
    image: str | None = None,
    timeout: int = TIMEOUT,
    trusted: bool = False,
) -> Tool | None:
    """The compiler at `path`, else at $EDGETPU_COMPILER, else on PATH; or in a container `image` of
    docker.

    None where none is installed. Raises ToolchainError for one that was named and is not there.
    """
    if image is not None:
        docker = shutil.which("docker")
        if docker is None:
            raise ToolchainError(f"{image}: docker is not installed, which runs images")
        return Tool((docker,), image, timeout, trusted)
    named = path or os.environ.get(VARIABLE)
    found = shutil.which(named or NAME)
    if named and found is None:
        source = "" if path else f"${VARIABLE} "
        raise ToolchainError(f"{source}{named}: no such program")
    return Tool((found,), None, timeout, trusted) if found else None


class Session:
    """Compiles groups of files in parallel, equal ones once, into a folder of its own."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._folder = files.temporary("edgetpu")
        self._numbers = itertools.count()
        self._known: dict[tuple[str, ...], dict[str, Outcome]] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

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
        """Outcomes of files that are compiled together, and only once where they were before."""
        digests = {file: sha256(file) for file in files}
        different: dict[str, Path] = {}
        for file, digest in digests.items():
            different.setdefault(digest, file)
        key = tuple(different)
        if key not in self._known:
            self._known[key] = self._compile(different)
        return {file: self._known[key][digest] for file, digest in digests.items()}

    def _compile(self, files: Mapping[str, Path]) -> dict[str, Outcome]:
        """Outcomes by digest. Where they fail together, each is tried alone to find those to
        blame."""
        outcomes = self._once(files)
        if len(files) == 1 or not any(isinstance(o, Refused) for o in outcomes.values()):
            return outcomes
        alone: dict[str, Outcome] = {}
        good: dict[str, Path] = {}
        for digest, file in files.items():
            alone |= self._once({digest: file})
            if isinstance(alone[digest], Compiled):
                good[digest] = file
        if len(good) in (0, len(files)):
            return alone  # they compile one by one only, or not at all
        # Those that are not to blame may share a caching token.
        return alone | self._compile(good)

    def _once(self, files: Mapping[str, Path]) -> dict[str, Outcome]:
        """Outcomes by digest of one call of the compiler, which sees copies of the files."""
        out = self._folder.path / str(next(self._numbers))
        out.mkdir()
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
        log = parse(_output(ran))
        if ran.returncode == 0:
            return {digest: _outcome(path, log.version) for digest, path in inputs.items()}
        reason = f"exit code {ran.returncode}: {_last_line(ran)}"
        is_crash = ran.returncode < 0 or ran.returncode > _SIGNALS
        if log.version is None and log.complaint is None and not is_crash:
            # Nothing in it shows that the compiler ran: docker, say, lacks the image.
            raise ToolchainError(f"{self.tool.command[0]}: {reason}")
        return dict.fromkeys(files, Refused(log.complaint or reason))


def _output(ran: subprocess.CompletedProcess[str]) -> str:
    return f"{ran.stdout}\n{ran.stderr}"


def _last_line(ran: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in _output(ran).splitlines() if line.strip()]
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


def groups(programs: Iterable[Sequence[SegmentEntry]], folder: Path) -> list[list[Path]]:
    """The files of the segments of each Edge TPU, of all programs of the bundle in `folder`."""
    found: dict[int, list[Path]] = {}
    for segments in programs:
        for segment in segments:
            if segment["tpu"] is not None:
                found.setdefault(segment["tpu"], []).append(_own_file(segment, folder))
    return [found[tpu] for tpu in sorted(found)]


def refused(
    segments: Iterable[SegmentEntry], outcomes: Mapping[Path, Outcome], folder: Path
) -> dict[int, str]:
    """Indices of segments that were not compiled, and why."""
    found = {}
    for segment in segments:
        if segment["tpu"] is None:
            continue
        outcome = outcomes[_own_file(segment, folder)]
        if isinstance(outcome, Refused):
            found[segment["index"]] = outcome.reason
    return found


def _own_file(segment: SegmentEntry, folder: Path) -> Path:
    """The file that is compiled, not what came of it."""
    return folder / segment["files"][0]["path"]
