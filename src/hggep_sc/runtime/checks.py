"""Checks of the input that a user may switch off by name: `settings.skip_checks`."""

import logging

from .._settings import CHECKS, settings

logger = logging.getLogger(__name__)


def is_on(check: str) -> bool:
    """Whether a check is to be made; asked before work that only the check needs."""
    if check not in CHECKS:
        raise KeyError(f"there is no check {check!r}")
    return check not in settings.skip_checks


def refuse(check: str, message: str) -> None:
    """Refuse input that contradicts itself, unless the check is switched off.

    Raises
    ------
    ValueError
        With the message, and how to go on where the input is right all the same.
    """
    if is_on(check):
        raise ValueError(f"{message}. {_way_out(check)}")


def warn(check: str, message: str) -> None:
    """Warn of input that is unlikely to be right, unless the check is switched off."""
    if is_on(check):
        logger.warning("%s. %s", message, _way_out(check))


def _way_out(check: str) -> str:
    return f"If all is right: hggep_sc.settings.skip_checks = {{{check!r}}}"
