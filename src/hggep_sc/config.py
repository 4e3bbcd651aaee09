"""Every setting of a model in one object, and the presets built from it."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

Normalize = Literal["library", "panel"]

MOST = 1e12  # that any number has to stay below


@dataclass(frozen=True)
class BaseConfig:
    """What the configurations of all methods share."""

    called: ClassVar[str] = "config"  # in messages
    fixed: ClassVar[frozenset[str]] = frozenset()  # settings that `replace` does not take

    def replace(self, /, **overrides: Any) -> Self:
        """Return a copy with single settings replaced.

        Raises
        ------
        ValueError
            For an unknown setting.
        """
        self._require_known(overrides, self.fixed)
        return replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild a configuration from `to_dict`; lists become tuples again.

        Raises
        ------
        ValueError
            For an unknown setting.
        """
        cls._require_known(settings)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**values)

    @classmethod
    def _require_known(cls, settings: Mapping[str, Any], but: frozenset[str] = frozenset()) -> None:
        known = sorted({f.name for f in fields(cls)} - but)
        if unknown := sorted(str(name) for name in settings if name not in known):
            near = dict.fromkeys(match for name in unknown for match in get_close_matches(name, known, n=1))
            raise ValueError(
                f"{cls.called} has no setting {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
                + (f". Did you mean {', '.join(map(repr, near))}?" if near else "")
            )


def plain(value: Any) -> Any:
    """Return NumPy's numbers and switches as Python's, which JSON knows; anything else as it is."""
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value


def positive_numbers(name: str, value: Any) -> tuple[float, ...]:
    """Return finite numbers above 0.

    Raises
    ------
    ValueError
        If they are something else, or there is none.
    """
    given = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)
    numbers = tuple(plain(one) for one in value) if given else ()
    if not numbers or not all(isinstance(one, Real) and not isinstance(one, bool) for one in numbers):
        raise ValueError(f"config.{name} must hold numbers, in a list or tuple, not {value!r}")
    if not all(0 < one < MOST for one in numbers):
        raise ValueError(f"config.{name} must hold finite numbers above 0, not {value!r}")
    return tuple(float(one) for one in numbers)


