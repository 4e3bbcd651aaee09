"""Checks of the input that a user may switch off by name: `settings.skip_checks`."""

from .._settings import CHECKS, settings
from ..errors import (
    HggepWarning,
    ImageError,
    ImageWarning,
    InputError,
    InputWarning,
    LeakageWarning,
    ScaleWarning,
    UnlikeTrainingWarning,
)
from . import messages

# of those whose trouble has a class of its own
ERRORS: dict[str, type[InputError]] = {"pixel_range": ImageError, "channels": ImageError}
WARNINGS: dict[str, type[HggepWarning]] = {
    "pixel_range": ImageWarning,
    "channels": ImageWarning,
    "orientation": ImageWarning,
    "scales_agree": ScaleWarning,
    "spot_pitch": UnlikeTrainingWarning,
    "training_neighbours": LeakageWarning,
}


def is_on(check: str) -> bool:
    """Whether a check is to be made; asked before work that only the check needs."""
    if check not in CHECKS:
        raise KeyError(f"there is no check {check!r}")
    return check not in settings.skip_checks


def refuse(check: str, message: str) -> None:
    """Refuse input that contradicts itself, unless the check is switched off.

    Raises
    ------
    InputError
        With the message, and how to go on where the input is right all the same; of pixels an ImageError.
    """
    if is_on(check):
        raise ERRORS.get(check, InputError)(f"{message}. {_way_out(check)}")


def warn(check: str, message: str) -> None:
    """Warn of input that is unlikely to be right, unless the check is switched off.

    Raises
    ------
    HggepWarning
        Where the user's filters make an error of it.
    """
    if is_on(check):
        messages.warn(f"{message}. {_way_out(check)}", WARNINGS.get(check, InputWarning))


def _way_out(check: str) -> str:
    return f"If all is right: hggep_sc.settings.skip_checks = {{{check!r}}}"
