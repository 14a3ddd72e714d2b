"""Reads .npy and .npz files of strangers: no memory is taken for an array before the file is known
to hold it."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from compiler.errors import first_line

# Bytes that the arrays of one file may have, decompressed. On small machines it is half of the
# memory (`largest`).
LARGEST = 4 << 30
_CHUNK = 1 << 20
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_SHOWN_CHARACTERS = 60  # of a shape in a message, which may have a million dimensions


class ArrayError(ValueError):
    """What is wrong with a file of arrays, to be read behind its name: "is truncated"."""


def read(path: Path, most: int | None = None) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy file, or those of an .npz file by name; `most` bytes of them, or
    `largest()`.

    Raises ArrayError, whatever the file holds.
    """
    if most is None:
        most = largest()
    # A pipe would block, and a device may not end.
    if path.exists() and not path.is_file():
        raise ArrayError("is not a regular file")
    try:
        return _read(path, most)
    except ArrayError:
        raise
    except zipfile.BadZipFile as error:
        reason = first_line(error)
        raise ArrayError(f"is no .npy or .npz file, or a damaged one ({reason})") from error
    except MemoryError as error:
        raise ArrayError("does not fit the memory") from error
    except OSError as error:
        raise ArrayError(f"cannot be read ({error.strerror or first_line(error)})") from error
    except Exception as error:  # damaged archives and headers fail in too many ways to list
        raise ArrayError(f"cannot be read as numpy arrays ({first_line(error)})") from error


def largest() -> int:
    """Bytes that the arrays of a file may have on this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(LARGEST, memory // 2)


def _read(path: Path, most: int) -> np.ndarray | dict[str, np.ndarray]:
    with path.open("rb") as file:
        # By content, as numpy does: the name says nothing.
        if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return _read_zip(file, most)
        file.seek(0)
        size = path.stat().st_size
        _check_total(size, most)
        return _read_array(file, size)


def _read_zip(file: IO[bytes], most: int) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # zipfile reads no more of a member than its entry says, so the sum cannot lie.
        _check_total(sum(member.file_size for member in members), most)
        for member in members:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                try:
                    arrays[name] = _read_array(stream, member.file_size)
                except ArrayError as error:
                    raise ArrayError(f"array '{name}' {error}") from error
    return arrays


def _check_total(size: int, most: int) -> None:
    if size > most:
        raise ArrayError(
            f"holds {size >> 20} MiB of arrays; {most >> 20} MiB are the most that is read"
        )


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array in a stream of `size` bytes. Raises ArrayError, and what numpy raises for a header
    that it cannot read."""
    shape, is_fortran, dtype = _read_header(stream)
    if dtype.hasobject or not dtype.itemsize:
        # Objects are pickles, which run code when they are read.
        raise ArrayError(f"is of type {dtype}; arrays of numbers are read")
    claimed = math.prod(shape) * dtype.itemsize
    found = size - stream.tell()
    if min(shape, default=0) < 0 or claimed != found:
        raise ArrayError(f"claims shape {_shown(shape)} {dtype}, but {found} bytes of data follow")
    data = _read_bytes(stream, claimed)
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis is the fastest one, and type."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        major, minor = version
        raise ArrayError(f"has version {major}.{minor} of the .npy format; 1.0 and 2.0 are read")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    return shape, is_fortran, dtype


def _read_bytes(stream: IO[bytes], count: int) -> bytearray:
    # One allocation: the array keeps this buffer, and parts of a compressed stream are small.
    data = bytearray(count)
    position = 0
    while position < count:
        part = stream.read(min(_CHUNK, count - position))
        if not part:
            raise ArrayError("is truncated")
        data[position : position + len(part)] = part
        position += len(part)
    return data


def _shown(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[: _SHOWN_CHARACTERS - 3] + "..."