@dataclass(frozen=True)
class Config(BaseConfig):
    """Settings of a model; the defaults are those of `preset="default"`.

    Parameters
    ----------
    preset
        The preset that the settings started from; "published" selects the authors' released network.
    patch_size
        Side of the square patch that the network sees, in px.
    fields_um
        Fields of view, in um: one patch per spot and field. None: `fields_px` at the training sections' scale.
    fields_px
        Fields of view in image px, where the physical scale of the training sections is not known.
    stain
        Normalisation of the stain, fitted to each section's pixels: "macenko" or "reinhard"; None: colours as they are.
    normalize
        Total that counts are scaled by: the spot's full library, or its counts over the predicted genes (panel).
    target_sum
        Counts per spot after scaling.
    log_base
        Base of the logarithm: "e" or "10".
    center_sections
        Subtract each training section's mean expression from the targets, and predict around the mean of all.
    n_components
        Predict through this many leading principal components of the targets. None: every gene of its own.
    stages
        Stages of the ShuffleNetV2 that are read: "stage2", "stage3", "stage4", "conv5" (the paper's S2 to S5).
    standardize
        Centre and scale the encoder's features by the training sections, and cut off outliers.
    gem, cbam, vit, ham, lstm
        Switch a module of the paper on or off (its Figure 4).
    residual
        Modules add to what they are given, starting at nothing, instead of replacing it.
    width
        Length of a spot's representation (the paper's 1024).
    vit_depth, vit_heads
        Blocks and attention heads of each of the three transformer stacks.
    n_neighbors
        K, the nearest spots that a node's hyperedge holds beside itself.
    lstm_layers
        Layers of the LSTM.
    dropout
        Dropout of features, in the transformer, the hypergraph module and before the head.
    count_loss, count_weight
        Likelihood of the raw counts in the loss, and its weight; weight 0 leaves the heads out.
    correlation_weight
        Weight of 1 - mean per-gene Pearson correlation in the loss.
    flips
        Augment each spot's patches by a random flip and rotation by a multiple of 90 degrees; for an encoder that
        learns.
    stain_jitter
        Standard deviation of the random change of each stain's strength, per patch; for an encoder that learns.
    feature_shift
        Standard deviation of a random shift of each feature, alike for all spots of a training step, in units of
        its standard deviation where features are standardized: what differs between stainings. For a frozen encoder.
    epochs, learning_rate, backbone_learning_rate, weight_decay, schedule, gradient_clip
        Optimisation: AdamW; "onecycle" (warm-up and cosine decay over all epochs) or "constant". A backbone with
        rate 0 is frozen; without GEM and CBAM, which look at pixels, its features are then computed once.
    chunk_spots
        Sections with more spots are handled in compact chunks of at most this many, in training and in
        prediction. None: always whole. In prediction fewer, where free memory does not hold so many.
    epoch_chunks
        Chunks that an epoch takes at most, others in each epoch, so that training on many spots takes no longer than
        it helps. None: all of them.
    patience
        Epochs without a better validation score before training stops; used with `validation=` only.
    ensemble
        Networks whose predictions are averaged; with a frozen encoder alone. They take the encoder's groups of
        features (its resolutions, those of encoders side by side) in turn; one network alone sees all of them. None:
        as many for each group, and three at least.
    linear
        A low-rank ridge beside the network, whose prediction is added; with a frozen encoder and `cross_fit` alone.
    cross_fit
        Train again without each training section (in at most five turns), to learn on sections that were not
        seen how much of network and linear path to believe, how well genes and spots are predicted, and how
        unlike the training sections one may be. Without it the network is alone, and its scale is as training left it.
    """

    fixed: ClassVar[frozenset[str]] = frozenset({"preset"})

    preset: str = "default"
    # patches
    patch_size: int = 112
    fields_um: tuple[float, ...] | None = (80.0, 160.0, 240.0, 480.0)
    fields_px: tuple[float, ...] = (112.0, 224.0, 336.0, 672.0)
    stain: Literal["macenko", "reinhard"] | None = None
    # targets
    normalize: Normalize = "library"
    target_sum: float = 1e4
    log_base: Literal["e", "10"] = "e"
    center_sections: bool = True
    n_components: int | None = 16
    # network
    stages: tuple[str, ...] = ("stage2", "stage3", "stage4")
    standardize: bool = True
    gem: bool = False
    cbam: bool = False
    vit: bool = True
    ham: bool = True
    lstm: bool = True
    residual: bool = True
    width: int = 128
    vit_depth: int = 1
    vit_heads: int = 4
    n_neighbors: int = 6
    lstm_layers: int = 1
    dropout: float = 0.3
    # loss
    count_loss: Literal["zinb", "nb"] = "zinb"
    count_weight: float = 0.0
    correlation_weight: float = 1.0
    # training
    flips: bool = True
    stain_jitter: float = 0.1
    feature_shift: float = 0.2
    epochs: int = 30
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 0.0
    weight_decay: float = 0.05
    schedule: Literal["onecycle", "constant"] = "onecycle"
    gradient_clip: float = 1.0
    chunk_spots: int | None = 512
    epoch_chunks: int | None = 32
    patience: int = 10
    ensemble: int | None = None
    linear: bool = True
    cross_fit: bool = True

    @classmethod
    def from_preset(cls, name: str, /, **overrides: Any) -> Self:
        """Return a preset, with single settings replaced.

        Raises
        ------
        ValueError
            For an unknown preset or setting.
        """
        if name not in list(PRESETS):
            raise ValueError(f"preset={name!r} is not known; choose one of {', '.join(map(repr, PRESETS))}")
        return cls(preset=name, **PRESETS[name]).replace(**overrides)

    @property
    def learns_backbone(self) -> bool:
        """Whether the backbone is trained; else it is frozen."""
        return self.backbone_learning_rate > 0

    @property
    def learns_from_pixels(self) -> bool:
        """Whether anything that looks at pixels is trained; else features are computed once."""
        return self.learns_backbone or self.gem or self.cbam

    def __post_init__(self) -> None:
        for name, choices in {"preset": tuple(PRESETS), **_CHOICES}.items():
            if (value := getattr(self, name)) is None and name in _MAY_LACK:
                continue
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"config.{name} must be one of {choices}, not {value!r}")
            object.__setattr__(self, name, str(value))
        for switch in (f.name for f in fields(self) if f.type is bool):
            value = plain(getattr(self, switch))
            if not isinstance(value, bool):
                raise ValueError(f"config.{switch} must be True or False, not {value!r}")
            object.__setattr__(self, switch, value)
        for name, (kind, least, most) in _RANGES.items():
            value = plain(getattr(self, name))
            if value is None and name in _MAY_LACK:
                continue
            whole = isinstance(value, Integral)
            if isinstance(value, bool) or not (whole or (kind is float and isinstance(value, Real))):
                raise ValueError(f"config.{name} must be a number of type {kind.__name__}, not {value!r}")
            if not least <= value < most:
                raise ValueError(f"config.{name} must be at least {least} and below {most}, not {value!r}")
            object.__setattr__(self, name, kind(value))
        for name in ("fields_px", "fields_um"):
            sides = getattr(self, name)
            if sides is not None or name != "fields_um":
                object.__setattr__(self, name, positive_numbers(name, sides))
        stages = tuple(self.stages) if isinstance(self.stages, list | tuple) else ()
        if not stages or any(stage not in _STAGES for stage in stages) or len(set(stages)) < len(stages):
            raise ValueError(f"config.stages must name some of {_STAGES}, each once, not {self.stages!r}")
        object.__setattr__(self, "stages", stages)
        if self.fields_um is not None and len(self.fields_um) != len(self.fields_px):
            raise ValueError("config.fields_um and config.fields_px must list the same number of fields of view")
        if self.width % self.vit_heads:
            raise ValueError(f"config.width ({self.width}) must be a multiple of config.vit_heads ({self.vit_heads})")
        if self.preset == "published":
            others = {"patch_size": 112, "width": 1024, "cross_fit": False}
            for name in ("gem", "cbam", "vit", "ham", "lstm", *others):
                if getattr(self, name) != (released := others.get(name, True)):
                    raise ValueError(f"config.{name}: the published network has {released!r} and no other")
            if len(self.fields_px) != 1:
                raise ValueError(f"config.fields_px: the published network has one field, not {self.fields_px}")


