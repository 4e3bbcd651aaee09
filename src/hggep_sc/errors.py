"""What the package raises and warns of, so that a caller can tell one trouble from another.

Each error is also the builtin that its kind of trouble usually is. What is wrong with an argument alone, such as an
option that there is none of, stays a plain TypeError, ValueError or KeyError; a file that is not there is a
FileNotFoundError, a full disk an OSError.
"""


class HggepError(Exception):
    """Any error of this family; the message names the slot, file or section, and the remedy."""


class InputError(HggepError, ValueError):
    """Data contradict themselves, or cannot serve: coordinates, counts, gene names, scales, images that do not fit."""


class ImageError(InputError):
    """An image cannot be read: its file is damaged or of an unknown kind, or its pixels are no picture in colours."""


class MissingSlotError(HggepError, KeyError):
    """The object has no such slot: a layer, column, library, image, table, gene, or prediction."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class ModelError(HggepError, ValueError):
    """A model or a file of weights cannot be used: damaged, changed, of another kind or version, or NaN inside."""


class CheckpointError(HggepError, ValueError):
    """A folder of checkpoints cannot be gone on from: it is damaged, holds something else, or is in use."""


class OtherCheckpointError(CheckpointError):
    """A folder of checkpoints belongs to another run: of other data, settings or another model."""


class DivergedError(HggepError, RuntimeError):
    """Training came to NaN or infinity, and there is no model."""


class WrongFileError(HggepError, ValueError):
    """A file of a data set or of weights, there or downloaded, is not the expected one: its SHA-256 differs."""


class DownloadError(HggepError, OSError):
    """A file is not there, and its download failed."""


class UnreachableError(DownloadError, ConnectionError):
    """A file is not there, and its server cannot be reached: trying again may help."""


class WeightsError(DownloadError, RuntimeError):
    """Pretrained weights are not there and cannot be had: `weights=` takes a file, or None."""


class MissingPackageError(HggepError, ImportError):
    """A package is needed that the installation does not bring: the message names the command that installs it."""


class HggepWarning(UserWarning):
    """Any warning of this family; it points at the line that called the package."""


class InputWarning(HggepWarning):
    """Data are unlikely to be right, or serve in part: spots outside the image or on glass, few spots."""


class ImageWarning(InputWarning):
    """An image shows less than it could, or not what is expected: coarse, dark, of odd channels, without tissue."""


class ScaleWarning(InputWarning):
    """Um per px are unknown, and taken for those of others, or several sources of them disagree."""


class UnlikeTrainingWarning(HggepWarning):
    """A section is unlike those that were trained on, or these are unlike each other: look, stain, scale, spacing."""


class LeakageWarning(HggepWarning):
    """Figures are higher than for a new section or patient: what is scored was known, in part, when it was learnt."""


class TrainingWarning(HggepWarning):
    """A fit is not what was asked for: settings are not used, genes say little, or nothing was learnt that holds."""


class ResultWarning(HggepWarning):
    """A result is not all that was asked for, or cannot be compared: genes left out, other totals, few colours."""


class FailedWarning(ResultWarning):
    """A part failed, and the others went on: a fold, a slide, a layer to be written, a file to be stored."""


class MemoryWarning(ResultWarning):
    """A section is predicted in smaller chunks than the model would, for want of memory."""


class OverwriteWarning(HggepWarning):
    """Something that was no earlier result is replaced, as `overwrite=True` says."""
