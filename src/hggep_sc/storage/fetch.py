"""Files from the network: downloaded once, checked by SHA-256, never half there."""

import gzip
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

from .._settings import settings
from ..errors import DownloadError, UnreachableError, WrongFileError

logger = logging.getLogger(__name__)

WHOLE = 64  # digits of a SHA-256


@cache
def registry() -> dict[str, str]:
    """Map paths below the data directory to SHA-256, where the content is known (mob counts: unpacked)."""
    text = (files(__package__) / "_registry.txt").read_text(encoding="utf-8")
    return dict(line.split() for line in text.splitlines() if line and not line.startswith("#"))


def fetch(url: str, *, sha256: str | None, path: Path) -> Path:
    """Return `path`, downloaded from `url` unless it is there.

    Parameters
    ----------
    url
        Where the file is downloaded from (http, https).
    sha256
        The expected SHA-256, or its first digits where no more is published; None where it is not known, which is
        noted in the log.
    path
        Where the file is kept. A file that is there is checked and left as it is; a new one appears
        whole or not at all.

    Raises
    ------
    WrongFileError
        The file, there or downloaded, is not the expected one.
    UnreachableError
        The file is not there and its server cannot be reached.
    DownloadError
        The file is not there, and the server refuses it, or the folder cannot be written.
    """
    path = Path(path)
    if path.is_file():
        check(path, sha256)
        return path

    import pooch
    import requests

    roots = (settings.dataset_dir, settings.cache_dir)
    place = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path.name)
    remedy = (
        f"Download {url} by other means and put it there as {path.name}, or set the environment variable "
        f"HGGEP_DATASETDIR (or hggep_sc.settings.dataset_dir) to a folder that holds {place}."
    )
    if not _is_writable(path.parent):
        raise DownloadError(
            f"{path.name} is not in {path.parent}, and nothing can be written to that folder to download it. {remedy}"
        )
    if sha256 is None:
        logger.info(
            "Downloading %s to %s: its SHA-256 is not known, so it is taken unchecked.",
            path.name,
            path.parent,
        )
    else:
        logger.info("Downloading %s to %s.", path.name, path.parent)
    try:
        with _quiet(pooch.get_logger()):
            # pooch writes to a temporary file in the same folder, checks it and moves it
            if sha256 is None or len(sha256) == WHOLE:
                pooch.retrieve(url, known_hash=sha256 and f"sha256:{sha256}", fname=path.name, path=path.parent)
            else:
                _retrieve(url, sha256, path)
    except (ValueError, WrongFileError):
        raise WrongFileError(
            f"What was downloaded as {path.name} is not the expected file: its SHA-256 is not {sha256}. "
            f"Nothing was kept in {path.parent}. A proxy may have answered instead, or the file has changed. "
            f"{remedy}"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise UnreachableError(
            f"{path.name} is not in {path.parent}, and its server cannot be reached to download it. {remedy}"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"{path.name} is not in {path.parent}, and downloading it there failed: {error}. {remedy}"
        ) from None
    return path


def _retrieve(url: str, start: str, path: Path) -> None:
    """Download a file of whose SHA-256 the first digits are known, which pooch does not check."""
    import pooch

    there = Path(pooch.retrieve(url, known_hash=None, fname=f"{path.name}.unchecked", path=path.parent))
    try:
        check(there, start)
        there.replace(path)
    finally:
        there.unlink(missing_ok=True)


def check(path: Path, sha256: str | None, *, unpacked: bool = False) -> None:
    """Raise WrongFileError where the file is not the expected one (`unpacked`: what the gzip file holds)."""
    if sha256 is None:
        return
    with gzip.open(path, "rb") if unpacked else path.open("rb") as stream:
        try:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, EOFError) as error:
            raise WrongFileError(f"{path} cannot be read: {error}. Delete it to have it downloaded again.") from None
    if not found.startswith(sha256):
        what = "the SHA-256 of its unpacked content" if unpacked else "its SHA-256"
        raise WrongFileError(
            f"{path} is not the expected file: {what} is {found}, expected {sha256}. It may be damaged: "
            "delete it to have it downloaded again."
        )


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be written to, or made; nothing is tried."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@contextmanager
def _quiet(other: logging.Logger) -> Iterator[None]:
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)
