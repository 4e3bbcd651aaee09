"""Predictors that a network has to beat, behind the same fit, predict, save and load as `HGGEP`."""

from .base import Baseline
from .config import BaselineConfig
from .gene_mean import GeneMean
from .hest import HestRidge
from .nearest import NearestPatches
from .ridge import LowRankRidge, Ridge

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineConfig",
    "GeneMean",
    "HestRidge",
    "LowRankRidge",
    "NearestPatches",
    "Ridge",
]

BASELINES: dict[str, type[Baseline]] = {
    baseline.method: baseline for baseline in (GeneMean, NearestPatches, Ridge, LowRankRidge, HestRidge)
}
