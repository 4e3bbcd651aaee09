"""Checkpoints of a fit: whose they are, and where to go on from."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .._replace import replacing
from .._version import __version__
from ..checkpoint import OtherCheckpointError, Parts, open_checkpoints, remove_checkpoints
from ..config import Config
from ..fingerprint import sight_hash
from ..nn import Encoder, ShuffleNetEncoder
from ..section import Section
from .data import SectionData

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
FURTHER = "fit"  # start of the name of the folder of each further network: of an ensemble, or without some sections
IDENTITY = "fit.json"
FEATURES = "encoded"  # folder of what a frozen encoder made of the sections, until the fit has ended


def require_resume_is_meant(checkpoint_dir: Path | None, resume: bool) -> None:
    """Refuse what can be told before anything is read: a folder that is missing, or that holds a checkpoint already.

    Raises
    ------
    ValueError
        If `resume=True` has no folder, or a folder with a checkpoint no `resume=True`.
    """
    if checkpoint_dir is None:
        if resume:
            raise ValueError("resume=True needs checkpoint_dir=, the folder of the interrupted fit")
    elif (checkpoint_dir / CHECKPOINT).exists() and not resume:
        raise ValueError(
            f"checkpoint_dir={str(checkpoint_dir)!r} holds the checkpoint of an earlier fit: "
            "pass resume=True to continue it, or another folder"
        )


class WholeCheckpoints(TorchCheckpointIO):
    """Puts a checkpoint in the place of the last in one step.

    Lightning writes to the temporary folder and moves it; from another disk that is a copy, which a kill cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        torch.save(checkpoint, content)  # in memory first: to a full disk it raises no OSError
        with replacing(Path(path)) as part:
            part.write_bytes(content.getbuffer())


def last_checkpoint(checkpoint_dir: Path | None) -> Path | None:
    """Return the checkpoint in a folder; None where there is none yet."""
    return None if checkpoint_dir is None or not (file := checkpoint_dir / CHECKPOINT).exists() else file


def checkpoint_to_resume(checkpoint_dir: Path | None, resume: bool, identity: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, and mark the folder as this fit's own.

    Raises
    ------
    ValueError
        If the folder holds another fit's checkpoint.
    """
    if checkpoint_dir is None:
        return None
    mark = checkpoint_dir / IDENTITY
    if (checkpoint := last_checkpoint(checkpoint_dir)) is not None:
        earlier = json.loads(mark.read_text()) if mark.exists() else {}
        if changed := sorted(k for k in identity if earlier.get(k) != identity[k]):
            raise ValueError(
                f"checkpoint_dir={str(checkpoint_dir)!r} belongs to another fit (different {', '.join(changed)}): "
                "resume with the same data and settings, or choose another folder"
            )
        return checkpoint
    if resume:
        logger.warning("checkpoint_dir=%r holds no checkpoint yet: training starts from the beginning", checkpoint_dir)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    for stale in checkpoint_dir.glob(f"{FURTHER}_*/{CHECKPOINT}"):  # of a fit whose own checkpoint was removed
        stale.unlink(missing_ok=True)
    mark.write_text(json.dumps(identity, indent=1))
    return None


@contextmanager
def stores_of_features(
    checkpoint_dir: Path | None,
    resume: bool,
    sections: Sequence[Section],
    fields: Sequence[tuple[float, ...]],
    encoder: Encoder | str,
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
    if checkpoint_dir is None or not isinstance(encoder, ShuffleNetEncoder):
        yield [Parts(None) for _ in sections]
        return
    settings = ("patch_size", "flips", "chunk_spots", "linear", "cross_fit")
    identity = {
        "version of hggep_sc": __version__,
        "data": [sight_hash(section) for section in sections],
        "encoder": encoder.id,
        "fields of view": fields,
        "config": {name: getattr(config, name) for name in settings},
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
    config: Config,
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
        "sections": [d.name for d in data],
        "groups": groups if any(groups) else None,
        "data": digest.hexdigest(),
        "genes": list(genes),
        "config": settings,
        "validation": None if held_out is None else [int(mask.sum()) for mask in held_out],
        "seed": seed,
        "number of devices": n_devices,
    }
