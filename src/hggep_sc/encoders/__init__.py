"""Encoders by name: networks that others trained, through which a spot is seen."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .card import EncoderInfo
    from .maps import StageMaps, TokenMaps
    from .named import NamedEncoder
    from .registry import info, load, register, table
    from .registry import names as list
    from .side_by_side import SideBySide

__all__ = [
    "EncoderInfo",
    "NamedEncoder",
    "SideBySide",
    "StageMaps",
    "TokenMaps",
    "info",
    "list",
    "load",
    "register",
    "table",
]

_HOMES = {
    "EncoderInfo": ("card", "EncoderInfo"),
    "NamedEncoder": ("named", "NamedEncoder"),
    "SideBySide": ("side_by_side", "SideBySide"),
    "StageMaps": ("maps", "StageMaps"),
    "TokenMaps": ("maps", "TokenMaps"),
    "info": ("registry", "info"),
    "list": ("registry", "names"),
    "load": ("registry", "load"),
    "register": ("registry", "register"),
    "table": ("registry", "table"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # torch takes seconds to import: all load on first use
        home, called = _HOMES[name]
        return getattr(import_module(f".{home}", __name__), called)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
