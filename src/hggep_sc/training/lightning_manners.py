"""Lightning inside a library: quiet, and leaving Ctrl-C to the caller."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C back into KeyboardInterrupt: Lightning answers it by ignoring the signal and leaving Python."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt("training was interrupted; with checkpoint_dir= it can be resumed") from None
        raise
