"""Defaults a user may change, in one object: `hggep_sc.settings`."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal

# what is looked for in input, by the name that `settings.skip_checks` switches it off by
CHECKS = {
    "images_agree": "all images of a section show the same tissue, at the sizes that their scale factors say",
    "spots_on_tissue": "spots that were counted under tissue lie on tissue in the image",
    "one_section": "no array position and no barcode occurs twice within a section",
    "scale_plausible": "um per px lie between 0.05 and 20",
    "scales_agree": "um per px agree where several sources tell them: the call, the object, the file, the spots",
    "pixel_range": "pixels fill the range of their data type",
    "channels": "the image's channels are red, green, blue and, if any, transparency",
    "orientation": "the image file asks for no turn or mirroring",
    "spot_pitch": "spots are as far apart as those that the model was trained on",
    "few_spots": "a section has spots enough to compare them with one another",
    "training_neighbours": "predicted spots do not lie beside training spots of the same image",
}

CHOICES = {"feature_route": ("auto", "maps", "crops"), "encoder_precision": ("auto", "float32", "bfloat16")}


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
        Where data sets are looked for and downloaded to, and pretrained weights are looked for; the environment
        variable `HGGEP_DATASETDIR` sets it.
    cache_dir
        Where files that can be had again are kept: images of synthetic sections, and weights that are downloaded.
    patch_memory
        Bytes of training patches and of features held in memory; above it they go to temporary files on disk.
    feature_memory
        Bytes of a frozen encoder's features that are kept for another use, such as the next method or seed of a
        cross-validation. Those of a section that takes more are not.
    feature_route
        How HGGEP's own encoder sees the slide around spots: "maps" of all tissue, "crops" around each spot, or "auto",
        whichever is less to encode. All give the same features, but for what lies far outside of a window.
    encoder_precision
        What encoders compute in: "bfloat16" is faster, and rounds features more coarsely than "float32"; "auto" is
        bfloat16 on a GPU that has it, and float32 elsewhere. On a CPU bfloat16 pays where the processor has it
        (AVX512-BF16 or AMX). The networks that look at the features are not concerned.
    tile_cache
        Bytes of decoded tiles that each open image keeps, so that overlapping patches decode a compressed tile once;
        512 MiB hold two rows of tiles of a slide 100,000 px wide. 0 keeps none.
    skip_checks
        Names of checks of the input that are left out, for data that are right although they look wrong. Every message
        of a check ends with its name.
    """

    device: str = "auto"
    progress: bool = True
    dataset_dir: Path = field(default_factory=_dataset_dir)
    cache_dir: Path = field(default_factory=_cache_dir)
    patch_memory: int = 4 * 2**30
    feature_memory: int = 2**30
    feature_route: Literal["auto", "maps", "crops"] = "auto"
    encoder_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tile_cache: int = 2**29
    skip_checks: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _checked(name, value))

    def of_features(self) -> dict[str, str]:
        """Return those that features depend on: what was computed with others does not belong to a call."""
        return {"feature_route": self.feature_route, "encoder_precision": self.encoder_precision}

    def take(self, values: Mapping[str, Any]) -> None:
        """Set what another process has set, as `dataclasses.asdict` gives it."""
        for name, value in values.items():
            setattr(self, name, value)


def _checked(name: str, value: Any) -> Any:
    """Return a setting's value as its own type, refusing what is none."""
    here = f"hggep_sc.settings.{name}={value!r}"
    if name in ("dataset_dir", "cache_dir"):
        if not isinstance(value, str | Path):
            raise TypeError(f"{here} must be the path of a folder")
        if not str(value):
            raise ValueError(f"{here} must be the path of a folder, and is empty")
        return Path(value).expanduser()
    if name in ("patch_memory", "feature_memory", "tile_cache"):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
            raise ValueError(f"{here} must be a number of bytes, 0 or more")
        return int(float(value))
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{here} must be one of {', '.join(map(repr, CHOICES[name]))}")
    if name == "progress" and not isinstance(value, bool):
        raise TypeError(f"{here} must be True or False")
    if name == "device" and not isinstance(value, str):
        raise TypeError(f"{here} must be the name of a device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
    if name == "skip_checks":
        if isinstance(value, str) or not isinstance(value, Collection):
            raise TypeError(f"{here} must be a set of names, such as {{'images_agree'}}")
        if unknown := sorted(str(check) for check in value if not isinstance(check, str) or check not in CHECKS):
            raise ValueError(f"{here}: there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
        return frozenset(value)
    if name not in Settings.__dataclass_fields__:
        raise AttributeError(f"hggep_sc.settings has no {name!r}; it has {', '.join(Settings.__dataclass_fields__)}")
    return value


settings = Settings()
