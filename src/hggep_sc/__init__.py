"""Spatial gene expression from H&E histology: HGGEP on AnnData and SpatialData."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._settings import settings
from ._version import __version__
from .runtime.imports import naming_what_is_broken
from .runtime.messages import set_up

if TYPE_CHECKING:
    from . import datasets, encoders, errors, get, interop, methods, metrics, pl, pp, tl
    from .config import Config
    from .cross_validation import CrossValidation
    from .methods import baselines
    from .methods.hggep import HGGEP

__all__ = [
    "HGGEP",
    "Config",
    "CrossValidation",
    "__version__",
    "baselines",
    "datasets",
    "encoders",
    "errors",
    "get",
    "interop",
    "methods",
    "metrics",
    "pl",
    "pp",
    "settings",
    "tl",
]

_HOMES = {"HGGEP": ".methods.hggep", "Config": ".config", "CrossValidation": ".cross_validation"}
_ROOMS = {"baselines": ".methods.baselines"}  # which are not right below


set_up()


def __getattr__(name: str) -> Any:
    # torch, scanpy and spatialdata take seconds to import: they load on first use
    if name in __all__:
        with naming_what_is_broken("hggep_sc"):
            home = import_module(_HOMES.get(name) or _ROOMS.get(name) or f".{name}", __name__)
        return getattr(home, name) if name in _HOMES else home
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
