"""Reads .npy and .npz files of strangers: nothing is allocated before it is known to be in the
file."""

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

# Bytes that the arrays of a file may have, compressed ones too; less where the machine has little
# memory.
LARGEST = 4 << 30
_CHUNK = 1 << 20
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


class ArrayError(ValueError):
    """What is wrong with a file of arrays, to be read behind its name."""


def read(path: Path, most: int | None = None) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy file, or the arrays of an .npz file by name: `most` bytes, else
    `largest()`.

    Raises ArrayError.
    """
    most = largest() if most is None else most
    if path.exists() and not path.is_file():
        raise ArrayError("is not a regular file")
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                return _read_zip(file, most)
            file.seek(0)
            size = path.stat().st_size
            _check_total(size, most)
            return _read_array(file, size)
    except ArrayError:
        raise
    except zipfile.BadZipFile as error:
        raise ArrayError(
            f"is no .npy or .npz file, or a damaged one ({first_line(error)})"
        ) from error
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


def _read_zip(file: IO[bytes], most: int) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
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
    """The array in a stream of `size` bytes."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ArrayError(
            f"has version {version[0]}.{version[1]} of the .npy format; 1.0 and 2.0 are read"
        )
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject or not dtype.itemsize:
        raise ArrayError(f"is of type {dtype}; arrays of numbers are read")
    wanted, found = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or wanted != found:
        raise ArrayError(f"claims shape {_shown(shape)} {dtype}, but {found} bytes of data follow")
    data, at = bytearray(wanted), 0
    while at < wanted:
        part = stream.read(min(_CHUNK, wanted - at))
        if not part:
            raise ArrayError("is truncated")
        data[at : at + len(part)] = part
        at += len(part)
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


def _shown(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) <= 60 else text[:57] + "..."
