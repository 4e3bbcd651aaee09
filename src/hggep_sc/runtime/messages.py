"""Messages: names listed in them, and warnings where nobody has set up logging."""

import logging
import sys
from typing import Any

PACKAGE = "hggep_sc"


def listed(names: Any, most: int = 10) -> str:
    """Names for a message, the first few where they are many."""
    names = [repr(str(name)) for name in names]
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class LastResort(logging.Handler):
    """Writes warnings that no other handler takes, as `logging.lastResort` does, but between progress bars.

    As soon as a handler is set up for the package, for one of its modules or for all of Python, it is silent.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter(f"{PACKAGE}: %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_taken(record.name):
            return
        try:
            message = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(message, file=sys.stderr)
            else:
                sys.stderr.write(message + "\n")
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
