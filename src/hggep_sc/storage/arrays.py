"""Large arrays: in memory as long as there is room for them, else in a temporary file."""

import logging
import mmap
import os
import tempfile
import weakref
from threading import Lock
from typing import IO

import numpy as np

from .._settings import settings

logger = logging.getLogger(__name__)


class _Held:
    """Bytes of the large arrays that are in memory now."""

    def __init__(self) -> None:
        self._bytes, self._lock = 0, Lock()  # folds may be run by threads

    def take(self, size: int) -> bool:
        """Take so many bytes, if there is room for them under `settings.patch_memory`."""
        with self._lock:
            if self._bytes + size > settings.patch_memory:
                return False
            self._bytes += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._bytes -= size


_held = _Held()


def large_array(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Return an uninitialised array, whose room is given back when nobody refers to it any more.

    All such arrays take up to `settings.patch_memory` bytes of memory together; further ones are in temporary files,
    which a process that is killed does not leave behind.

    Raises
    ------
    OSError
        If there is no room on disk.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if _held.take(size):
        array = np.empty(shape, dtype=dtype)
        weakref.finalize(array, _held.give_back, size)
        return array
    logger.info("patches or their features take %.1f GiB: kept in a temporary file", size / 2**30)
    try:
        with tempfile.TemporaryFile(prefix="hggep_sc_") as file:  # mapped for as long as the array is there
            _reserve(file, size)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: patches or their features take {size / 2**30:.1f} GiB in {tempfile.gettempdir()}; set "
            "TMPDIR to a folder with room, or hold them in memory (hggep_sc.settings.patch_memory)",
        ) from error


def let_go(array: np.ndarray) -> None:
    """Give back the memory that a large array in a temporary file takes; what is looked at again is read again.

    To be called when a part of it, or of a view of it, has been read or written: it would count as the process's memory
    from then on. Other arrays stay as they are.
    """
    mapped = getattr(array, "_mmap", None)  # None in a copy of such an array, too
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such call
        mapped.madvise(mmap.MADV_DONTNEED)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take so many bytes of the disk: a mapped file without ends Python by SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(2**24)
    for start in range(0, size, len(zeros)):  # macOS and Windows have no such call
        file.write(zeros[: size - start])
    file.flush()
