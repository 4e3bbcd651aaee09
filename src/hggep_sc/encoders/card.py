"""What is known of an encoder by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class EncoderInfo:
    """An encoder that `hggep_sc.tl.fit(encoder=name)` knows by its name.

    Attributes
    ----------
    name
        By which it is asked for.
    build
        Takes the file or folder of its weights, or None for random ones, and returns the network: a module that takes
        normalised pixels (N, 3, px, px) and gives (N, D) features. One with `maps` and `sight`, as
        `hggep_sc.encoders.TokenMaps` has them, sees the slide in tiles where that costs less.
    title
        What its authors call it.
    px
        Side of the patches that it is given.
    mpp
        Um per px that it was pretrained at; None for one of photographs.
    mean, std
        Of red, green and blue in 0..1, by which pixels are centred and scaled.
    pooled
        Which of its outputs are the features.
    dimension
        Number of features of a patch; None for whatever it gives.
    parameters
        Millions of its parameters.
    hub
        Its repository on the Hugging Face hub; None where its weights come from elsewhere.
    extra
        What `pip install "hggep-sc[extra]"` brings it; None where nothing is missing.
    licence, commercial, gated
        Licence of the weights; whether commercial use is allowed; whether the hub asks for consent before a download.
    reference
        Where it is described.
    fields
        Fields of view that spots are given, in patches at its own scale.
    """

    name: str
    build: Callable[[Path | None], nn.Module]
    title: str = ""
    px: int = 224
    mpp: float | None = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooled: str = "as the module gives them"
    dimension: int | None = None
    parameters: float | None = None
    hub: str | None = None
    extra: str | None = None
    licence: str = "not stated"
    commercial: bool = False
    gated: bool = False
    reference: str = ""
    fields: Sequence[float] = (1.0, 2.0, 4.0)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that follow from it, where the user gives none: its patches, at its own scale and coarser ones."""
        if self.mpp is None:
            return {"patch_size": self.px}
        fields_px = tuple(self.px * times for times in self.fields)
        return {
            "patch_size": self.px,
            "fields_px": fields_px,
            "fields_um": tuple(px * self.mpp for px in fields_px),
        }
