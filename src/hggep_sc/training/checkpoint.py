"""Checkpoints of a fit: whose they are, and where to go on from."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from .data import SectionData

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
IDENTITY = "fit.json"


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


def checkpoint_to_resume(checkpoint_dir: Path | None, resume: bool, identity: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, and mark the folder as this fit's own.

    Raises
    ------
    ValueError
        If the folder holds another fit's checkpoint.
    """
    if checkpoint_dir is None:
        return None
    checkpoint, mark = checkpoint_dir / CHECKPOINT, checkpoint_dir / IDENTITY
    if checkpoint.exists():
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
    mark.write_text(json.dumps(identity, indent=1))
    return None


def identity_of(
    data: list[SectionData], genes: Sequence[str], config: Config, held_out: Sequence[np.ndarray] | None, seed: int
) -> dict[str, Any]:
    """Return what has to agree for a fit to be continued."""
    digest = hashlib.sha256()
    for d in data:
        for array in (d.xy, d.expression, d.counts, d.seen[:8]):
            digest.update(np.ascontiguousarray(array).tobytes())
    settings = json.loads(json.dumps(config.to_dict()))
    return {
        "sections": [d.name for d in data],
        "data": digest.hexdigest(),
        "genes": list(genes),
        "config": settings,
        "validation": None if held_out is None else [int(mask.sum()) for mask in held_out],
        "seed": seed,
    }
