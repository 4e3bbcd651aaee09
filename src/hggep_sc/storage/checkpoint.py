"""What is known of sections so far, in a folder, from which a prediction or a fit goes on after a kill."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, OtherCheckpointError
from .files import read_regular
from .lock import alone_in
from .replace import is_under_way, replacing
from .sealed import sealed, unsealed

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"
LOCK = "lock"
CHUNKS = "chunks_of_"  # start of the name of a section's folder
SUFFIX = ".safetensors"
SPOTS = "indices"  # of the part, in its file


class Parts:
    """Tensors by sets of spots that have none in common, each a file that is there whole or not at all.

    Parameters
    ----------
    folder
        Where the files are. None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def keeps(self) -> bool:
        """Whether there is a folder for them."""
        return self._folder is not None

    def _file(self, spots: np.ndarray) -> Path | None:
        return None if self._folder is None else self._folder / f"{spots[0]}{SUFFIX}"

    def __contains__(self, spots: np.ndarray) -> bool:
        return (file := self._file(spots)) is not None and file.exists()

    def read(self, spots: np.ndarray) -> dict[str, Tensor]:
        """Return the tensors of a part that is there."""
        file = self._file(spots)
        assert file is not None  # nothing is there
        tensors = _read(file)
        if not np.array_equal(tensors.pop(SPOTS).numpy(), spots):
            raise CheckpointError(f"{file} is of other spots: remove it, and what it held is computed anew")
        return tensors

    def write(self, spots: np.ndarray, **tensors: Tensor) -> None:
        """Put away the tensors of a part.

        Raises
        ------
        OSError
            If there is no room for them on disk, for instance.
        """
        if (file := self._file(spots)) is None:
            return
        content = sealed({SPOTS: torch.from_numpy(spots), **tensors})
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_bytes(content)


class Checkpoint:
    """What is known of a section under prediction.

    Parameters
    ----------
    folder
        Where it is kept. None: it is not.

    Attributes
    ----------
    features
        Features of spots.
    predicted
        Predictions of spots.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.features, self.predicted = (Parts(folder and folder / name) for name in ("features", "predicted"))

    def in_chunks(self, spots_of_a_chunk: Callable[[], int]) -> tuple["Checkpoint", int]:
        """Return what is known of the section in chunks, and of how many spots they are.

        These are as many as when the prediction began, whatever memory is free now; else what the function says.
        """
        begun = [] if self._folder is None else list(self._folder.glob(f"{CHUNKS}*"))
        max_spots = int(begun[0].name.removeprefix(CHUNKS)) if begun else spots_of_a_chunk()
        return Checkpoint(self._folder and self._folder / f"{CHUNKS}{max_spots}"), max_spots


@contextmanager
def open_checkpoints(
    folder: Path, identity: Mapping[str, Any], n_sections: int, of: str = "prediction"
) -> Iterator[list[Checkpoint]]:
    """Give a checkpoint for each section; the folder is marked as this prediction's own, and this process's meanwhile.

    Parameters
    ----------
    folder
        Of all sections; made if it does not exist.
    identity
        What has to agree for it to go on, by what a user would call it.
    n_sections
        How many sections it has.
    of
        What it is, for messages.

    Raises
    ------
    OtherCheckpointError
        If the folder holds another prediction.
    CheckpointError
        If it holds something else, is damaged, or another process is at work on it.
    """
    given, mark = f"checkpoint_dir={str(folder)!r}", folder / IDENTITY
    strange = folder.exists() and (not folder.is_dir() or not all(_is_mark(file.name) for file in folder.iterdir()))
    if strange and not mark.exists():
        raise CheckpointError(f"{given} is there, and not of a {of}: choose another folder")
    with alone_in(folder, LOCK, given):
        wanted = json.loads(json.dumps(identity, default=float))  # as it is read
        if mark.exists():
            _require_same(mark, wanted, given, of)
        else:
            with replacing(mark) as part:
                part.write_text(json.dumps(wanted, indent=1))
        yield [Checkpoint(folder / f"section_{number}") for number in range(n_sections)]


def remove_checkpoints(folder: Path) -> None:
    """Remove what `open_checkpoints` keeps in a folder, unless a process is at work on it; where it fails, warn.

    Files that are of something else stay, and the folder with them.
    """
    from filelock import FileLock, Timeout

    if not (folder / IDENTITY).exists():
        return
    try:
        with FileLock(folder / LOCK, timeout=0):
            inside = sorted(folder.rglob("*"), reverse=True)  # what is in a folder before the folder
            # the mark last: without it the rest is not known for ours
            for entry in sorted(inside, key=lambda entry: entry.parent == folder and not entry.is_dir()):
                with suppress(OSError):
                    if entry.is_dir():
                        entry.rmdir()
                    elif _is_mark(entry.name) or re.fullmatch(rf"\d+{re.escape(SUFFIX)}", entry.name):
                        entry.unlink()
            folder.rmdir()
    except Timeout:
        return
    except OSError:  # such as that the folder is not empty
        pass
    if folder.exists():
        logger.warning("%s could not be removed, and is no longer needed", folder)


def _is_mark(name: str) -> bool:
    """Whether a file is what marks a folder, or on its way to be."""
    return name in (IDENTITY, LOCK) or is_under_way(name)


def _require_same(mark: Path, wanted: Mapping[str, Any], given: str, of: str) -> None:
    try:
        earlier = json.loads(mark.read_bytes()) if mark.is_file() else None
        if not isinstance(earlier, dict):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise CheckpointError(f"{mark} is damaged ({error}): remove {mark.parent}, and begin anew") from error
    if changed := sorted(name for name in wanted if earlier.get(name) != wanted[name]):
        raise OtherCheckpointError(
            f"{given} belongs to another {of} (different {', '.join(changed)}): go on with the same model, data and "
            "settings, or choose another folder"
        )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors, _ = unsealed(read_regular(file))
        tensors[SPOTS]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): remove it, and what it held is computed anew") from error
    return tensors
