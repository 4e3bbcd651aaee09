"""The methods that the paper compares HGGEP with, or names, behind the same fit, predict, save and load."""

from .base import Rival, RivalConfig

__all__ = ["RIVALS", "Rival", "RivalConfig"]

RIVALS: dict[str, type[Rival]] = {}
