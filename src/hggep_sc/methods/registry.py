"""The methods by name, and one way to fit any of them to sections and to predict by any model."""

import hashlib
import inspect
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..config import BaseConfig, Config, Normalize
from ..encoders.registry import AUTO, default_encoder, info_of
from ..errors import ModelError, TrainingWarning
from ..features.encoders import is_slot
from ..prediction.finite import require_finite_prediction
from ..runtime.messages import warn
from ..runtime.validators import choice, text
from ..storage.models import folder_of, method_in
from .baselines import BASELINES
from .hggep import HGGEP
from .protocols import Method, Model
from .rivals import RIVALS

if TYPE_CHECKING:
    from torch import nn

    from ..section import Section

_BUILT_IN = cast("dict[str, Method]", {HGGEP.method: HGGEP, **BASELINES, **RIVALS})  # classes: mypy wants objects
_methods = dict(_BUILT_IN)

UNSET = {  # of arguments that not every method takes; others, such as device, may be passed over
    "genes": None,
    "genes_by": "moran",
    "normalize": None,
    "config": None,
    "encoder": AUTO,
    "validation": None,
    "devices": 1,
    "strategy": "auto",
    "num_nodes": 1,
    "checkpoint_dir": None,
    "resume": False,
    "average_flips": False,
    "chunk_spots": None,
    "checkpoint": None,
}
SHOWN = {"checkpoint": "checkpoint_dir"}  # what users call it


def register(method: Method) -> Method:
    """Make a method known by its name, to `hggep_sc.tl.fit(method=...)` and `tl.cross_validate(methods=[...])`.

    Parameters
    ----------
    method
        An object as `hggep_sc.methods.Method` describes it. One of the same name, but for those of the package, is
        replaced.

    Returns
    -------
    The method.

    Raises
    ------
    TypeError
        If it is no method.
    ValueError
        If its name is that of one of the package.
    """
    _methods[method.method] = require_method(method)
    return method


def get(name: str) -> Method:
    """Return a method by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    return _methods[choice("method", name, names())]


def load(path: str | Path, *, encoder: "nn.Module | str | Path | None" = None) -> Model:
    """Read a model of any method that `save` wrote.

    Parameters
    ----------
    path
        The folder, or "hf://owner/name@revision", as in `hggep_sc.HGGEP.load`.
    encoder
        As in `hggep_sc.HGGEP.load`, for a model that was fitted with one that is not in its folder.

    Returns
    -------
    The model.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ModelError
        If the folder is no model, is damaged, or is of a method that is not registered.
    ValueError
        If the model wants an encoder that was not given, or is another.
    """
    folder = folder_of(path)
    if (name := method_in(folder)) not in _methods:
        raise ModelError(
            f"{folder} holds a model of method {name!r}, which is not known here: hggep_sc.methods.register it first"
        )
    method = _methods[name]
    return method.load(folder, **({} if encoder is None else {"encoder": encoder}))


def names() -> list[str]:
    """Return the names of all methods there are."""
    return list(_methods)


def method_of(method: str | Method) -> Method:
    """Return the method that a name or an object stands for."""
    return get(method) if isinstance(method, str) else require_method(method)


def require_method(method: Any) -> Method:
    """Return what is a method."""
    if not isinstance(method, Method):
        lacks = [name for name in ("method", "takes", "fit", "load") if not hasattr(method, name)]
        raise TypeError(f"method={method!r} is no method: it lacks {', '.join(lacks)}; see hggep_sc.methods.Method")
    if inspect.isclass(method) and inspect.isfunction(inspect.getattr_static(method, "fit")):
        raise TypeError(
            f"method={method!r} is a class: give an object of it, {method.__name__}(), or a classmethod fit"
        )
    if isinstance(method.takes, str):
        raise TypeError(f"{method!r}: takes={method.takes!r} must be a set of names")
    if _BUILT_IN.get(text("method", method.method), method) is not method:
        raise ValueError(f"{method!r}: method={method.method!r} is one of hggep_sc: choose another name")
    return method


def require_model(model: Any) -> None:
    """Refuse what is no model."""
    if inspect.isclass(model) or not isinstance(model, Model):
        raise TypeError(f"model must be what tl.fit or HGGEP.load returned, not {type(model).__name__}")


def taken(by: Method | Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a method or model takes; others are refused where they are set.

    Raises
    ------
    ValueError
        For the first that is set to no use.
    """
    for name in (name for name in UNSET if name in options and name not in by.takes):
        value, unset = options[name], UNSET[name]
        if not (value is None or (isinstance(value, type(unset)) and value == unset)):
            takers = " or ".join(repr(other) for other, method in _BUILT_IN.items() if name in method.takes)
            raise ValueError(
                f"{SHOWN.get(name, name)}= is for "
                + (f"method={takers}" if takers else "methods of your own that take it")
                + f": method={by.method!r} has no use for it"
            )
    return {name: value for name, value in options.items() if name in by.takes}


