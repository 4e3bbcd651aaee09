"""The methods that the paper compares HGGEP with, or names, behind the same fit, predict, save and load."""

from .base import Rival, RivalConfig
from .bleep import BLEEP
from .deeppt import DeepPT
from .hist2st import Hist2ST
from .histogene import HisToGene
from .stnet import STNet
from .thitogene import THItoGene

__all__ = ["RIVALS", "Rival", "RivalConfig"]

RIVALS: dict[str, type[Rival]] = {
    rival.method: rival for rival in (STNet, HisToGene, Hist2ST, THItoGene, BLEEP, DeepPT)
}
