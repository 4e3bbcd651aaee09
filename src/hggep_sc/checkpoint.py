"""What is known of sections so far, in a folder, from which a prediction or a fit goes on after a kill."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ._replace import replacing

IDENTITY = "identity.json"
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

    def _file(self, spots: np.ndarray) -> Path | None:
        return None if self._folder is None else self._folder / f"{spots[0]}{SUFFIX}"

    def __contains__(self, spots: np.ndarray) -> bool:
        return (file := self._file(spots)) is not None and file.exists()

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Yield the spots of each part, and their tensors."""
        for file in [] if self._folder is None else sorted(self._folder.glob(f"*{SUFFIX}")):
            tensors = _read(file)
            yield tensors.pop(SPOTS).numpy(), tensors

    def read(self, spots: np.ndarray) -> dict[str, Tensor]:
        """Return the tensors of a part that is there."""
        file = self._file(spots)
        assert file is not None  # nothing is there
        tensors = _read(file)
        del tensors[SPOTS]
        return tensors

    def write(self, spots: np.ndarray, **tensors: Tensor) -> None:
        """Put away the tensors of a part."""
        if (file := self._file(spots)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            named = {SPOTS: torch.from_numpy(spots), **tensors}
            content = save({name: tensor.cpu().contiguous() for name, tensor in named.items()})
            with replacing(file) as part:
                part.write_bytes(content)

    def remove(self, spots: np.ndarray) -> None:
        """Forget the tensors of a part."""
        if (file := self._file(spots)) is not None:
            file.unlink(missing_ok=True)


class Checkpoint:
    """What is known of a section under prediction.

    Parameters
    ----------
    folder
        Where it is kept. None: it is not.

    Attributes
    ----------
    features
        Features of spots that are still needed.
    described
        Of spots whose features have been computed, what is needed after all have been.
    predicted
        Predictions of the spots that have one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.features, self.described, self.predicted = (
            Parts(folder and folder / name) for name in ("features", "described", "predicted")
        )

    def of_chunks(self, max_spots: int) -> "Checkpoint":
        """Return what is known of the section, cut into chunks of so many spots."""
        return Checkpoint(self._folder and self._folder / f"chunks_of_{max_spots}")


def open_checkpoints(
    folder: Path, identity: Mapping[str, Any], n_sections: int, of: str = "prediction"
) -> list[Checkpoint]:
    """Return a checkpoint for each section, and mark the folder as this prediction's own.

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
    ValueError
        If the folder holds another prediction, or something else.
    """
    mark = folder / IDENTITY
    if mark.exists():
        earlier = json.loads(mark.read_text())
        if changed := sorted(name for name in identity if earlier.get(name) != identity[name]):
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} belongs to another {of} (different {', '.join(changed)}): go on "
                "with the same model, data and settings, or choose another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"checkpoint_dir={str(folder)!r} is there, and not of a {of}: choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(mark) as part:
            part.write_text(json.dumps(identity, indent=1, default=float))
    return [Checkpoint(folder / f"section_{number}") for number in range(n_sections)]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load(file.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and what it held is computed anew") from error
