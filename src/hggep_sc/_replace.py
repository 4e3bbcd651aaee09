"""Files that are there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to, which takes its place once it is written.

    An interruption, a kill included, leaves what was at `path` before (of a folder, at worst nothing): never a half.

    Raises
    ------
    OSError
        If writing fails, of a full disk for instance; the message names `path`.
    """
    part, old = (path.with_name(f"{path.name}.{end}") for end in ("part", "old"))
    _remove(part)  # of a run that was killed
    _remove(old)
    try:
        yield part
        if path.is_dir():  # a folder is not replaced in one step
            path.rename(old)
        try:
            part.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise OSError(f"{path} could not be written, and is as it was before: {error}") from error
    finally:
        _remove(part)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
