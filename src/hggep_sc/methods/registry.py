"""The methods by name, and one way to fit any of them to sections."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ..config import Config, Normalize
from ..features.frozen import SHUFFLENET
from ..runtime.validators import choice
from ..training.devices import Strategy
from .baselines import BASELINES, Baseline, BaselineConfig
from .genes import GenesBy
from .hggep import HGGEP

if TYPE_CHECKING:
    from torch import nn

    from ..section import Section

Method = Literal["hggep", "gene_mean", "nearest_patches", "ridge", "low_rank_ridge"]
METHODS: tuple[str, ...] = get_args(Method)
Model: TypeAlias = HGGEP | Baseline


def reads_image(method: str, encoder: "str | nn.Module") -> bool:
    """Whether a method looks at patches, seen through an encoder."""
    if method == "hggep":
        return not isinstance(encoder, str) or encoder == SHUFFLENET
    return BASELINES[method].reads_image if method in BASELINES else True


def require_model(model: Any) -> None:
    """Refuse what is no model."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be what tl.fit or HGGEP.load returned, not {type(model).__name__}")


def method_config(
    method: str,
    *,
    preset: str = "default",
    config: Config | BaselineConfig | Mapping[str, Any] | None = None,
    normalize: Normalize | None = None,
) -> Config | BaselineConfig:
    """Return all settings of a method: the preset's, with those of `config` and `normalize` in their place.

    Raises
    ------
    ValueError
        If there is no such method or setting, or a baseline is given a preset of the network.
    TypeError
        If `config` is that of another method.
    """
    choice("method", method, METHODS)
    wanted: type[Config] | type[BaselineConfig] = Config if method == "hggep" else BaselineConfig
    settings: Config | BaselineConfig
    if isinstance(config, Config | BaselineConfig):
        if not isinstance(config, wanted):
            raise TypeError(f"config is a {type(config).__name__}; method={method!r} takes a {wanted.__name__}")
        settings = config
    elif config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        raise TypeError(f"config={config!r} must be a dict of settings by name, or a {wanted.__name__}")
    elif method == "hggep":
        settings = Config.from_preset(preset, **(config or {}))
    elif preset != "default":
        raise ValueError(f"preset={preset!r} is one of the network's: method={method!r} has none")
    else:
        settings = BaselineConfig().replace(**(config or {}))
    return settings if normalize is None else settings.replace(normalize=normalize)


def fit_method(
    sections: "Sequence[Section]",
    method: str,
    config: Config | BaselineConfig,
    *,
    genes: Iterable[str] | str | int | None = None,
    genes_by: GenesBy = "moran",
    encoder: "str | nn.Module" = SHUFFLENET,
    weights: str | Path | None = "imagenet",
    validation: str | float | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    strategy: Strategy = "auto",
    num_nodes: int = 1,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool | None = None,
) -> Model:
    """Fit a method, with all its settings from `method_config`; see `hggep_sc.tl.fit` for the parameters."""
    if isinstance(config, Config):
        return HGGEP.fit(
            sections,
            config,
            genes=genes,
            genes_by=genes_by,
            encoder=encoder,
            weights=weights,
            validation=validation,
            seed=seed,
            device=device,
            devices=devices,
            strategy=strategy,
            num_nodes=num_nodes,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            resume=resume,
            progress=progress,
        )
    for keyword, given in {
        "encoder": encoder != SHUFFLENET,
        "validation": validation is not None,
        "devices": devices != 1,
        "strategy": strategy != "auto",
        "num_nodes": num_nodes != 1,
        "checkpoint_dir": checkpoint_dir is not None,
        "resume": resume,
    }.items():
        if given:
            raise ValueError(f"{keyword}= is for method='hggep': method={method!r} has no use for it")
    return BASELINES[method].fit(
        sections,
        config,
        genes=genes,
        genes_by=genes_by,
        weights=weights,
        seed=seed,
        device=device,
        progress=progress,
    )
