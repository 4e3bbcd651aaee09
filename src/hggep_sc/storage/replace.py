"""Files that are there whole or not at all."""

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

PREFIX = ".hggep_sc-"  # start of the name of every folder for what is under way
OLD, NEW = "old", "new"  # folders in it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write a file or a folder to, which takes the place of `path` once it is written.

    It lies in a folder beside `path` that nobody else has: of several that write at once the last one is kept, whole.
    An interruption, a kill included, leaves what was at `path` before (of a folder, at worst nothing, until the next
    writing): never a half. What a killed process left is removed by the next one on the same machine.

    Raises
    ------
    OSError
        If writing fails, of a full disk for instance; the message names `path`.
    """
    try:
        _tidy_up(path)
        own = path.with_name(f"{_ours(path)}{os.getpid()}-{secrets.token_hex(4)}")
        own.mkdir()
        (own / NEW).mkdir()
    except OSError as error:
        raise _failed(path, error) from error
    new, old = own / NEW / path.name, own / OLD / path.name
    try:
        yield new
        if path.is_dir():  # which is not replaced in one step
            old.parent.mkdir()
            path.rename(old)
        try:
            new.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def is_under_way(name: str) -> bool:
    """Whether a name is that of what a process is writing, or has left when it was killed."""
    return name.startswith(PREFIX)


def _ours(path: Path) -> str:
    """Start of the names for what this machine writes to `path`; hashes are short enough beside any name."""
    return f"{PREFIX}{_hash(path.name)}-{_hash(socket.gethostname())}-"


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def _tidy_up(path: Path) -> None:
    """Put a folder back that a killed process had moved away, and remove what else it left."""
    import psutil

    for left in path.parent.glob(f"{_ours(path)}*"):
        process = left.name.removeprefix(_ours(path)).split("-")[0]
        if not process.isdecimal() or psutil.pid_exists(int(process)):
            continue
        if (old := left / OLD / path.name).exists() and not path.exists():
            with suppress(OSError):  # another process was first
                old.rename(path)
        shutil.rmtree(left, ignore_errors=True)


def _failed(path: Path, error: OSError) -> OSError:
    return OSError(f"{path} could not be written, and is as it was before: {error}")
