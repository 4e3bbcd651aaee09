"""What predicts: HGGEP and what it has to beat, by name; and methods of your own beside them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..section.expression import ExpressionScale
    from ..section.fingerprint import Fingerprint
    from .genes import training_genes
    from .protocols import Method, Model
    from .registry import get, load, register
    from .registry import names as list
    from .regressor import Regressor

__all__ = [
    "ExpressionScale",
    "Fingerprint",
    "Method",
    "Model",
    "Regressor",
    "get",
    "list",
    "load",
    "register",
    "training_genes",
]

_HOMES = {
    "ExpressionScale": ("..section.expression", "ExpressionScale"),
    "Fingerprint": ("..section.fingerprint", "Fingerprint"),
    "Method": (".protocols", "Method"),
    "Model": (".protocols", "Model"),
    "Regressor": (".regressor", "Regressor"),
    "get": (".registry", "get"),
    "list": (".registry", "names"),
    "load": (".registry", "load"),
    "register": (".registry", "register"),
    "training_genes": (".genes", "training_genes"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # torch takes seconds to import: all load on first use
        home, called = _HOMES[name]
        return getattr(import_module(home, __name__), called)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