def config_class(method: Method) -> type[BaseConfig] | None:
    """Return the class of a method's `config`; None for one that holds its settings itself."""
    return getattr(method, "configured_by", None)


def reads_image(method: Method, encoder: "str | nn.Module") -> bool:
    """Whether a method looks at patches, seen through an encoder."""
    if "encoder" in method.takes and is_slot(encoder):
        return False
    return bool(getattr(method, "reads_image", True))


def seen_through(
    method: Method, encoder: "str | nn.Module", weights: str | Path | None, config: Any
) -> "str | nn.Module":
    """Return the encoder that a fit sees through: what "auto" stands for, unless the method has one of its own.

    Parameters
    ----------
    method, encoder, weights
        As given to `hggep_sc.tl.fit`.
    config
        The method's settings.
    """
    if encoder != AUTO or "encoder" not in method.takes or getattr(method, "own_encoder", False):
        return encoder
    of_pixels = isinstance(config, Config) and (config.preset == "published" or config.learns_from_pixels)
    return default_encoder(weights, of_pixels=of_pixels)


def settings_hash(method: Method) -> str | None:
    """Return a hash of what a method of a user's is and of its settings; None for those of the package.

    Raises
    ------
    TypeError
        If it cannot be pickled.
    """
    if _BUILT_IN.get(method.method) is method:
        return None
    try:
        return hashlib.sha256(pickle.dumps(method)).hexdigest()
    except Exception as error:  # whatever its parts raise
        raise TypeError(
            f"method={method.method!r} cannot be pickled ({error}), as other processes and the folder of folds need "
            "it: define its class at the top level of a module, and hold what can be pickled"
        ) from error


def method_config(
    method: Method,
    *,
    preset: str = "default",
    config: BaseConfig | Mapping[str, Any] | None = None,
    normalize: Normalize | None = None,
    encoder: "str | nn.Module" = AUTO,
) -> Any:
    """Return all settings of a method: the preset's, with those of `config` and `normalize` in their place.

    Patches and fields of view are those of an encoder that is known by name, unless `config` has them.

    Returns
    -------
    A `Config` or `BaselineConfig`; `config` as it is, where a method of a user's holds its settings itself.

    Raises
    ------
    ValueError
        If there is no such setting, or another than HGGEP is given a preset of the network.
    TypeError
        If `config` is that of another method.
    """
    name, wanted = method.method, config_class(method)
    settings: Any = config
    if preset != "default" and wanted is not Config:
        raise ValueError(f"preset={preset!r} is one of the network's: method={name!r} has none")
    if wanted is None:
        return config
    if isinstance(config, BaseConfig):
        if not isinstance(config, wanted):
            raise TypeError(f"config is a {type(config).__name__}; method={name!r} takes a {wanted.__name__}")
    elif config is not None and not (isinstance(config, Mapping) and all(isinstance(key, str) for key in config)):
        raise TypeError(f"config={config!r} must be a dict of settings by name, or a {wanted.__name__}")
    else:
        known, names = info_of(encoder), {field.name for field in fields(wanted)}
        follows = {} if known is None else {name: value for name, value in known.settings.items() if name in names}
        given = {**follows, **(config or {})}
        settings = Config.from_preset(preset, **given) if wanted is Config else wanted().replace(**given)
    whole = isinstance(config, BaseConfig) and "patch_size" in {field.name for field in fields(wanted)}
    if whole and (known := info_of(encoder)) is not None and settings.patch_size != known.px:
        warn(
            f"config.patch_size={settings.patch_size}, while encoder={known.name!r} was made for {known.px} px: a "
            f"{wanted.__name__} is taken as it is; what a dict leaves out follows from the encoder",
            TrainingWarning,
        )
    return settings if normalize is None else settings.replace(normalize=normalize)


def fit_method(sections: "Sequence[Section]", method: Method, **options: Any) -> Model:
    """Fit a method, with its settings from `method_config` as `config`; see `hggep_sc.tl.fit` for the options.

    Raises
    ------
    ValueError
        For options that are set and that it does not take.
    """
    if config_class(method) is not None:
        options.pop("normalize", None)  # its config holds it
    model = method.fit(sections, **taken(method, options))
    require_model(model)
    return model


def predict_section(
    model: Model, section: "Section", *, device: str = "auto", **options: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predict a section by any model; see `HGGEP.predict` for the options, of which it is given those that it takes.

    Raises
    ------
    ValueError
        If the prediction is not a finite value for each spot and gene.
    """
    expression, latent = model.predict(section, device=device, **taken(model, options))
    if np.shape(expression) != (wanted := (len(section.xy), len(model.genes))):
        raise ValueError(
            f"section {section.name!r}: method={model.method!r} predicts values of shape {np.shape(expression)}, and "
            f"spots and genes are {wanted}"
        )
    expression = np.asarray(expression, dtype=np.float32)
    require_finite_prediction(section.name, expression)
    if advance := options.get("advance") if "advance" not in model.takes else None:
        advance(len(section.xy))
    return expression, latent
