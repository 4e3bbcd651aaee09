"""Imports that a package which this one does not need can break."""

import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from threading import Lock

TORCH = r"torch(?![\w.-])\s*\(?([^;)]*)"  # a requirement of torch itself, and its versions
# through which a broken package is come upon, or in which its fault shows
PASSED = {"hggep_sc", "lightning", "lightning_utilities", "torchmetrics", "torch", *sys.stdlib_module_names}
_squidpy = Lock()  # where numba has no other layer of threads, two of them in it end the process


@contextmanager
def within_squidpy() -> Iterator[None]:
    """Let one thread at a time into squidpy, without its warnings of its own docstrings and of constant genes."""
    with _squidpy, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def naming_what_is_broken(wanted: str) -> Iterator[None]:
    """Turn the error of an import into one that names the package at fault, what it was built for and what to do.

    Parameters
    ----------
    wanted
        The package that is imported.

    Raises
    ------
    ImportError
        If another package is at fault; without the traceback through all of them.
    """
    try:
        yield
    except Exception as error:
        _, _, *frames = traceback.walk_tb(error.__traceback__)  # the first are this one and the caller's
        packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
        if not (others := [package for package in packages if package and package not in PASSED]):
            raise
        raise ImportError(_told(wanted, others[-1], error)) from None


def _told(wanted: str, broken: str, error: Exception) -> str:
    try:
        found = f"{broken} {version(broken)}"
        needs = [match[1].strip() for need in requires(broken) or [] if (match := re.match(TORCH, need))]
    except PackageNotFoundError:
        found, needs = broken, []
    built = f", built for torch {needs[0]}, while torch {version('torch')} is installed" if any(needs) else ""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return (
        f"{wanted} cannot be imported: it imports {found}{built}, which fails: {type(error).__name__}: {first}. "
        f"hggep_sc does not need {broken}: remove it (`pip uninstall {broken}`), or install the one that belongs to "
        f"the other packages here (`pip install --upgrade {broken}`)"
    )
