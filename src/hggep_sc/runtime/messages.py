"""Messages: names listed in them, warnings at the line of the caller, and a last resort for what is logged."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..errors import HggepWarning

PACKAGE = "hggep_sc"
WARNED = "_hggep_sc_warned"  # attribute of an error: what its task had warned of

Task = TypeVar("Task")
Result = TypeVar("Result")
Warned: TypeAlias = Sequence[tuple[str, type[HggepWarning]]]
Taker: TypeAlias = Callable[[str, type[HggepWarning]], object]

# what takes the warnings of work that is done for another thread or process
_taker: ContextVar[Taker | None] = ContextVar("_taker", default=None)


def listed(names: Any, most: int = 10) -> str:
    """Names for a message, the first few where they are many."""
    names = [repr(str(name)) for name in names]
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def warn(message: str, category: type[HggepWarning]) -> None:
    """Warn the user, at the line that called the package.

    Raises
    ------
    HggepWarning
        Where the user's filters make an error of it.
    """
    taker = _taker.get() or partial(_show, _calling())
    taker(message, category)


class _Line(NamedTuple):
    """A line of the user's, as `warnings` wants it."""

    filename: str
    number: int
    module: str
    registry: dict[Any, Any]


def _calling() -> _Line:
    """Find the line that called the package.

    That is outside of the outermost call: Lightning, torch and contextlib lie between frames of the package too.
    """
    frame = outermost = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
            outermost = frame
    caller = outermost.f_back or outermost
    names = caller.f_globals
    registry = names.setdefault("__warningregistry__", {})
    return _Line(caller.f_code.co_filename, caller.f_lineno, str(names.get("__name__")), registry)


def _show(line: _Line, message: str, category: type[HggepWarning]) -> None:
    with _between_bars():
        warnings.warn_explicit(message, category, *line)


def warning_here(work: Callable[[Task], Result]) -> Callable[[Task], Result]:
    """Return work for another thread that warns as if it were done in this one."""
    taker = _taker.get() or partial(_show, _calling())

    def there(task: Task) -> Result:
        before = _taker.set(taker)
        try:
            return work(task)
        finally:
            _taker.reset(before)

    return there


def run_silently(run: Callable[[Task], Result], task: Task) -> tuple[Result, Warned]:
    """Do a task, and return beside its result what it would have warned of; an error holds that as `WARNED`."""
    warned: list[tuple[str, type[HggepWarning]]] = []
    before = _taker.set(lambda message, category: warned.append((message, category)))
    try:
        return run(task), warned
    except Exception as error:
        setattr(error, WARNED, warned)
        raise
    finally:
        _taker.reset(before)


def _between_bars() -> AbstractContextManager[object]:
    """Clear progress bars from standard error while something else is written to it."""
    if "tqdm" not in sys.modules:
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


class LastResort(logging.Handler):
    """Writes logged warnings that no other handler takes, as `logging.lastResort` does, but between progress bars.

    As soon as a handler is set up for the package, for one of its modules or for all of Python, it is silent.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(f"{PACKAGE}: %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_taken(record.name):
            return
        try:
            with _between_bars():
                sys.stderr.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - a message that cannot be written must not end the work, as in logging
            self.handleError(record)

    def _is_taken(self, name: str) -> bool:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self and not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def set_up() -> None:
    """Add the handler to the package's logger, once."""
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort())
