"""Lightning inside a library: quiet, and leaving Ctrl-C to the caller."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Lightning's banners and advice; warnings of other origin pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [lightning_logger.level for lightning_logger in loggers]
    for lightning_logger in loggers:
        lightning_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for lightning_logger, level in zip(loggers, levels, strict=True):
            lightning_logger.setLevel(level)


@contextmanager
def interruptible(checkpoint_dir: Path | None) -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt that says how to go on from the last checkpoint in `checkpoint_dir`.

    Lightning answers it by ignoring the signal from then on and leaving Python.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as left:
        if isinstance(left, SystemExit):
            if not isinstance(left.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
        remedy = (
            "with checkpoint_dir= it could be resumed"
            if checkpoint_dir is None
            else f"the same call with checkpoint_dir={str(checkpoint_dir)!r}, resume=True goes on from the last "
            "checkpoint"
        )
        raise KeyboardInterrupt(f"training was interrupted: {remedy}") from None
