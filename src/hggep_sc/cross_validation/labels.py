"""The methods that a cross-validation compares: labels of the user's, and all settings of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from torch import nn

from ..config import BaseConfig
from ..encoders.registry import AUTO
from ..features.encoders import is_slot
from ..methods.hggep import HGGEP
from ..methods.registry import Method, config_class, get, method_config, method_of, names, seen_through, taken

NETWORK = ("preset", "config", "encoder", "validation")  # that make it plain that a label is HGGEP
KNOWN = ("method", *NETWORK, "weights")
LIKE = 0.8  # of difflib: labels that are so like a method's name are taken for a slip


def settings_of(
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the arguments of `fit_method` by label.

    Parameters
    ----------
    methods
        Methods, by name or as objects; or arguments of `hggep_sc.tl.fit` by label: method, preset, config, encoder,
        weights, validation.
    shared
        Arguments for all: genes (names or a number), genes_by, weights, normalize, device; and for those that take
        them: preset, config, encoder, validation.

    Raises
    ------
    ValueError, TypeError
        For a label that does not tell its method, or contradicts it; for a method or setting that does not exist; for
        methods on different expression scales.
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence | Mapping) or not methods:
        raise ValueError(f"methods={methods!r} must be a list of names, or a dict of settings by name")
    if not isinstance(methods, Mapping):
        called = [one if isinstance(one, str) else str(getattr(one, "method", one)) for one in methods]
        if len(set(called)) < len(called):
            raise ValueError(f"methods= has the same name twice ({', '.join(called)}): give a dict of methods by label")
        methods = {
            label: {} if isinstance(one, str) and one in names() else {"method": one}
            for label, one in zip(called, methods, strict=True)
        }
    of_label = {str(label): _method_of(str(label), options) for label, options in methods.items()}
    _require_use(shared, list(of_label.values()))
    settings = {
        str(label): _settings(str(label), of_label[str(label)], options, shared) for label, options in methods.items()
    }
    _require_one_scale({label: arguments["config"] for label, arguments in settings.items()})
    return settings


def _method_of(label: str, options: Any) -> Method:
    """Return the method that a label stands for."""
    here = f"methods[{label!r}]"
    if not isinstance(options, Mapping):
        remedy = f"{{{label!r}: {{'method': {options!r}}}}}" if options in names() else "{} for the defaults"
        raise TypeError(f"{here} must be a dict of arguments of tl.fit, such as {remedy}; found {options!r}")
    if unknown := sorted(str(name) for name in set(options) - set(KNOWN)):
        raise ValueError(
            f"{here} has {', '.join(unknown)}; it may have {', '.join(sorted(KNOWN))}. Genes, expression "
            "scale and device are the same for all: give them to cross_validate"
        )
    method = options.get("method")
    if method is not None:
        try:
            found = method_of(method)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{here}: {error}") from error
        if label in names() and label != found.method:
            raise ValueError(
                f"{here} has method={found.method!r}: a label that is a method's name stands for that method. Choose "
                f"another label, such as {label + ' 2'!r}"
            )
        return found
    if label in names():
        return get(label)
    like = _methods_like(label)
    plain = any(name in options for name in NETWORK)
    if not plain or set(like) - {"hggep"}:
        of = f"did you mean {' or '.join(map(repr, like))}? " if like else ""
        raise ValueError(
            f"{here} does not tell its method: {of}A label that is no method's name needs 'method', one of "
            f"{', '.join(map(repr, names()))}, such as {{{label!r}: {{'method': {like[0] if like else 'hggep'!r}}}}}"
        )
    return get("hggep")


def _methods_like(label: str) -> list[str]:
    """Names of methods that a label resembles, and of baselines that it holds."""
    plain = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    held = [name for name in names() if name != "hggep" and f"_{name}_" in f"_{plain}_"]
    longest = [name for name in held if not any(name != other and name in other for other in held)]
    return longest or get_close_matches(plain, names(), cutoff=LIKE)


def _require_use(shared: Mapping[str, Any], used: Sequence[Method]) -> None:
    """Refuse settings for all methods that none of them takes."""
    if shared.get("preset") is not None and HGGEP not in used:
        raise ValueError(f"preset={shared['preset']!r} is for method 'hggep', which is none of the methods")
    if shared.get("encoder", AUTO) != AUTO and not any("encoder" in method.takes for method in used):
        raise ValueError(f"encoder={shared['encoder']!r} is for methods that take one, which is none of these")
    config = shared.get("config")
    takers = {found for method in used if (found := config_class(method)) is not None}
    if isinstance(config, BaseConfig):
        if type(config) not in takers:
            raise ValueError(f"config is a {type(config).__name__}, which none of the methods takes")
        return
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config={config!r} must be a dict of settings, a Config or a BaselineConfig")
    known = sorted({field.name for taker in takers for field in fields(taker) if field.name not in taker.fixed})
    if unknown := sorted(str(name) for name in set(config or ()) - set(known)):
        raise ValueError(
            f"config= has {', '.join(map(repr, unknown))}, which is no setting of any of the methods; there are "
            f"{', '.join(known)}"
        )


def _settings(label: str, method: Method, options: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `fit_method` for one label."""
    both = {**{name: value for name, value in shared.items() if name in method.takes}, **options}
    try:
        taken(method, {name: value for name, value in options.items() if name != "method"})
    except ValueError as error:
        raise ValueError(f"methods[{label!r}]: {error}") from error
    encoder, validation = both.get("encoder", AUTO), both.get("validation")
    config = _config(method, options.get("config"), shared.get("config"))
    preset = options.get("preset") or (shared.get("preset") if method is HGGEP else None) or "default"
    settings = method_config(method, preset=preset, config=config, normalize=shared.get("normalize"), encoder=encoder)
    if validation is not None and not (isinstance(validation, int | float) and 0 < validation < 1):
        raise ValueError(f"validation={validation!r} must be a fraction of every section's spots, between 0 and 1")
    # a file of weights for all is of the encoder for all
    weights = both.get("weights")
    of_all = seen_through(method, shared.get("encoder", AUTO), shared.get("weights"), settings)
    encoder = seen_through(method, encoder, weights, settings)
    if "weights" not in options and weights is not None and (encoder != of_all or encoder == AUTO):
        weights = "pretrained"
    if (
        "weights" not in method.takes or isinstance(encoder, nn.Module) or is_slot(encoder)
    ):  # nothing is to be downloaded for it
        weights = None
    return {
        "method": method,
        "config": settings,
        "genes": shared.get("genes"),
        "genes_by": shared.get("genes_by", "moran"),
        "normalize": shared.get("normalize"),
        "encoder": encoder,
        "weights": weights,
        "validation": validation,
        "device": shared.get("device", "auto"),
        "progress": False,
    }


def _config(method: Method, own: Any, shared: Any) -> Any:
    """Return a method's own settings on top of those for all that it takes."""
    if (wanted := config_class(method)) is None:
        return own
    if isinstance(shared, BaseConfig):
        if not isinstance(shared, wanted) or isinstance(own, BaseConfig):
            return own
        return shared.replace(**(own or {}))
    if isinstance(own, BaseConfig):
        return own
    known = {field.name for field in fields(wanted)}
    return {**{name: value for name, value in (shared or {}).items() if name in known}, **(own or {})}


def _require_one_scale(configs: Mapping[str, Any]) -> None:
    """Refuse to compare methods whose counts are scaled by different totals; bases of logarithms do not matter."""
    known = {label: config for label, config in configs.items() if config is not None}
    scales = {label: (config.normalize, config.target_sum) for label, config in known.items()}
    if len(set(scales.values())) > 1:
        found = "; ".join(f"{label!r}: {total} scaled to {target:g}" for label, (total, target) in scales.items())
        raise ValueError(
            f"the methods are on different expression scales ({found}), so that their figures cannot be compared: "
            "give normalize= to cross_validate, and one target_sum"
        )
