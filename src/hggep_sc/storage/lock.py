"""A folder for one process or thread at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError


@contextmanager
def alone_in(folder: Path, lock: str, given: str) -> Iterator[None]:
    """Hold a folder, which is made if it is not there; a process that is killed lets go of it.

    Parameters
    ----------
    folder
        The folder.
    lock
        Name of the file in it that is locked, and stays.
    given
        What the user calls the folder, for messages.

    Raises
    ------
    CheckpointError
        If another process or thread holds it.
    OSError
        If it cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / lock)
        held.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(
            f"{given}: another process or thread is at work on it; wait for its end, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # a file system may not know locks
        raise OSError(f"{given} cannot be written to: {error}; choose another folder") from error
    try:
        yield
    finally:
        held.release()
