"""Files that may be anything: read with care, and h5ad files written with it."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData


def read_regular(file: Path, size: int | None = None) -> bytes:
    """Return the content of a regular file, no link, pipe or device, of the size that is expected of it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is something else, of another size, or larger than free memory.
    """
    try:
        # a pipe without a writer is not waited for
        opened = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        if file.is_symlink():
            raise ValueError(f"{file} is a link to another file: copy what it names (cp -L) in its place") from error
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{file} is no regular file")
        if size is not None and found.st_size != size:
            raise ValueError(f"{file} has {found.st_size} bytes, not the {size} that were saved")
        _require_memory(str(file), found.st_size)
        with os.fdopen(opened, "rb", closefd=False) as stream:
            return stream.read(found.st_size)
    finally:
        os.close(opened)


def require_plain_h5ad(file: Path) -> None:
    """Refuse an h5ad file that names other files, or whose arrays are larger than free memory.

    Raises
    ------
    ValueError
        If it does, or is no regular file.
    OSError
        If it is no HDF5 file.
    """
    import h5py

    if not file.is_file():
        raise ValueError(f"{file} is no regular file")
    total, seen = 0, set()
    with h5py.File(file) as opened:
        groups: list[h5py.Group] = [opened]
        while groups:
            group = groups.pop()
            if (address := h5py.h5o.get_info(group.id).addr) in seen:
                raise ValueError(f"{group.name} is there twice")
            seen.add(address)
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{group.name}/{name} is a link")
                item = group[name]
                if isinstance(item, h5py.Group):
                    groups.append(item)
                    continue
                if item.is_virtual or item.external:
                    raise ValueError(f"{item.name} lies in another file")
                total += item.size * item.dtype.itemsize if item.size else 0
    _require_memory(f"what {file} holds", total)


def _require_memory(what: str, n_bytes: int) -> None:
    import psutil

    if n_bytes > (free := psutil.virtual_memory().available):
        raise ValueError(f"{what} takes {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free")


def write_h5ad(table: "AnnData", file: Path, **options: Any) -> None:
    """Write an AnnData as `table.write_h5ad` does, but for what a full disk does to HDF5 (`new_hdf5`).

    Parameters
    ----------
    table
        What is to be written; in memory.
    file
        A file that is not there yet.
    options
        Of each array, such as `compression`.

    Raises
    ------
    OSError
        If writing fails; the file is no whole one then.
    """
    from anndata.io import write_elem

    table.strings_to_categoricals()
    if table.raw is not None:
        table.strings_to_categoricals(table.raw.var)
    with new_hdf5(file) as opened:
        write_elem(opened, "/", table, dataset_kwargs=options)


@contextmanager
def new_hdf5(file: Path) -> "Iterator[h5py.File]":
    """Open a new HDF5 file to write to.

    HDF5 keeps what it could not write, tries again when Python ends, and crashes there. So it is told that all is
    written, and the error is raised once it has closed the file.

    Raises
    ------
    OSError
        If writing fails; the file is no whole one then.
    """
    import h5py

    with _Remembering(file, "w+b") as target:
        try:
            with h5py.File(target, "w") as opened:
                yield opened
        finally:  # what was not written cannot be read back either
            if target.error is not None:
                raise target.error


class _Remembering(io.FileIO):
    """A file whose writing does not fail, but leaves an error behind."""

    error: OSError | None = None

    def write(self, content: Any, /) -> int:
        left = memoryview(content).cast("B")
        n_bytes = len(left)
        while len(left) and self.error is None:
            try:
                left = left[super().write(left) :]  # which may be a part
            except OSError as error:
                self.error = error
        if self.error is not None:  # the next is written where HDF5 thinks that it is
            self.seek(len(left), io.SEEK_CUR)
        return n_bytes

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
