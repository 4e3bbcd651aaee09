"""Paths that users give: a file that can be read, or one sentence on why not, before anything is opened."""

import os
import re
import stat
from pathlib import Path

# pathlib makes one slash of two; a single letter is a Windows drive
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,3}[^/]")
OTHERS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expanded(path: str | Path) -> str:
    """Return a path with the user's folder in place of "~"; that of a user who is not there stays."""
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises


def why_absent(path: str | Path) -> str | None:
    """Say why nothing is to be found at a path, and what to do; None where there is something."""
    path = os.fspath(path)
    try:
        os.stat(path)  # noqa: PTH116 - pathlib hides some of the reasons
    except FileNotFoundError:
        if ADDRESS.match(path):
            return "is an address, not a file on this machine: download it, and give the path of the copy"
        if os.path.islink(path):  # noqa: PTH114
            return f"is a link to {os.readlink(path)}, which does not exist: correct the link, or give the file itself"  # noqa: PTH115
        return "does not exist: correct the path, or put the file back where it was"
    except (OSError, ValueError) as error:  # no right to look, a loop of links, a name too long, a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot be reached ({reason}): correct the path, or the rights on its folder"
    return None


def require_file(path: str | Path, what: str, error: type[ValueError] = ValueError) -> None:
    """Refuse what is no regular file, cannot be read or is empty; a pipe would be waited for without end.

    Parameters
    ----------
    path
        What is to be opened.
    what
        What messages call it, such as "image file".
    error
        Raised of what is no file, and of one that must not be read.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        The `error`, if it is something else, or must not be read.
    """
    require_there(path, what)
    found = os.stat(path)  # noqa: PTH116
    if stat.S_ISDIR(found.st_mode):
        raise error(f"{what} {path} is a folder: give a file in it")
    if not stat.S_ISREG(found.st_mode):
        kind = OTHERS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise error(f"{what} {path} is {kind}, not a file: save what it gives to a file, and give that")
    if not os.access(path, os.R_OK):
        raise error(f"{what} {path} must not be read by this user: change the rights on it (`chmod u+r`)")
    if not found.st_size:
        raise error(f"{what} {path} is empty: copy or download it again")


def require_there(path: str | Path, what: str) -> None:
    """Refuse a path at which there is nothing, file or folder.

    Raises
    ------
    FileNotFoundError
        With the reason.
    """
    if (reason := why_absent(path)) is not None:
        raise FileNotFoundError(f"{what} {path} {reason}")
