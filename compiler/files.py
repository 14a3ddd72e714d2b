"""Output files that appear whole or not at all, and temporary folders that go away."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from compiler.errors import OutputError
from compiler.runtime import folders

PART = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The text of numpy's error, which has no errno, where a full disk takes a part of an array.
_PARTLY = re.compile(r"^\d+ requested and \d+ written$")
# Paths of open files: they are written to, not replaced.
_DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/")


def ran_full(error: OSError) -> bool:
    """Whether a disk or a quota is full."""
    return error.errno in _FULL or bool(_PARTLY.match(str(error)))


def temporary(purpose: str) -> folders.Folder:
    """A temporary folder for this process. Should the process be killed, the next build removes it.

    `purpose` becomes a part of its name. Raises OutputError.
    """
    try:
        return folders.temporary(purpose)
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made: {error.strerror or error}: set $TMPDIR"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system about writing `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except folders.TakenError as error:
        raise OutputError(f"{path}: {error}") from error


@contextmanager
def output(path: Path, sources: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """A file to write. It appears at `path` when the block ends without an error, and not before.

    A link stays, and the file that it leads to is replaced and keeps its permissions. A pipe or a
    device is written to directly. `sources` are files that must not be replaced. Raises
    OutputError.
    """
    with writing(path):
        status = _status(path)
        if status is None:
            opened = _replacing(path, None)
        else:
            _refuse(path, status, sources)
            regular = stat.S_ISREG(status.st_mode) and not str(path).startswith(_DESCRIPTORS)
            opened = _replacing(path, status) if regular else _in_place(path, status)
        with opened as file:
            yield file


def write_text(path: Path, text: str, sources: Iterable[Path] = ()) -> None:
    """Write text as UTF-8, as `output` does."""
    with output(path, sources) as file:
        file.write(text.encode("utf-8"))


def is_stdout(path: Path) -> bool:
    """Whether `path` is standard output, to which nothing else may be printed then."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or no file
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _refuse(path: Path, status: os.stat_result, sources: Iterable[Path]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path}: cannot be written: is a folder")
    for source in sources:
        found = _status(source)
        if found is not None and os.path.samestat(status, found):
            raise OutputError(f"{path}: is what this command reads: name another file")


@contextmanager
def _in_place(path: Path, status: os.stat_result) -> Iterator[BinaryIO]:
    if is_stdout(path):
        # Opened anew it would be written from its start, over what was printed.
        sys.stdout.flush()
        descriptor = os.dup(sys.stdout.fileno())
    else:
        truncate = os.O_TRUNC if stat.S_ISREG(status.st_mode) else 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | truncate)
    with os.fdopen(descriptor, "wb") as file:
        yield file


@contextmanager
def _replacing(path: Path, status: os.stat_result | None) -> Iterator[BinaryIO]:
    """A file beside the place of `path`, which takes that place at the end.

    Its name is always the same, so that killed commands leave one such file at most.
    """
    place = Path(os.path.realpath(path))
    if status is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    part = folders.beside(place, PART)
    descriptor = _open_part(path, part)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.ftruncate(descriptor, 0)
            if status is not None:
                with suppress(PermissionError):  # only root gives files away
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            yield file
            file.flush()
            os.fsync(descriptor)
            part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _open_part(path: Path, part: Path) -> int:
    try:
        return folders.lock_file(part)
    except BlockingIOError as error:
        raise OutputError(f"{path}: another process is writing it just now") from error
    except OSError as error:
        if not folders.lacks_locks(error):
            raise
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
