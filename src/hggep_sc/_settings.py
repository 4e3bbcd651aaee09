"""Defaults a user may change, in one object: `hggep_sc.settings`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _cache_dir() -> Path:
    import pooch

    return Path(pooch.os_cache("hggep_sc"))


def _dataset_dir() -> Path:
    return Path(os.environ.get("HGGEP_DATASETDIR") or _cache_dir())


@dataclass
class Settings:
    """What a call falls back on where its own argument is left out.

    Attributes
    ----------
    device
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
    progress
        Whether long calls show a progress bar.
    dataset_dir
        Where data sets and pretrained weights are looked for and downloaded to; the environment variable
        `HGGEP_DATASETDIR` sets it.
    cache_dir
        Where files that code can make again (the images of synthetic sections) are kept.
    patch_memory
        Bytes of training patches, or of features, held in memory; above it they go to a temporary file on disk.
    feature_memory
        Bytes of a frozen encoder's features that are kept for another use, such as the next method or seed of a
        cross-validation. Those of a section that takes more are not.
    tile_cache
        Bytes of decoded tiles that each open image keeps, so that overlapping patches decode a compressed tile once;
        512 MiB hold two rows of tiles of a slide 100,000 px wide. 0 keeps none.
    """

    device: str = "auto"
    progress: bool = True
    dataset_dir: Path = field(default_factory=_dataset_dir)
    cache_dir: Path = field(default_factory=_cache_dir)
    patch_memory: int = 4 * 2**30
    feature_memory: int = 2**30
    tile_cache: int = 2**29

    def take(self, values: Mapping[str, Any]) -> None:
        """Set what another process has set, as `dataclasses.asdict` gives it."""
        for name, value in values.items():
            setattr(self, name, value)


settings = Settings()
