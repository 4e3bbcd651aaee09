"""Large arrays that are held for a while: in memory, else in a temporary file."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._settings import settings

logger = logging.getLogger(__name__)


@contextmanager
def array_store(shapes: Sequence[tuple[int, ...]], dtype: type[np.generic]) -> Iterator[list[np.ndarray]]:
    """Give uninitialised arrays: in memory up to `settings.patch_memory`, else in a temporary file.

    Raises
    ------
    OSError
        If there is no room for them on disk.
    """
    total = sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize
    if total <= settings.patch_memory:
        yield [np.empty(shape, dtype=dtype) for shape in shapes]
        return
    logger.info("patches or their features take %.1f GiB: kept in a temporary file", total / 2**30)
    with tempfile.TemporaryDirectory(prefix="hggep_patches_", ignore_cleanup_errors=True) as folder:
        try:
            stores: list[np.ndarray] = [
                _on_disk(Path(folder) / f"{i}.array", dtype, shape) for i, shape in enumerate(shapes)
            ]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: patches or their features take {total / 2**30:.1f} GiB in "
                f"{tempfile.gettempdir()}; set TMPDIR to a folder with room, or hold them in memory "
                "(hggep_sc.settings.patch_memory)",
            ) from error
        yield stores


def _on_disk(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Make an array in a file that has its room on disk: a mapped file without ends Python by SIGBUS."""
    with path.open("wb") as file:
        _reserve(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _reserve(file: BinaryIO, size: int) -> None:
    """Take so many bytes of the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(2**24)
    for start in range(0, size, len(zeros)):  # macOS and Windows have no such call
        file.write(zeros[: size - start])