# type, least allowed, and what it has to stay below
_RANGES: dict[str, tuple[type, float, float]] = {
    "patch_size": (int, 16, 2**13),
    "target_sum": (float, 1e-9, MOST),
    "n_components": (int, 1, MOST),
    "width": (int, 1, 2**16),
    "vit_depth": (int, 0, 2**10),
    "vit_heads": (int, 1, 2**10),
    "n_neighbors": (int, 1, MOST),
    "lstm_layers": (int, 1, 2**10),
    "dropout": (float, 0, 1),
    "count_weight": (float, 0, MOST),
    "correlation_weight": (float, 0, MOST),
    "stain_jitter": (float, 0, MOST),
    "feature_shift": (float, 0, MOST),
    "epochs": (int, 1, MOST),
    "learning_rate": (float, 1e-12, MOST),
    "backbone_learning_rate": (float, 0, MOST),
    "weight_decay": (float, 0, MOST),
    "gradient_clip": (float, 0, MOST),
    "chunk_spots": (int, 1, MOST),
    "epoch_chunks": (int, 1, MOST),
    "patience": (int, 1, MOST),
    "ensemble": (int, 1, 2**10),
}

_STAGES = ("stage2", "stage3", "stage4", "conv5")

_MAY_LACK = ("stain", "n_components", "chunk_spots", "epoch_chunks", "ensemble")  # None

_CHOICES: dict[str, tuple[str, ...]] = {
    "stain": ("macenko", "reinhard"),
    "normalize": ("library", "panel"),
    "log_base": ("e", "10"),
    "count_loss": ("zinb", "nb"),
    "schedule": ("onecycle", "constant"),
}

# the paper's numbered specification; what it leaves open is decided as docs/presets.md says
_PAPER: dict[str, Any] = {
    "fields_um": None,
    "fields_px": (112.0,),
    "center_sections": False,
    "n_components": None,
    "stages": ("stage3", "stage4", "conv5"),
    "standardize": False,
    "gem": True,
    "cbam": True,
    "residual": False,
    "width": 1024,
    "vit_depth": 4,
    "vit_heads": 8,
    "n_neighbors": 3,
    "lstm_layers": 4,
    "dropout": 0.2,
    "count_weight": 0.25,
    "correlation_weight": 0.0,
    "flips": False,
    "stain_jitter": 0.0,
    "feature_shift": 0.0,
    "epochs": 400,
    "learning_rate": 1e-5,
    "backbone_learning_rate": 1e-5,
    "weight_decay": 0.0,
    "schedule": "constant",
    "gradient_clip": 0.0,
    "chunk_spots": None,
    "epoch_chunks": None,
    "ensemble": 1,
    "linear": False,
    "cross_fit": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": _PAPER,
    # the released code: the network's own quirks live in nn/published.py, these are its data and optimiser
    "published": {
        **_PAPER,
        "normalize": "panel",
        "log_base": "10",
        "epochs": 500,
        "vit_heads": 16,
    },
}
