"""Folders that are swept when their process is gone, and folders that replace others in one step.

Whether a process still lives is told by a lock on a file (flock), not by its id: in another
container the same id is another process. The kernel gives a lock back however its process ends.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

PREFIX = "coral-bundle-work-"  # of folders in the temporary folder
LOCK = "lock"
BUILDING = ".building"
NEW, OLD = "bundle", "old"  # in such a folder: what will stand, and what has stood
NAME_MAX = 255  # bytes that file systems take as a name
# What file systems say that lack locks, or cannot exchange two names.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_EXCHANGE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_SYNC_THREADS = 8
_ATTEMPTS = 100  # at a folder that others remove while we take it
_SWAP_SECONDS = 2.0  # more than a live process spends between the two renames of a replacement
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class TakenError(Exception):
    """Another process works in this folder."""


class Folder:
    """A folder that this process alone works in. `close`, or the end of the process, removes it and
    all in it."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._remove = weakref.finalize(self, _remove, path, lock, os.getpid())

    def close(self) -> None:
        self._remove()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove(path: Path, lock: int | None, process: int) -> None:
    if os.getpid() != process:
        return  # a fork that ends: the folder is its parent's
    _empty(path)
    with suppress(OSError):
        (path / LOCK).unlink()
    if lock is not None:
        os.close(lock)  # in front of rmdir, as NFS keeps files that are open
    with suppress(OSError):
        path.rmdir()


def _empty(path: Path) -> None:
    """Remove what can be removed, but for the lock, which goes last, and the only copy of what was
    set aside."""
    with suppress(OSError):
        for entry in os.scandir(path):
            if entry.name in (LOCK, OLD):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def lock_file(path: Path) -> int:
    """An open descriptor of the file, made if need be, with a lock that lasts as long as it is
    open.

    Raises BlockingIOError where another process has the lock, FileNotFoundError where one has just
    removed the file, another OSError where the file cannot be made or the file system has no locks
    (`lacks_locks`).
    """
    import fcntl  # Windows has none, and reads bundles all the same

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had the lock before may have removed the file after we opened it.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lacks_locks(error: OSError) -> bool:
    return error.errno in _NO_LOCKS


def temporary(purpose: str) -> Folder:
    """A new folder in the temporary folder. Raises OSError."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
        try:
            return Folder(path, lock_file(path / LOCK))
        except (BlockingIOError, FileNotFoundError):
            continue  # `sweep` of another process was faster than our lock
        except OSError as error:
            if lacks_locks(error):
                return Folder(path, None)  # and `sweep` can lock nothing here either
            _remove(path, None, os.getpid())
            raise


def sweep() -> None:
    """Remove what processes of this user left in the temporary folder that were killed outright."""
    with suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if not entry.name.startswith(PREFIX):
                continue
            with suppress(OSError):
                own = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                if own and entry.is_dir(follow_symlinks=False):
                    path = Path(entry.path)
                    Folder(path, lock_file(path / LOCK)).close()


def beside(path: Path, ending: str) -> Path:
    """A hidden name for what belongs to `path`, in the same folder and always the same."""
    name = path.name
    if len(os.fsencode(name)) + len(ending) + 1 > NAME_MAX:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.parent / f".{name}{ending}"


def claim(path: Path) -> Folder:
    """The empty folder beside `path` where what replaces it is made; what a dead process left there
    is removed.

    Raises TakenError where another process is at it, OSError where the folder cannot be made.
    """
    building = beside(path, BUILDING)
    for _ in range(_ATTEMPTS):
        made = _make(building)
        try:
            lock = lock_file(building / LOCK)
        except FileNotFoundError:
            continue  # its owner has just ended
        except BlockingIOError:
            break
        except OSError as error:
            if not lacks_locks(error):
                raise
            if made:
                return Folder(building, None)
            raise TakenError(
                f"{building} is there, and this file system has no locks to tell whether a process "
                "works in it; remove it if none does"
            ) from error
        try:
            _restore(building, path)
        except OSError:
            os.close(lock)
            raise
        shutil.rmtree(building / OLD, ignore_errors=True)  # the new one stands
        _empty(building)
        return Folder(building, lock)
    raise TakenError(f"another process is making it just now, in {building}")


def _make(building: Path) -> bool:
    """Whether the folder was made now. Raises TakenError for one that cannot come from us."""
    try:
        building.mkdir()
    except FileExistsError:
        with suppress(FileNotFoundError):
            status = building.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if not ours or not {LOCK, NEW, OLD}.issuperset(os.listdir(building)):
                raise TakenError(f"{building} is in the way: remove it") from None
        return False
    return True


def replace(made: Path, path: Path) -> None:
    """Put the folder `made` at `path` and remove the one that stood there.

    `made` lies in the folder that `claim` gave for `path`. One system call exchanges the two; where
    the system has none for that, the old one is set aside first, and `restore` finds it there
    should we be killed before the new one stands. Raises OSError, with all as it was.
    """
    if not os.path.lexists(path) or is_empty(path):
        # This takes the place of an empty folder, and fails where something has just come into it.
        os.rename(made, path)
        sync(path.parent)
        return
    old = made
    if not exchange(made, path):
        old = made.parent / OLD
        try:
            os.rename(path, old)
            os.rename(made, path)
        except BaseException:
            _restore(made.parent, path)
            raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def is_empty(path: Path) -> bool:
    """Whether `path` is a folder with nothing in it. Raises OSError where it cannot be read."""
    return path.is_dir() and not any(path.iterdir())


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system cannot. Raises
    OSError."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def restore(path: Path) -> None:
    """Put the old folder back to `path` where a process was killed while replacing it without
    `exchange`.

    Raises OSError where it cannot be put back.
    """
    building = beside(path, BUILDING)
    end = time.monotonic() + _SWAP_SECONDS
    while not os.path.lexists(path) and (building / OLD).is_dir():
        try:
            lock = lock_file(building / LOCK)
        except (BlockingIOError, FileNotFoundError):
            if time.monotonic() > end:
                return
            time.sleep(0.01)  # a live process is between the two renames
            continue
        try:
            _restore(building, path)
        finally:
            os.close(lock)


def _restore(building: Path, path: Path) -> None:
    if not os.path.lexists(path) and (building / OLD).is_dir():
        os.rename(building / OLD, path)


def synchronise(folder: Path) -> None:
    """Return when the folder and all in it would survive a loss of power. Raises OSError."""
    paths = [folder, *(p for p in folder.rglob("*") if p.is_dir() or p.is_file())]
    # All at once: the file system then writes them in few transactions, not one after the other.
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Likewise for one file, or the names in one folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot do that to a folder
            raise
    finally:
        os.close(descriptor)
