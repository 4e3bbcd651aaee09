"""Checkpoints of a fit: whose they are, and where to go on from."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from .._settings import settings
from .._version import __version__
from ..config import BaseConfig, Config
from ..errors import CheckpointError, OtherCheckpointError, TrainingWarning
from ..features.encoders import Eye, ObsmEncoder
from ..nn import ModuleEncoder
from ..runtime.messages import warn
from ..section import Section
from ..section.fingerprint import sight_hash
from ..storage.checkpoint import Parts, open_checkpoints, remove_checkpoints
from ..storage.lock import alone_in
from ..storage.replace import replacing
from ..storage.sealed import sealed, unsealed
from .data import SectionData

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
FURTHER = "fit"  # start of the name of the folder of each further network: of an ensemble, or without some sections
IDENTITY = "fit.json"
LOCK = "fit.lock"
ENTRIES = {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"}  # of a checkpoint
FEATURES = "encoded"  # folder of what a frozen encoder made of the sections, until the fit has ended


@contextmanager
def folder_of_fit(checkpoint_dir: Path | None, resume: bool, *, writes: bool) -> Iterator[None]:
    """Hold the folder of a fit against other fits until it has ended, and refuse one that cannot be gone on from.

    Parameters
    ----------
    checkpoint_dir
        The folder; None: there is none.
    resume
        Whether an earlier call is to be continued.
    writes
        Whether this is the process of the fit that writes; the others hold nothing.

    Raises
    ------
    ValueError
        If `resume=True` has no folder.
    CheckpointError
        If a folder with a checkpoint has no `resume=True`; if another fit is at work on the folder, or what it holds is
        damaged or not of a fit.
    OSError
        If it cannot be written to.
    """
    if checkpoint_dir is None:
        if resume:
            raise ValueError("resume=True needs checkpoint_dir=, the folder of the interrupted fit")
        yield
        return
    if checkpoint_dir.exists() and not checkpoint_dir.is_dir():
        raise ValueError(f"{_given(checkpoint_dir)} is a file: give a folder")
    with alone_in(checkpoint_dir, LOCK, _given(checkpoint_dir)) if writes else nullcontext():
        _require_to_go_on(checkpoint_dir, resume)
        yield


def _given(checkpoint_dir: Path) -> str:
    return f"checkpoint_dir={str(checkpoint_dir)!r}"


def _require_to_go_on(checkpoint_dir: Path, resume: bool) -> None:
    """Refuse what can be told before anything is read."""
    mark, checkpoint = checkpoint_dir / IDENTITY, checkpoint_dir / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise CheckpointError(
            f"{_given(checkpoint_dir)} holds the checkpoint of an earlier fit: pass resume=True to continue it, or "
            "another folder"
        )
    if mark.exists():
        _read_mark(mark)
    else:
        there = [checkpoint, *checkpoint_dir.glob(f"{FURTHER}_*/{CHECKPOINT}")]
        if strange := [str(file.relative_to(checkpoint_dir)) for file in there if file.exists()]:
            raise CheckpointError(
                f"{_given(checkpoint_dir)} holds {', '.join(strange)}, but no {IDENTITY}, which tells what fit it is "
                "of: choose another folder"
            )
    if checkpoint.exists():
        read_checkpoint(checkpoint)


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        found = json.loads(mark.read_bytes()) if mark.is_file() else None
        if not isinstance(found, dict) or not {"data", "genes", "config", "seed"} <= set(found):
            raise ValueError("it holds no settings of a fit")
    except ValueError as error:
        raise CheckpointError(
            f"{mark} is damaged, or not of a fit ({error}): remove {mark.parent} and begin anew, or choose another "
            "folder"
        ) from error
    return found


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what `WholeCheckpoints` wrote; nothing of it is run.

    Raises
    ------
    CheckpointError
        If it is anything else, or has changed.
    """
    try:
        if not file.is_file():
            raise ValueError("it is no file")
        content = file.read_bytes()
        if content[:4] == b"PK\x03\x04":
            raise ValueError("it is a pickle, as an earlier version or another tool writes it, which is not opened")
        tensors, note = unsealed(content)
        found = _restored(note, tensors)
        if missing := sorted(ENTRIES - set(found)):
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged, or no checkpoint of a fit ({error}): remove it, and what was trained is trained anew"
        ) from error
    return found


