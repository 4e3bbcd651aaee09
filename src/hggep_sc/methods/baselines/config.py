"""Settings of the baselines."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...config import MOST, BaseConfig, Config, Normalize, plain, positive_numbers
from ...training.ridge import ALPHAS, RANK

SHARED = ("patch_size", "fields_um", "fields_px", "stain", "normalize", "target_sum", "log_base")  # with the network's


@dataclass(frozen=True)
class BaselineConfig(BaseConfig):
    """Settings of a baseline; each method reads those that concern it.

    Parameters
    ----------
    normalize
        Total that counts are scaled by: the spot's full library, or its counts over the predicted genes (panel).
    target_sum
        Counts per spot after scaling.
    log_base
        Base of the logarithm: "e" or "10".
    patch_size
        Side of the square patches that features are computed from, px.
    fields_um
        Fields of view, um: one patch per spot and field. None: `fields_px` at the training sections' scale.
    fields_px
        Fields of view in image px, where the physical scale of the training sections is not known.
    stain
        Normalisation of the stain, fitted to each section's pixels: "macenko" or "reinhard"; None: colours as they are.
    alphas
        Penalties that a ridge chooses from, inside the training sections; one is taken as it is.
    rank
        Principal components of the targets that the low-rank ridge predicts.
    n_neighbors
        Training patches that the nearest patches average over. None: chosen inside the training sections.
    """

    called: ClassVar[str] = "a baseline's config"

    normalize: Normalize = "library"
    target_sum: float = 1e4
    log_base: Literal["e", "10"] = "e"
    patch_size: int = 112
    fields_um: tuple[float, ...] | None = (80.0, 160.0, 240.0, 480.0)
    fields_px: tuple[float, ...] = (112.0, 224.0, 336.0, 672.0)
    stain: Literal["macenko", "reinhard"] | None = None
    alphas: tuple[float, ...] = ALPHAS
    rank: int = RANK
    n_neighbors: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.shared.to_dict().items():  # as checked there
            if name in SHARED:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "alphas", positive_numbers("alphas", self.alphas))
        for name in ("rank", "n_neighbors"):
            value = plain(getattr(self, name))
            if value is None and name == "n_neighbors":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MOST:
                raise ValueError(f"config.{name} must be a whole number of at least 1, not {value!r}")
            object.__setattr__(self, name, value)

    @property
    def shared(self) -> Config:
        """The settings that a network has too, checked by its configuration."""
        return Config(**{name: getattr(self, name) for name in SHARED})