class WholeCheckpoints(CheckpointIO):
    """Lightning's checkpoints as safetensors and JSON, each put in the place of the last in one step.

    Lightning's own way is a pickle, which runs what is in it, and a move from a temporary folder, which to another disk
    is a copy that a kill cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write what Lightning has gathered."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        note = _flattened(checkpoint, tensors, "")
        content = sealed(tensors, note)
        with replacing(Path(path)) as part:
            part.write_bytes(content)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return it, on the CPU; from there Lightning moves it."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _flattened(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Return a value as JSON has it; its tensors go into `tensors`, by their path in it."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):  # of which a name may be a number
        return {"dict": [[name, _flattened(entry, tensors, f"{path}/{name}")] for name, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_flattened(entry, tensors, f"{path}/{i}") for i, entry in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {path}, a {type(value).__name__}")


def _restored(note: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `_flattened` was given; a tuple as a list."""
    if isinstance(note, list):
        return [_restored(entry, tensors) for entry in note]
    if not isinstance(note, dict):
        return note
    if "tensor" in note:
        return tensors[note["tensor"]]
    return {name: _restored(entry, tensors) for name, entry in note["dict"]}


def last_checkpoint(checkpoint_dir: Path | None) -> Path | None:
    """Return the checkpoint in a folder; None where there is none yet."""
    return None if checkpoint_dir is None or not (file := checkpoint_dir / CHECKPOINT).exists() else file


def checkpoint_to_resume(
    checkpoint_dir: Path | None, resume: bool, identity: dict[str, Any], *, writes: bool
) -> Path | None:
    """Return the checkpoint to go on from, and mark the folder, which `folder_of_fit` holds, as this fit's own.

    Raises
    ------
    OtherCheckpointError
        If the folder holds another fit's checkpoint.
    """
    if checkpoint_dir is None:
        return None
    mark = checkpoint_dir / IDENTITY
    if (checkpoint := last_checkpoint(checkpoint_dir)) is not None:
        earlier = _read_mark(mark)
        if changed := sorted(k for k in identity if earlier.get(k) != identity[k]):
            raise OtherCheckpointError(
                f"{_given(checkpoint_dir)} belongs to another fit (different {', '.join(changed)}): resume with the "
                "same data and settings, or choose another folder"
            )
        return checkpoint
    if resume:
        warn(f"{_given(checkpoint_dir)} holds no checkpoint yet: training starts from the beginning", TrainingWarning)
    if writes:
        for stale in checkpoint_dir.glob(f"{FURTHER}_*/{CHECKPOINT}"):  # of a fit whose own checkpoint was removed
            stale.unlink(missing_ok=True)
        with replacing(mark) as part:
            part.write_text(json.dumps(identity, indent=1))
    return None


@contextmanager
def stores_of_features(
    checkpoint_dir: Path | None,
    resume: bool,
    sections: Sequence[Section],
    fields: Sequence[tuple[float, ...]],
    encoder: Eye,
    config: Config,
) -> Iterator[list[Parts]]:
    """Give where the features of each section are kept, from which an interrupted fit goes on.

    Parameters
    ----------
    checkpoint_dir
        Of the fit; None: they are not kept.
    resume
        Whether those of an earlier call are used, if they are of the same sections and by the same encoder; else they
        are removed.
    sections, fields, encoder, config
        As in `read_sections`. Of a user's module more than its hash may change: its features are not kept.
    """
    if checkpoint_dir is None or isinstance(encoder, ObsmEncoder | ModuleEncoder):
        yield [Parts(None) for _ in sections]
        return
    names = ("patch_size", "stain", "linear", "cross_fit")
    identity = {
        "version of hggep_sc": __version__,
        "data": [sight_hash(section) for section in sections],
        "encoder": encoder.id,
        "fields of view": fields,
        "config": {name: getattr(config, name) for name in names} | settings.of_features(),
    }
    folder = checkpoint_dir / FEATURES
    if not resume:
        remove_checkpoints(folder)
    with ExitStack() as stack:
        try:
            kept = stack.enter_context(open_checkpoints(folder, identity, len(sections), of="fit"))
        except OtherCheckpointError as error:
            logger.warning("features are computed anew: %s", error)
            remove_checkpoints(folder)
            kept = stack.enter_context(open_checkpoints(folder, identity, len(sections), of="fit"))
        yield [checkpoint.features for checkpoint in kept]


def identity_of(
    data: list[SectionData],
    genes: Sequence[str],
    config: BaseConfig,
    held_out: Sequence[np.ndarray] | None,
    seed: int,
    n_devices: int,
) -> dict[str, Any]:
    """Return what has to agree for a fit to be continued."""
    digest = hashlib.sha256()
    for d in data:
        for array in (d.xy, d.expression, d.counts, d.seen[:8]):
            digest.update(np.ascontiguousarray(array).tobytes())
    settings = json.loads(json.dumps(config.to_dict()))
    groups = [d.group for d in data]
    return {
        "version of hggep_sc": __version__,
        "sections": [d.name for d in data],
        "groups": groups if any(groups) else None,
        "data": digest.hexdigest(),
        "genes": list(genes),
        "config": settings,
        "validation": None if held_out is None else [int(mask.sum()) for mask in held_out],
        "seed": seed,
        "number of devices": n_devices,
    }
